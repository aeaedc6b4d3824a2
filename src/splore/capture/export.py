"""From a PyTorch model to the segments that the engine runs one after another.

`torch.export` gives the model as a graph of ATen operators, with the batch dimension left open. Decomposed layers are
exported as the dense layers that compute the same, and known again by the names of their weights. The graph is cut
where a single tensor is alive; the pieces of which every operator is known become programs, and the others stay in
torch.
"""

import copy
from dataclasses import dataclass, replace
from itertools import chain, groupby

import torch
from torch import Tensor, fx, nn

from splore.capture import fuse
from splore.capture.lowering import Exported, Lowered, Unsupported, lower, module_name
from splore.capture.torch_segment import TorchSegment
from splore.design.layers import LowRankSparse
from splore.engine.program import Conv, Program


@dataclass(frozen=True)
class Captured:
    """The segments of a model, the shapes of one input and one result, and the dense model that computes the same."""

    segments: tuple[Program | TorchSegment, ...]
    input: tuple[int, ...]
    output: tuple[int, ...]
    dense: nn.Module


@dataclass(frozen=True)
class Piece:
    """Nodes that read one tensor and give one; `reasons` says why they can't be a program, by operator."""

    nodes: tuple[fx.Node, ...]
    input: fx.Node
    output: fx.Node
    reasons: dict[str, str]


def capture(model: nn.Module, example_input: Tensor) -> Captured:
    """Captures a model in eval mode, on the CPU and in float32, for inputs like the example (N, C, H, W) or (N, C).

    The batch size stays open, and the model is left as it is. Raises ValueError where it is not such a model, or where
    `torch.export` can't follow its forward pass.
    """
    _expect_model(model, example_input)
    dense, layers = densified(model)
    exported = _export(dense, example_input)
    source, result = _ends(exported)
    graph = _constants(exported, source, layers)
    nodes = _needed(exported, graph, result)
    lowered, reasons = _lower(nodes, graph)
    pieces = _joined(_pieces(nodes, source, result, graph, reasons), lowered)
    segments = tuple(
        TorchSegment.of(piece.nodes, piece.input, piece.output, graph.constants, piece.reasons)
        if piece.reasons
        else _program(piece, lowered, graph)
        for piece in pieces
    )
    input, output = (tuple(node.meta["val"].shape[1:]) for node in (source, result))
    return Captured(segments, input, output, dense)


def densified(model: nn.Module) -> tuple[nn.Module, dict[str, LowRankSparse]]:
    """A copy of the model with dense layers for the decomposed ones, and copies of those by every name that they have.

    No memory is shared with the model: what is made of the copy stays what it is, whatever becomes of the model.
    """
    model = copy.deepcopy(model)
    modules = model.named_modules(remove_duplicate=False)
    layers = {path: module for path, module in modules if isinstance(module, LowRankSparse)}
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    stand_ins = {id(layer): layer.to_dense().requires_grad_(False) for layer in set(layers.values())}  # type: ignore[operator]
    return copy.deepcopy(model, shared | stand_ins), layers


def _expect_model(model: nn.Module, example: Tensor) -> None:
    if model.training:
        raise ValueError("expected a model in eval mode: call model.eval() first")
    for path, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.device.type != "cpu":
            raise ValueError(f"expected a model on the CPU, found {path} on {tensor.device}: call model.cpu() first")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(f"expected a float32 model, found {path} of {tensor.dtype}: call model.float() first")
        if tensor.is_floating_point() and tensor.isnan().any():
            raise ValueError(f"expected numbers, found NaN in {path}: go back to the last good checkpoint")
    if example.dtype != torch.float32 or example.device.type != "cpu" or example.dim() not in (2, 4):
        found = f"{tuple(example.shape)} of {example.dtype} on {example.device}"
        raise ValueError(f"expected a float32 example input (N, C, H, W) or (N, C) on the CPU, found {found}")


def _export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    two = example.new_zeros(2, *example.shape[1:])  # a batch of one would be taken for a constant
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            return torch.export.export(model, (two,), dynamic_shapes=({0: batch},), strict=False).run_decompositions({})
    except Exception as error:
        raise ValueError(f"torch.export can't follow this model with an open batch size: {error}") from error


def _ends(exported: torch.export.ExportedProgram) -> tuple[fx.Node, fx.Node]:
    """The nodes of the input and of the result."""
    signature, results = exported.graph_signature, exported.graph.output_node().args[0]
    if len(signature.user_inputs) != 1 or len(results) != 1 or not isinstance(results[0], fx.Node):
        raise ValueError(f"expected one tensor in and one out, found {len(signature.user_inputs)} and {len(results)}")
    if signature.buffers_to_mutate:
        raise ValueError(f"the model changes its buffers: {', '.join(signature.buffers_to_mutate.values())}")
    source: fx.Node = next(node for node in exported.graph.nodes if node.name == signature.user_inputs[0])
    result = results[0].meta["val"]
    if not isinstance(result, Tensor) or result.dim() == 0 or str(result.shape[0]) != str(source.meta["val"].shape[0]):
        raise ValueError("expected a result whose first dimension is the batch")
    return source, results[0]


def _constants(exported: torch.export.ExportedProgram, source: fx.Node, layers: dict[str, LowRankSparse]) -> Exported:
    """What the nodes refer to; nodes that don't depend on the input are computed here."""
    signature = exported.graph_signature
    names = signature.inputs_to_parameters | signature.inputs_to_buffers | signature.inputs_to_lifted_tensor_constants
    stored = exported.state_dict | exported.constants
    model = Exported(source.meta["val"].shape[0], {}, {}, {})
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            path = names[node.name]
            model.constants[node], model.names[node] = stored[path].detach(), path.removesuffix(".weight")
            if path.endswith(".weight") and path.removesuffix(".weight") in layers:
                model.layers[node] = layers[path.removesuffix(".weight")]
        elif _computes_tensor(node) and all(argument in model.constants for argument in node.all_input_nodes):
            arguments = fx.map_arg((node.args, node.kwargs), model.constants.__getitem__)
            model.constants[node] = node.target(*arguments[0], **arguments[1])
    return model


def _computes_tensor(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.meta.get("val"), Tensor)


def _needed(exported: torch.export.ExportedProgram, model: Exported, result: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes between the input and the result that compute tensors, in order."""
    wanted, nodes = {result}, []
    for node in reversed(exported.graph.nodes):
        if node in wanted and node.op == "call_function" and node not in model.constants:
            wanted.update(node.all_input_nodes)
            if isinstance(node.meta["val"], Tensor | list | tuple):
                nodes.append(node)
    return tuple(reversed(nodes))


def _lower(nodes: tuple[fx.Node, ...], model: Exported) -> tuple[dict[fx.Node, Lowered], dict[fx.Node, str]]:
    """The operations of each node, and the reasons for those that have none."""
    lowered, reasons = {}, {}
    for node in nodes:
        try:
            lowered[node] = lower(node, model)
        except Unsupported as reason:
            reasons[node] = str(reason)
    return lowered, reasons


def _pieces(
    nodes: tuple[fx.Node, ...], source: fx.Node, result: fx.Node, model: Exported, reasons: dict[fx.Node, str]
) -> list[Piece]:
    """Cuts the nodes wherever a single tensor of images or of vectors is alive."""
    last_use = {argument: index for index, node in enumerate(nodes) for argument in node.all_input_nodes}
    last_use[result] = len(nodes)
    if not nodes:
        return [Piece((), source, result, {"*": "it computes nothing"})]
    pieces, start, value, alive = [], 0, source, {source}
    for index, node in enumerate(nodes):
        alive = {other for other in alive | {node} if last_use.get(other, -1) > index}
        if len(alive) > 1:
            continue
        (only,) = alive
        if index == len(nodes) - 1 or _is_boundary(only, model):
            piece = nodes[start : index + 1]
            why = {f"{other.target} ({module_name(other)})": reasons[other] for other in piece if other in reasons}
            pieces.append(Piece(piece, value, only, why))
            start, value = index + 1, only
    return pieces


def _is_boundary(node: fx.Node, model: Exported) -> bool:
    try:
        model.shape(node)
    except Unsupported:
        return False
    return node.meta["val"].dim() in (2, 4)


def _joined(pieces: list[Piece], lowered: dict[fx.Node, Lowered]) -> list[Piece]:
    """Joins neighbours of one kind; a program needs a convolution to be worth the way out of torch and back."""

    def join(pieces: list[Piece]) -> list[Piece]:
        runs = [list(run) for _, run in groupby(pieces, key=lambda piece: bool(piece.reasons))]
        return [
            Piece(
                tuple(node for piece in run for node in piece.nodes),
                run[0].input,
                run[-1].output,
                {operator: why for piece in run for operator, why in piece.reasons.items()},
            )
            for run in runs
        ]

    def has_convolution(piece: Piece) -> bool:
        return any(isinstance(op, Conv) for node in piece.nodes for op in lowered[node].ops)

    pieces = join(pieces)
    if len(pieces) == 1 and any(lowered[node].ops for node in pieces[0].nodes if node in lowered):
        return pieces
    return join(
        [
            piece if piece.reasons or has_convolution(piece) else replace(piece, reasons={"*": "no convolution in it"})
            for piece in pieces
        ]
    )


def _program(piece: Piece, lowered: dict[fx.Node, Lowered], model: Exported) -> Program:
    draft: fuse.Draft = {}
    values = {piece.input: 0}
    for node in piece.nodes:
        inputs = tuple(values[source] for source in lowered[node].sources)
        for op in lowered[node].ops:
            value = len(draft) + 1
            draft[value] = replace(op, inputs=inputs)
            inputs = (value,)
        values[node] = inputs[0]
    flat = [node.meta["val"].dim() == 2 for node in (piece.input, piece.output)]
    return fuse.program(draft, values[piece.output], model.shape(piece.input), *flat)
