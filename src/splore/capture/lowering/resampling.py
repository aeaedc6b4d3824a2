"""Operators that take each row and column from a few others: upsampling, pools that don't divide, rolls, and padding by
what is there."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx

from splore.capture.lowering.builder import Builder, dims_of
from splore.capture.lowering.convolutions import images, mapped, sides
from splore.capture.lowering.exported import Argument, Unsupported, pair
from splore.capture.views import View, placed
from splore.engine.program import Pool
from splore.engine.tensor_ops import Factor, Resample
from splore.engine.weight import Floats, Indices

aten = torch.ops.aten
Taps = tuple[Indices, Floats]


def taps(matrix: Floats) -> Taps:
    """The places and the weights of what is not zero in each row of a matrix (outputs, inputs)."""
    most = max(1, int((matrix != 0).sum(1).max()))
    places = np.argsort(matrix == 0, axis=1, kind="stable")[:, :most]
    weights = np.take_along_axis(matrix, places, 1)
    places = np.where(weights != 0, places, places[:, :1])  # nothing is read that has no weight
    return places.astype(np.uint32), np.ascontiguousarray(weights, np.float32)


def picked(places: NDArray) -> Taps:
    """One place for each output."""
    return np.asarray(places, np.uint32)[:, None], np.ones((len(places), 1), np.float32)


def resampled(build: Builder, value: int, rows: Taps, columns: Taps) -> int:
    return build.add(Resample("", (), *rows, *columns), value)


def _separable(function: Callable[[Tensor, int], Tensor], height: int, width: int) -> tuple[Taps, Taps]:
    """The taps of an operator that works on rows and on columns by themselves: `function` is given the unit matrix
    along each axis, and its number."""
    rows = function(torch.eye(height).reshape(1, height, height, 1), 0)[0, :, :, 0]
    columns = function(torch.eye(width).reshape(1, width, 1, width), 1)[0, :, 0]
    return taps(rows.T.contiguous().numpy()), taps(columns.T.contiguous().numpy())


def _upsample(target: Callable[..., Tensor], takes_corners: bool) -> Callable[..., View]:
    def lowering(build: Builder, x: fx.Node, size: list[int] | None, *more: Argument) -> View:
        view = images(build, x, lines=False)
        corners = more[:1] if takes_corners else ()
        scales: list[float] | None = more[-1]
        if size is not None and not all(isinstance(side, int) for side in size):
            raise Unsupported("a size that depends on the batch")

        def one(matrix: Tensor, axis: int) -> Tensor:
            shape = None if size is None else [side if each == axis else 1 for each, side in enumerate(size)]
            factors = None if scales is None else [s if each == axis else 1.0 for each, s in enumerate(scales)]
            return target(matrix, shape, *corners, factors)

        _, height, width = build.shape(view)
        return mapped(build, view, resampled(build, view.value, *_separable(one, height, width)))

    return lowering


def _adaptive_avg_pool(build: Builder, x: fx.Node, size: list[int] | int) -> View:
    view = images(build, x)
    (_, height, width), (rows, columns) = build.shape(view), sides(size, view)
    if (rows, columns) == (height, width):
        return view
    if height % rows == 0 and width % columns == 0:
        window = (height // rows, width // columns)
        return mapped(build, view, build.add(Pool("", (), "avg", window, window), view.value))

    def one(matrix: Tensor, axis: int) -> Tensor:
        return F.adaptive_avg_pool2d(matrix, (rows, 1) if axis == 0 else (1, columns))

    return mapped(build, view, resampled(build, view.value, *_separable(one, height, width)))


def _adaptive_max_pool(build: Builder, x: fx.Node, size: list[int] | int) -> list[View]:
    view = images(build, x)
    (_, height, width), (rows, columns) = build.shape(view), pair(size)
    if height % rows or width % columns:
        raise Unsupported(f"a maximum of {height} x {width} to {rows} x {columns}, which does not divide")
    window = (height // rows, width // columns)
    return [mapped(build, view, build.add(Pool("", (), "max", window, window), view.value))]


def _along(build: Builder, view: View, dims: list[int]) -> tuple[View, list[int]]:
    """The tensor where these dimensions, at most two, are the rows and the columns of its value, and which they are."""
    if len(dims) > 2 or view.batch in dims:
        raise Unsupported("a change along more than two dimensions, or the batch")
    shape, axes = build.shape(view), []
    for dim in dims:
        factors = view.dims[dim]
        mine = factors[0].axis if len(factors) == 1 else 0
        axes.append(mine if mine and factors == (Factor(mine, shape[mine], 1),) else 0)
    if view.covers(shape) and all(axes) and len(set(axes)) == len(axes):
        return view, axes
    others = [dim for dim in range(len(view.dims)) if dim not in dims]
    return build.arranged(view, others, dims[:-1], dims[-1:]), [2] if len(dims) == 1 else [1, 2]


def _taken(build: Builder, view: View, places: Mapping[int, NDArray]) -> View:
    """The tensor with other places of some dimensions."""
    dims = sorted(places)
    view, axes = _along(build, view, dims)
    chosen: dict[int, Taps] = {axis: picked(np.arange(build.shape(view)[axis])) for axis in (1, 2)}
    chosen |= {axis: picked(places[dim]) for dim, axis in zip(dims, axes, strict=True)}
    value = resampled(build, view.value, chosen[1], chosen[2])
    each = list(view.dims)
    for dim, axis in zip(dims, axes, strict=True):
        each[dim] = placed((len(places[dim]),), 0, 0, *([0] if each == axis else [] for each in range(3))).dims[0]
    return replace(view, value=value, dims=tuple(each))


def _roll(build: Builder, x: fx.Node, shifts: list[int], dims: list[int]) -> View:
    view = build.view(x)
    if len(shifts) != len(dims):
        raise Unsupported("a roll of all dimensions as one")
    places = {}
    for dim, shift in zip((dim % len(view.dims) for dim in dims), shifts, strict=True):
        if shift:
            places[dim] = (np.arange(view.sizes[dim]) - shift) % view.sizes[dim]
    return _taken(build, view, places) if places else view


def _flip(build: Builder, x: fx.Node, dims: list[int]) -> View:
    view = build.view(x)
    return _taken(build, view, {dim: np.arange(view.sizes[dim])[::-1] for dim in dims_of(dims, len(view.dims))})


def wrapped(build: Builder, view: View, around: Mapping[int, tuple[int, int]], mode: str) -> View:
    """Padding by what is there: reflected, repeated at the border, or from the other side."""
    modes = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    if mode not in modes:
        raise Unsupported(f"padding in mode {mode}")
    places = {dim: np.pad(np.arange(view.sizes[dim]), sides, mode=modes[mode]) for dim, sides in around.items()}  # type: ignore[call-overload]
    return _taken(build, view, places)


LOWERINGS: dict[object, Callable[..., View | list[View]]] = {
    aten.upsample_nearest2d.vec: _upsample(aten.upsample_nearest2d.vec, False),
    aten._upsample_nearest_exact2d.vec: _upsample(aten._upsample_nearest_exact2d.vec, False),
    aten.upsample_bilinear2d.vec: _upsample(aten.upsample_bilinear2d.vec, True),
    aten._upsample_bilinear2d_aa.vec: _upsample(aten._upsample_bilinear2d_aa.vec, True),
    aten.upsample_bicubic2d.vec: _upsample(aten.upsample_bicubic2d.vec, True),
    aten._upsample_bicubic2d_aa.vec: _upsample(aten._upsample_bicubic2d_aa.vec, True),
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
    aten.adaptive_avg_pool1d.default: _adaptive_avg_pool,
    aten.adaptive_max_pool2d.default: _adaptive_max_pool,
    aten.roll.default: _roll,
    aten.flip.default: _flip,
}
