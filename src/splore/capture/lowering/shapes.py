"""Operators that move numbers and compute none: reshapes, slices, padding, joining and splitting channels."""

import operator
from collections.abc import Callable, Iterable

import torch
from torch import fx

from splore.capture.fuse import Pad, Select
from splore.capture.lowering.exported import Exported, Lowered, Unsupported, arguments, dims, module_name
from splore.engine.program import Concat, Flatten

aten = torch.ops.aten
ALL = 2**62  # an end of a slice beyond every size


def _reshape(node: fx.Node, model: Exported, x: fx.Node, *_: object) -> Lowered:
    before, after = model.shape(x), model.shape(node)
    if before == after:
        return Lowered((x,))
    if after != (before[0] * before[1] * before[2], 1, 1):
        raise Unsupported(f"a reshape of {before} to {after}")
    return Lowered((x,), (Flatten(module_name(node), ()),))


def _slice(
    node: fx.Node, model: Exported, x: fx.Node, axis: int, start: int | None, end: int | None, step: int
) -> Lowered:
    start, end = start or 0, ALL if end is None else end
    if not isinstance(start, int) or not isinstance(end, int):
        raise Unsupported("a slice that depends on the batch")
    if start == 0 and end >= ALL and step == 1:
        return Lowered((x,))
    if axis == 0 or dims(x) != 4:
        raise Unsupported(f"a slice of dimension {axis} of {dims(x)}")
    c, height, width = model.shape(x)
    if axis == 1:
        return _channels(node, x, c, range(c)[start:end:step])
    size = (height, width)[axis - 2]
    if range(size)[start:end:step] != range(0, size, step):
        raise Unsupported("a slice that cuts a border off")
    stride = (step, 1) if axis == 2 else (1, step)
    return Lowered((x,), (Select(module_name(node), (), c, tuple(range(c)), stride),))


def _pad(
    node: fx.Node, model: Exported, x: fx.Node, pad: list[int], mode: str = "constant", value: float | None = None
) -> Lowered:
    numbers = all(isinstance(side, int) and side >= 0 for side in pad)
    if mode != "constant" or value not in (None, 0) or not numbers or dims(x) != 4 or len(pad) > 6:
        raise Unsupported(f"padding by {list(pad)} in mode {mode} with {value or 0}")
    left, right, top, bottom, before, after = (*pad, 0, 0, 0, 0)[:6]
    c = model.shape(x)[0]
    ops: list[Select | Pad] = []
    if before or after:
        ops.append(Select(module_name(node), (), c, (-1,) * before + tuple(range(c)) + (-1,) * after))
    if left or right or top or bottom:
        ops.append(Pad(module_name(node), (), c + before + after, (top, left, bottom, right)))
    return Lowered((x,), tuple(ops))


def _constant_pad(node: fx.Node, model: Exported, x: fx.Node, pad: list[int], value: float) -> Lowered:
    return _pad(node, model, x, pad, "constant", value)


def _join(node: fx.Node, model: Exported, parts: list[fx.Node], axis: int) -> Lowered:
    if axis % dims(node) != 1 or any(dims(part) != dims(node) for part in parts):
        raise Unsupported(f"it joins along dimension {axis}")
    return Lowered(tuple(parts), (Concat(module_name(node), ()),))


def _split(node: fx.Node, model: Exported, x: fx.Node, sizes: list[int] | int, axis: int) -> Lowered:
    if axis not in (1, 1 - dims(x)):
        raise Unsupported(f"it splits along dimension {axis}")
    return Lowered((x,))  # `_part` says which channels


def _part(node: fx.Node, model: Exported, source: fx.Node, index: int) -> Lowered:
    """One result of an operator that has several."""
    if source.target is aten._native_batch_norm_legit_no_training.default and index == 0:
        return Lowered((source,))
    if source.target not in (aten.split.Tensor, aten.split_with_sizes.default):
        raise Unsupported(f"result {index} of {source.target}")
    ends = [0]
    for part in source.meta["val"]:
        ends.append(ends[-1] + part.shape[1])
    return _channels(node, source, model.shape(arguments(source)[0])[0], range(ends[index], ends[index + 1]))


def _channels(node: fx.Node, x: fx.Node, channels: int, source: Iterable[int]) -> Lowered:
    return Lowered((x,), (Select(module_name(node), (), channels, tuple(source)),))


LOWERINGS: dict[object, Callable[..., Lowered]] = {
    aten.view.default: _reshape,
    aten.reshape.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.flatten.using_ints: _reshape,
    aten.squeeze.default: _reshape,
    aten.squeeze.dim: _reshape,
    aten.squeeze.dims: _reshape,
    aten.unsqueeze.default: _reshape,
    aten.slice.Tensor: _slice,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _constant_pad,
    aten.cat.default: _join,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    operator.getitem: _part,
}
