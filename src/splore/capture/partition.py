"""Which nodes of an exported graph become programs, and which stay in torch.

A program reads one value and gives one. Neighbouring nodes whose operators are all known become one where no other
value goes in or out between them, however many pass by; so an unknown operator keeps only its own neighbours in torch.
What lies between programs is a piece of torch, with as many values in and out as it takes.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx
from torch.ops import aten

from splore.capture.lowering import Exported, Unsupported, module_name


@dataclass(frozen=True)
class Piece:
    """Neighbouring nodes, the values that they read of others and those that others read of them.

    `reasons` says why they are no program, by operator; a program has none, one input and one output.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    reasons: dict[str, str]


def partition(
    nodes: Sequence[fx.Node],
    source: fx.Node,
    results: Iterable[fx.Node],
    model: Exported,
    heavy: Collection[fx.Node],
    reasons: Mapping[fx.Node, str],
) -> list[Piece]:
    """The pieces in the order in which they run. `reasons` has the nodes that can't be in a program.

    A program needs a convolution or a product, one of the `heavy` nodes, to be worth the way out of torch and back,
    unless it is the whole graph.
    """
    if not nodes:
        return [Piece((), (source,), (source,), {"*": "it computes nothing"})]
    last_use = {value: index for index, node in enumerate(nodes) for value in reads(node, model)}
    last_use |= dict.fromkeys(results, len(nodes))
    spans: list[tuple[int, int]] = []
    left = start = 0
    while start < len(nodes):
        end = _longest(nodes, start, model, heavy, reasons, last_use)
        if end == start:
            start += 1
            continue
        spans += [(left, start), (start, end)]
        left = start = end
    spans.append((left, len(nodes)))
    pieces = []
    for number, (begin, end) in enumerate(spans):
        found = _piece(nodes[begin:end], end, source, model, last_use)
        if number % 2 == 0 and found.nodes:
            found.reasons.update(_reasons(found.nodes, reasons))
        if found.outputs:
            pieces.append(found)
    return pieces


def reads(node: fx.Node, model: Exported) -> list[fx.Node]:
    """The values on which a node depends directly, also by way of sizes, but for the size of the batch."""
    found: dict[fx.Node, None] = {}
    stack = list(reversed(node.all_input_nodes))
    while stack:
        argument = stack.pop()
        if argument in model.constants or is_batch(argument, model):
            continue
        if argument.op == "placeholder" or isinstance(argument.meta.get("val"), Tensor | list | tuple):
            found[argument] = None
        else:
            stack.extend(argument.all_input_nodes)
    return list(found)


def is_batch(node: fx.Node, model: Exported) -> bool:
    """Whether a node is the batch size, which every tensor of images tells."""
    if node.target is not aten.sym_size.int or node.args[1] != 0:
        return False
    return isinstance(node.args[0], fx.Node) and tells_batch(node.args[0], model)


def tells_batch(node: fx.Node, model: Exported) -> bool:
    """Whether the first dimension of a value is the batch."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() > 0 and str(value.shape[0]) == str(model.batch)


def _longest(
    nodes: Sequence[fx.Node],
    start: int,
    model: Exported,
    heavy: Collection[fx.Node],
    reasons: Mapping[fx.Node, str],
    last_use: Mapping[fx.Node, int],
) -> int:
    """The end of the longest program that starts here; `start` where there is none."""
    best, inside, inputs, worth = start, set(), set(), False
    leaving: set[fx.Node] = set()  # made inside, and still to be read
    for index in range(start, len(nodes)):
        node = nodes[index]
        if node in reasons:
            break
        sources = reads(node, model)
        inside.add(node)
        leaving.add(node)
        leaving -= {value for value in sources if last_use[value] <= index}
        inputs |= {value for value in sources if value not in inside}
        if len(inputs) > 1 or not all(_is_boundary(value, model) for value in inputs):
            break
        worth = worth or node in heavy
        whole = start == 0 and index == len(nodes) - 1
        if len(leaving) == 1 and len(inputs) == 1 and (worth or whole) and _is_boundary(next(iter(leaving)), model):
            best = index + 1
    return best


def _piece(
    nodes: Sequence[fx.Node], end: int, source: fx.Node, model: Exported, last_use: Mapping[fx.Node, int]
) -> Piece:
    """The piece of nodes before the one at `end`."""
    inside = set(nodes)
    inputs = dict.fromkeys(value for node in nodes for value in reads(node, model) if value not in inside)
    if not any(tells_batch(value, model) for value in inputs):
        inputs[source] = None
    outputs = tuple(node for node in nodes if last_use.get(node, -1) >= end)
    return Piece(tuple(nodes), tuple(inputs), outputs, {})


def _reasons(nodes: Iterable[fx.Node], reasons: Mapping[fx.Node, str]) -> dict[str, str]:
    why = {f"{node.target} ({module_name(node)})": reasons[node] for node in nodes if node in reasons}
    return why or {"*": "no convolution between what goes in and what comes out"}


def _is_boundary(node: fx.Node, model: Exported) -> bool:
    """Whether a value can go into a program or come out of one: float32, with the batch first."""
    try:
        sizes, batch = model.sizes(node)
    except Unsupported:
        return False
    return batch == 0 and sizes[0] == 1 and len(sizes) > 1
