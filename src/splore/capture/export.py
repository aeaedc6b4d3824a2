"""From a PyTorch model to the segments that the engine runs one after another.

`torch.export` gives the model as a graph of ATen operators, with the batch dimension left open. Decomposed layers are
exported as the dense layers that compute the same, and known again by the names of their weights. What becomes a
program, and what stays in torch, is up to `splore.capture.partition`.
"""

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from splore.capture import fuse
from splore.capture.lowering import Builder, Exported, Unsupported, arguments, lower, module_name
from splore.capture.partition import Piece, partition, tells_batch
from splore.capture.torch_segment import TorchSegment
from splore.design.attention import close_attentions
from splore.design.layers import LowRankSparse
from splore.engine.flow import Flow, Packed, only
from splore.engine.program import Conv, Program
from splore.engine.tensor_ops import MatMul

FILLED = (torch.ops.aten.new_zeros.default, torch.ops.aten.new_ones.default, torch.ops.aten.new_full.default)


@dataclass(frozen=True)
class Captured:
    """The segments of a model and what passes between them, the shapes of one image (of each input, where there are
    several) and of the results, as the model gives them, and the dense model that computes the same.

    Several inputs of a model that is one program come to it `packed`, one after another in a vector.
    """

    segments: tuple[Program | TorchSegment, ...]
    flow: Flow
    input: tuple[Any, ...]
    output: Any
    dense: nn.Module
    packed: bool = False


@dataclass(frozen=True)
class OutputStructure:
    """What the model makes of its results: `leaves` holds what is no tensor, and None in the place of a tensor."""

    spec: pytree.TreeSpec
    leaves: tuple[object, ...]
    tensors: tuple[bool, ...]

    def __call__(self, results: list) -> Any:  # noqa: ANN401
        left = iter(results)
        leaves = [next(left) if is_tensor else leaf for leaf, is_tensor in zip(self.leaves, self.tensors, strict=True)]
        return pytree.tree_unflatten(leaves, self.spec)


def capture(model: nn.Module, example_input: Tensor | Sequence[Tensor]) -> Captured:
    """Captures a model in eval mode, on the CPU and in float32, for inputs like the example (N, C, H, W) or (N, ...),
    or like several examples, the arguments of its forward pass.

    The model may give one tensor, or a tuple, list or dict of tensors. The batch size stays open, and the model is left
    as it is. Raises ValueError where it is not such a model, where it draws random numbers, or where `torch.export`
    can't follow its forward pass.
    """
    examples = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    _expect_model(model, examples)
    dense, layers = densified(model)
    exported = _export(dense, examples)
    sources, results = _ends(exported)
    _expect_no_chance(exported)
    graph = _constants(exported, sources[0], layers)
    for node in results:
        _expect_result(node, graph)
    nodes = _needed(exported, graph, results)
    heavy, reasons = _lower(nodes, sources, graph)
    structure = _structure(exported)
    inputs, shapes = ([_dims(node) for node in each] for each in (sources, results))
    input = tuple(inputs) if len(sources) > 1 else inputs[0]
    several = len(sources) > 1 or len(results) > 1
    program = _packed_program(nodes, sources, results, graph) if several and nodes and not reasons else None
    if program is not None:
        packed = Packed(tuple(shapes), structure)
        return Captured((program,), Flow.chain(1, packed), input, structure(shapes), dense, len(sources) > 1)
    pieces = partition(nodes, sources[0], results, graph, heavy, reasons)
    segments = tuple(TorchSegment.of(piece, graph) if piece.reasons else _segment(piece, graph) for piece in pieces)
    return Captured(segments, _flow(pieces, sources, results, structure), input, structure(shapes), dense)


def densified(model: nn.Module) -> tuple[nn.Module, dict[str, LowRankSparse]]:
    """A copy of the model with dense layers for the decomposed ones, and copies of those by every name that they have.

    No memory is shared with the model: what is made of the copy stays what it is, whatever becomes of the model.
    """
    model = copy.deepcopy(model)
    modules = model.named_modules(remove_duplicate=False)
    layers = {path: module for path, module in modules if isinstance(module, LowRankSparse)}
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    stand_ins = {id(layer): layer.to_dense().requires_grad_(False) for layer in set(layers.values())}
    dense = copy.deepcopy(model, shared | stand_ins)
    close_attentions(dense)
    return dense, layers


def _dims(node: fx.Node) -> tuple[int, ...]:
    """The shape of a tensor of one image."""
    return tuple(node.meta["val"].shape[1:])


def _expect_model(model: nn.Module, examples: Sequence[Tensor]) -> None:
    if model.training:
        raise ValueError("expected a model in eval mode: call model.eval() first")
    for path, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.device.type != "cpu":
            raise ValueError(f"expected a model on the CPU, found {path} on {tensor.device}: call model.cpu() first")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(f"expected a float32 model, found {path} of {tensor.dtype}: call model.float() first")
        if tensor.is_floating_point() and tensor.isnan().any():
            raise ValueError(f"expected numbers, found NaN in {path}: go back to the last good checkpoint")
    for example in examples:
        if example.dtype != torch.float32 or example.device.type != "cpu" or not 2 <= example.dim() <= 5:
            found = f"{tuple(example.shape)} of {example.dtype} on {example.device}"
            raise ValueError(f"expected a float32 example input (N, C, H, W) or (N, ...) on the CPU, found {found}")
    if len({len(example) for example in examples}) != 1:
        found = ", ".join(str(tuple(example.shape)) for example in examples)
        raise ValueError(f"expected example inputs of one batch size, at least one, found {found or 'none'}")


def _export(model: nn.Module, examples: Sequence[Tensor]) -> torch.export.ExportedProgram:
    twos = tuple(each.new_zeros(2, *each.shape[1:]) for each in examples)  # one would be taken for a constant
    shapes = ({0: torch.export.Dim("batch", min=1)},) * len(twos)
    try:
        with torch.no_grad():
            return torch.export.export(model, twos, dynamic_shapes=shapes, strict=False).run_decompositions({})
    except Exception as error:
        raise ValueError(f"torch.export can't follow this model with an open batch size: {error}") from error


def _ends(exported: torch.export.ExportedProgram) -> tuple[list[fx.Node], list[fx.Node]]:
    """The nodes of the inputs and of the results."""
    signature = exported.graph_signature
    results = [node for node in exported.graph.output_node().args[0] if isinstance(node, fx.Node)]
    if not signature.user_inputs or not results:
        raise ValueError(f"expected tensors in and out, found {len(signature.user_inputs)} and {len(results)}")
    if signature.buffers_to_mutate:
        raise ValueError(f"the model changes its buffers: {', '.join(signature.buffers_to_mutate.values())}")
    named = {node.name: node for node in exported.graph.nodes}
    return [named[str(name)] for name in signature.user_inputs], results


def _expect_result(node: fx.Node, model: Exported) -> None:
    if node in model.constants or not tells_batch(node, model):
        raise ValueError(f"expected results whose first dimension is the batch, found {node.name}")


def _structure(exported: torch.export.ExportedProgram) -> Callable[[list], Any]:
    spec, leaves = exported.call_spec.out_spec, exported.graph.output_node().args[0]
    if spec.is_leaf():
        return only
    tensors = tuple(isinstance(leaf, fx.Node) for leaf in leaves)
    constants = tuple(None if tensor else leaf for leaf, tensor in zip(leaves, tensors, strict=True))
    return OutputStructure(spec, constants, tensors)


def _flow(
    pieces: list[Piece], sources: list[fx.Node], results: list[fx.Node], structure: Callable[[list], Any]
) -> Flow:
    number = {source: index for index, source in enumerate(sources)}
    for piece in pieces:
        for output in piece.outputs:
            number.setdefault(output, len(number))
    return Flow(
        tuple(tuple(number[value] for value in piece.inputs) for piece in pieces),
        tuple(number[result] for result in results),
        structure,
        len(sources),
    )


def _expect_no_chance(exported: torch.export.ExportedProgram) -> None:
    """Random numbers would be frozen where nothing depends on the input, and differ from call to call elsewhere."""
    for node in exported.graph.nodes:
        if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            continue
        names = [argument.name for argument in node.target._schema.arguments]
        given = dict(zip(names, arguments(node), strict=True))
        # Dropout that is off, and attention without it.
        if given.get("train", given.get("training", True)) and given.get("dropout_p", 1) and given.get("p", 1):
            raise ValueError(
                f"the model draws random numbers ({node.target} in {module_name(node)}), and an engine gives one "
                "result for an input: draw them outside of the model, or turn them off in eval mode"
            )


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
        elif node.target in FILLED and all(isinstance(size, int) for size in node.args[1]):
            model.constants[node] = node.target(torch.empty(0), *node.args[1:])  # it takes no more than a type
        elif _computes_tensors(node) and all(argument in model.constants for argument in node.all_input_nodes):
            arguments = fx.map_arg((node.args, node.kwargs), model.constants.__getitem__)
            model.constants[node] = node.target(*arguments[0], **arguments[1])
    return model


def _computes_tensors(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.meta.get("val"), Tensor | list | tuple)


def _needed(exported: torch.export.ExportedProgram, model: Exported, results: list[fx.Node]) -> tuple[fx.Node, ...]:
    """The nodes between the input and the results that compute tensors, in order."""
    wanted, nodes = set(results), []
    for node in reversed(exported.graph.nodes):
        if node in wanted and node.op == "call_function" and node not in model.constants:
            wanted.update(node.all_input_nodes)
            if _computes_tensors(node):
                nodes.append(node)
    return tuple(reversed(nodes))


def _lower(
    nodes: tuple[fx.Node, ...], sources: list[fx.Node], model: Exported
) -> tuple[set[fx.Node], dict[fx.Node, str]]:
    """The nodes that are worth a program of their own, and the reasons for those that can't be in one."""
    build, heavy, reasons = Builder(model), set(), {}
    for node in (*sources, *nodes):
        before = len(build.shapes)
        try:
            if node in sources:
                build.read(node)
                continue
            lower(node, build)
        except Unsupported as reason:
            reasons[node] = str(reason)
            with contextlib.suppress(Unsupported):  # what reads it may be known
                build.read(node)
        if any(isinstance(op, Conv | MatMul) for value, op in build.draft.items() if value >= before):
            heavy.add(node)
    return heavy, reasons


def _segment(piece: Piece, model: Exported) -> Program | TorchSegment:
    try:
        return _program(piece, model)
    except Unsupported as reason:  # of the whole, though each node is known
        return TorchSegment.of(replace(piece, reasons={"*": str(reason)}), model)


def _program(piece: Piece, model: Exported) -> Program:
    ((source,), (result,)) = (piece.inputs, piece.outputs)
    build = Builder(model)
    build.read(source)
    for node in piece.nodes:
        lower(node, build)
    value = build.finish(result)
    return fuse.program(build.draft, value, build.shapes[0], _dims(source), _dims(result))


def _packed_program(
    nodes: tuple[fx.Node, ...], sources: list[fx.Node], results: list[fx.Node], model: Exported
) -> Program | None:
    """The whole model as one program, its inputs and its results one after another in a vector each; None where the
    engine can't express it."""
    build = Builder(model)
    try:
        if len(sources) > 1:
            build.read_packed(sources)
        else:
            build.read(sources[0])
        for node in nodes:
            lower(node, build)
        value = build.finish(results[0]) if len(results) == 1 else build.packed(results)
        given = _dims(sources[0]) if len(sources) == 1 else build.shapes[0][:1]
        gets = _dims(results[0]) if len(results) == 1 else build.shapes[value][:1]
        return fuse.program(build.draft, value, build.shapes[0], given, gets)
    except (Unsupported, ValueError):
        return None
