"""Operators that move numbers and compute none: reshapes, transposes, slices, padding, joining and splitting."""

import operator
from collections.abc import Callable
from math import prod

import torch
from torch import fx

from splore.capture.fuse import Pad, Select
from splore.capture.lowering.builder import Builder
from splore.capture.lowering.exported import Unsupported
from splore.capture.lowering.resampling import wrapped
from splore.capture.views import View, placed
from splore.engine.program import Concat
from splore.engine.weight import Floats

aten = torch.ops.aten
ALL = 2**62  # an end of a slice beyond every size


def _reshape(build: Builder, x: fx.Node, *_: object) -> View:
    return build.reshaped(build.view(x, joined=True), *build.model.sizes(build.node))


def _permute(build: Builder, x: fx.Node, order: list[int]) -> View:
    view = build.view(x)
    return view.permuted([dim % len(view.dims) for dim in order])


def _transpose(build: Builder, x: fx.Node, first: int, second: int) -> View:
    view = build.view(x)
    order = list(range(len(view.dims)))
    order[first], order[second] = order[second], order[first]
    return view.permuted(order)


def _expand(build: Builder, x: fx.Node, *_: object) -> View | None:
    sizes, batch = build.model.sizes(build.node)
    constant = build.constant(x)
    if constant is not None:  # for each image of the batch the same
        build.constants[build.node] = torch.from_numpy(constant).expand(sizes)
        return None
    view = build.view(x)
    while len(view.dims) < len(sizes):
        view = view.inserted(0)
    if view.batch != batch:
        raise Unsupported("copies of the batch")
    return view.expanded(sizes)


def _slice(build: Builder, x: fx.Node, dim: int, start: int | None, end: int | None, step: int) -> View:
    view = build.view(x)
    dim %= len(view.dims)
    start, end = start or 0, ALL if end is None else end
    if not isinstance(start, int) or not isinstance(end, int):
        raise Unsupported("a slice that depends on the batch")
    if start == 0 and end >= ALL and step == 1:
        return view
    places = range(view.sizes[dim])[start:end:step]
    return part(build, view, dim, places.start, len(places), step)


def part(build: Builder, view: View, dim: int, start: int, count: int, step: int = 1) -> View:
    """Some places of a dimension."""
    if dim == view.batch:
        raise Unsupported("a part of the batch")
    found = view.sliced(dim, start, step, count) or build.flat(view).sliced(dim, start, step, count)
    if found is None or not count:
        raise Unsupported(f"a slice of {view.sizes}")
    return found


def _select(build: Builder, x: fx.Node, dim: int, index: int) -> View:
    view = build.view(x)
    dim %= len(view.dims)
    return part(build, view, dim, index % view.sizes[dim], 1).removed(dim)


def _split(build: Builder, x: fx.Node, sizes: list[int] | int, dim: int = 0) -> list[View]:
    view, found, start = build.view(x), [], 0
    dim %= len(view.dims)
    if not all(isinstance(size, int) for size in (sizes if isinstance(sizes, list) else [sizes])):
        raise Unsupported("parts that depend on the batch")
    total = view.sizes[dim]
    counts = sizes if isinstance(sizes, list) else [min(sizes, total - at) for at in range(0, total, sizes)]
    for count in counts:
        found.append(part(build, view, dim, start, count))
        start += count
    return found


def _unbind(build: Builder, x: fx.Node, dim: int = 0) -> list[View]:
    count = build.view(x).sizes[dim]
    return [_select(build, x, dim, index) for index in range(count)]


def _getitem(build: Builder, source: fx.Node, index: int) -> View:
    """One result of an operator that has several."""
    found = build.views.get(source)
    if not isinstance(found, list) or not -len(found) <= index < len(found):
        raise Unsupported(f"result {index} of {source.target}")
    return found[index]


def _cat(build: Builder, parts: list[fx.Node], dim: int = 0) -> View:
    return joined(build, parts, [build.constant(part) for part in parts], dim, stacked=False)


def _stack(build: Builder, parts: list[fx.Node], dim: int = 0) -> View:
    return joined(build, parts, [build.constant(part) for part in parts], dim, stacked=True)


def joined(build: Builder, parts: list[fx.Node], constants: list[Floats | None], dim: int, stacked: bool) -> View:
    """Several tensors after one another along a dimension, which becomes the channels of a value."""
    sizes, batch = build.model.sizes(build.node)
    dim %= len(sizes)
    others = [each for each in range(len(sizes)) if each != dim and sizes[each] > 1]
    axes = ((dim,), others[:-1], others[-1:])
    if dim == batch:
        raise Unsupported("it joins along the batch")
    values = []
    for node, constant in zip(parts, constants, strict=True):
        if constant is not None:
            size = 1 if stacked else constant.shape[dim]
            own = (*sizes[:dim], size, *sizes[dim + 1 :])
            height, width = (prod(own[each] for each in dims) for dims in axes[1:])
            tensor = constant[(slice(None),) * dim + (None,)] if stacked else constant
            data = placed(own, batch, 0, *axes).filled((size, height, width), tensor)
            values.append(build.constant_value(data))
            continue
        view = build.view(node)
        view = view.inserted(dim) if stacked else view
        if view.batch != batch:
            raise Unsupported("it joins tensors with the batch in different dimensions")
        values.append(build.arranged(view, *axes).value)
    return placed(sizes, batch, build.add(Concat("", ()), *values), *axes)


def _pad(build: Builder, x: fx.Node, pad: list[int], mode: str = "constant", value: float | None = None) -> View:
    view = build.view(x)
    count = len(view.dims)
    if not all(isinstance(side, int) for side in pad):
        raise Unsupported("padding that depends on the batch")
    around = {count - 1 - i: (pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2) if any(pad[2 * i : 2 * i + 2])}
    for dim, (before, after) in around.items():  # what is cut off first
        size = view.sizes[dim]
        start, end = max(0, -before), size - max(0, -after)
        view = part(build, view, dim, start, end - start) if end - start != size else view
    around = {dim: (max(0, before), max(0, after)) for dim, (before, after) in around.items()}
    around = {dim: sides for dim, sides in around.items() if any(sides)}
    if not around:
        return view
    if view.batch in around:
        raise Unsupported("padding of the batch")
    if mode != "constant":
        return wrapped(build, view, around, mode)
    if value not in (None, 0):
        raise Unsupported(f"padding with {value}")
    return _zeros_around(build, view, around)


def _zeros_around(build: Builder, view: View, around: dict[int, tuple[int, int]]) -> View:
    """Zeros around some dimensions: two of them become rows and columns, one the channels."""
    count = len(view.dims)
    if len(around) > 3:
        raise Unsupported("padding of more than three dimensions")
    inner = sorted(around)[-2:] if count != 4 or 1 not in around else [2, 3]
    if count == 4 and set(around) <= {1, 2, 3}:
        inner = [2, 3]
    outer = [dim for dim in around if dim not in inner]
    others = [dim for dim in range(count) if dim not in inner and dim not in outer]
    axes = ([*others, *outer], inner[:-1], inner[-1:])
    if outer and any(view.sizes[dim] > 1 for dim in others):
        raise Unsupported("padding of three dimensions of four")
    view = build.arranged(view, *axes)
    value, sizes = view.value, list(view.sizes)
    c = build.shapes[value][0]
    for dim in outer:
        before, after = around[dim]
        value = build.add(Select("", (), c, (-1,) * before + tuple(range(c)) + (-1,) * after), value)
    rows, columns = (around.get(dims[0], (0, 0)) if dims else (0, 0) for dims in (inner[:-1], inner[-1:]))
    if any((*rows, *columns)):
        pad = (rows[0], columns[0], rows[1], columns[1])
        value = build.add(Pad("", (), build.shapes[value][0], pad), value)
    for dim, sides in around.items():
        sizes[dim] += sum(sides)
    return placed(tuple(sizes), view.batch, value, *axes)


def _constant_pad(build: Builder, x: fx.Node, pad: list[int], value: float = 0) -> View:
    return _pad(build, x, pad, "constant", value)


def _shuffle(build: Builder, x: fx.Node, factor: int) -> View:
    """(N, C r r, H, W) -> (N, C, H r, W r)."""
    view = build.view(x)
    one, c, height, width = view.sizes
    split = build.reshaped(view, (one, c // factor**2, factor, factor, height, width), 0)
    return build.reshaped(split.permuted((0, 1, 4, 2, 5, 3)), *build.model.sizes(build.node))


def _unshuffle(build: Builder, x: fx.Node, factor: int) -> View:
    """(N, C, H r, W r) -> (N, C r r, H, W)."""
    view = build.view(x)
    one, c, height, width = view.sizes
    split = build.reshaped(view, (one, c, height // factor, factor, width // factor, factor), 0)
    return build.reshaped(split.permuted((0, 1, 3, 5, 2, 4)), *build.model.sizes(build.node))


def _channel_shuffle(build: Builder, x: fx.Node, groups: int) -> View:
    view = build.view(x)
    one, c, *others = view.sizes
    split = build.reshaped(view, (one, groups, c // groups, *others), 0)
    return build.reshaped(split.permuted((0, 2, 1, *range(3, 3 + len(others)))), *build.model.sizes(build.node))


RESHAPES = (
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.squeeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.unflatten.int,
)  # fmt: skip

LOWERINGS: dict[object, Callable[..., View | list[View] | None]] = dict.fromkeys(RESHAPES, _reshape) | {
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.t.default: lambda build, x: _transpose(build, x, 0, 1),
    aten.expand.default: _expand,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.unbind.int: _unbind,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _constant_pad,
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.pixel_shuffle.default: _shuffle,
    aten.pixel_unshuffle.default: _unshuffle,
    aten.channel_shuffle.default: _channel_shuffle,
    operator.getitem: _getitem,
}
