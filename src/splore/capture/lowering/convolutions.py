"""Convolutions, linear layers and pools."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import fx

from splore.capture.lowering.builder import Builder, dims_of
from splore.capture.lowering.exported import Exported, Unsupported, pair
from splore.capture.views import View, placed
from splore.capture.weights import from_dense, from_layer
from splore.engine.program import Affine, Conv, Pair, Pool
from splore.engine.tensor_ops import Factor
from splore.engine.weight import Floats, Scale, Weight

aten = torch.ops.aten
Sizes = list[int] | int


def images(build: Builder, node: object, lines: bool = True) -> View:
    """A tensor (N, C, H, W), or (N, C, L) where `lines`, as the map of a value."""
    view = build.view(node)
    count = len(view.dims)
    if count not in (3, 4) or (count == 3 and not lines) or view.batch or view.sizes[0] != 1:
        raise Unsupported(f"a tensor of {count} dimensions {view.sizes}, where images are expected")
    return build.arranged(view, (0, 1), (2,) if count == 4 else (), (count - 1,))


def mapped(build: Builder, view: View, value: int) -> View:
    """The view of a value that an operation made of the map of `view`."""
    c, height, width = build.shapes[value]
    sizes = (1, c, height, width) if len(view.dims) == 4 else (1, c, width)
    return placed(sizes, 0, value, (0, 1), (2,) if len(sizes) == 4 else (), (len(sizes) - 1,))


def sides(numbers: Sizes, view: View) -> Pair:
    """(rows, columns) of an argument; the tensor of a line has columns only."""
    first, second = pair(numbers)
    return (first, second) if len(view.dims) == 4 else (1, second)


def _convolution(
    build: Builder, x: fx.Node, weight: fx.Node, bias: fx.Node | None, stride: Sizes, padding: Sizes | str,
    dilation: Sizes, groups: int,
) -> View:  # fmt: skip
    view = images(build, x)
    name, matrix, shape = weight_of(weight, build.model, groups)
    kernel, dilations = sides(list(shape[2:]), view), sides(dilation, view)
    if padding == "valid":
        pad = (0, 0, 0, 0)
    elif padding == "same":  # the odd one goes to the bottom and to the right
        rows, columns = (d * (k - 1) for d, k in zip(dilations, kernel, strict=True))
        pad = (rows // 2, columns // 2, rows - rows // 2, columns - columns // 2)
    elif isinstance(padding, str):
        raise Unsupported(f"padding {padding}")
    else:
        pad = pads(padding, view)
    shift = bias_of(bias, build.model, shape[0])
    op = Conv(name, (), matrix, shift, kernel, sides(stride, view), pad, dilations, groups)
    return mapped(build, view, build.add(op, view.value))


def pads(numbers: Sizes, view: View) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of a padding that is the same on both sides."""
    rows, columns = pair(numbers)
    return (rows, columns, rows, columns) if len(view.dims) == 4 else (0, columns, 0, columns)


def _transposed(
    build: Builder, x: fx.Node, weight: fx.Node, bias: fx.Node | None, stride: Sizes, padding: Sizes,
    output_padding: Sizes, groups: int, dilation: Sizes,
) -> View:  # fmt: skip
    """A transposed convolution: a convolution that gives each of the stride's phases as channels of its own, which are
    then shuffled into the places between each other, and the borders cut."""
    view = images(build, x)
    if groups != 1 or sides(dilation, view) != (1, 1):
        raise Unsupported("a transposed convolution in groups, or dilated")
    name, W, shape = transposed_weight(weight, build.model)
    c, n = shape[:2]
    kernel, strides = (W.shape[2], W.shape[3]), sides(stride, view)
    reach = [-(-k // s) for k, s in zip(kernel, strides, strict=True)]  # taps of a phase
    padded = np.zeros((c, n, reach[0] * strides[0], reach[1] * strides[1]), np.float32)
    padded[:, :, : kernel[0], : kernel[1]] = W
    phases = padded.reshape(c, n, reach[0], strides[0], reach[1], strides[1])[:, :, ::-1, :, ::-1]
    matrix = phases.transpose(1, 3, 5, 0, 2, 4).reshape(n * strides[0] * strides[1], -1)
    shift = np.repeat(bias_of(bias, build.model, n), strides[0] * strides[1])
    pad = (reach[0] - 1, reach[1] - 1) * 2
    op = Conv(name, (), from_dense(matrix), shift, (reach[0], reach[1]), pad=pad)
    value = build.add(op, view.value)
    _, height, width = build.shapes[value]
    axes = ((strides[0], strides[1]), (height, width))
    wide = View(value, (
        (), (Factor(0, n, axes[0][0] * axes[0][1]),),
        (Factor(1, height, 1), Factor(0, axes[0][0], axes[0][1])), (Factor(2, width, 1), Factor(0, axes[0][1], 1)),
    ))  # fmt: skip
    starts, extra = sides(padding, view) if len(view.dims) == 4 else (0, pair(padding)[1]), pair(output_padding)
    inputs, ends = build.shape(view)[1:], []
    for axis in range(2):
        more = extra[axis] if len(view.dims) == 4 or axis else 0
        ends.append((inputs[axis] - 1) * strides[axis] - 2 * starts[axis] + kernel[axis] + more)
    found = build.arranged(wide, (0, 1), (2,), (3,))
    found = mapped(build, placed((1, 1, 1, 1), 0, 0, (), (), ()), found.value)
    for axis in range(2):
        found = _cut(build, found, 2 + axis, starts[axis], ends[axis])
    return found if len(view.dims) == 4 else found.removed(2)


def _cut(build: Builder, view: View, dim: int, start: int, size: int) -> View:
    found = view.sliced(dim, start, 1, size) if start + size <= view.sizes[dim] else None
    if found is None:
        raise Unsupported("a transposed convolution whose output reaches beyond its input")
    return found


def transposed_weight(node: fx.Node, model: Exported) -> tuple[str, Floats, tuple[int, ...]]:
    """Name and weight (c, n, kh, kw) of a transposed convolution; composed where it was decomposed."""
    if node in model.layers:
        W = np.ascontiguousarray(model.layers[node].compose().detach().numpy(), np.float32)
    else:
        W = model.array(node)
    W = W[:, :, None] if W.ndim == 3 else W
    return model.names.get(node, node.name), W, W.shape


def _linear(build: Builder, x: fx.Node, weight: fx.Node, bias: fx.Node | None) -> View:
    name, matrix, shape = weight_of(weight, build.model)
    return linear(build, build.view(x, joined=True), name, matrix, bias_of(bias, build.model, shape[0]))


def linear(build: Builder, x: View, name: str, matrix: Weight, bias: Floats) -> View:
    """A linear layer over the last dimension: a 1 x 1 convolution of what else there is as pixels."""
    last = len(x.dims) - 1
    if x.batch == last:
        raise Unsupported("a linear layer over the batch")
    view = build.with_channels(x, (last,))
    value = build.add(Conv(name, (), matrix, bias), view.value)
    channels = (Factor(0, bias.size, 1),) if bias.size > 1 else ()
    return replace(view, value=value, dims=(*view.dims[:-1], channels))


def _matrix(build: Builder, bias: fx.Node | None, x: fx.Node, weight: fx.Node) -> View:
    """x W of a constant W (c, n), as mm and addmm have it."""
    W = build.constant(weight)
    if W is None or W.ndim != 2:
        raise Unsupported("its matrix depends on the input")
    shift = np.zeros(W.shape[1], np.float32) if bias is None else build.constant(bias)
    if shift is None or shift.shape != W.shape[1:]:
        raise Unsupported("its bias is no vector")
    return linear(build, build.view(x), "", from_dense(np.ascontiguousarray(W.T)), shift)


def weight_of(node: fx.Node, model: Exported, groups: int = 1) -> tuple[str, Weight, tuple[int, ...]]:
    """Name, weight and shape of the weight of a convolution or a linear layer."""
    if node in model.layers:
        layer = model.layers[node]
        return model.names[node], from_layer(layer, groups), layer.weight_shape
    weight = model.array(node)
    return model.names.get(node, node.name), from_dense(weight.reshape(len(weight), -1), groups), weight.shape


def bias_of(node: fx.Node | None, model: Exported, n: int) -> Floats:
    return np.zeros(n, np.float32) if node is None else model.array(node)


def _max_pool(
    build: Builder, x: fx.Node, kernel: Sizes, stride: Sizes, pad: Sizes, dilation: Sizes, ceil: bool
) -> View:
    if pair(dilation) != (1, 1):
        raise Unsupported("a dilated pooling window")
    return _pool("max", build, x, kernel, stride, pad, ceil, False)


def _avg_pool(
    build: Builder, x: fx.Node, kernel: Sizes, stride: Sizes, padding: Sizes, ceil_mode: bool, count_pad: bool,
    divisor: int | None = None,
) -> View:  # fmt: skip
    if divisor is not None:
        raise Unsupported("a mean with a divisor of its own")
    return _pool("avg", build, x, kernel, stride, padding, ceil_mode, count_pad)


def _pool(
    mode: str, build: Builder, x: fx.Node, kernel: Sizes, stride: Sizes, padding: Sizes, ceil: bool, count_pad: bool
) -> View:
    view = images(build, x)
    window, strides = sides(kernel, view), sides(stride or kernel, view)  # without a stride it moves on by its side
    around = pads(padding, view)[:2]
    extra = [0, 0]  # how far the last window of ceil_mode reaches beyond the padding
    for axis, size in enumerate(build.shape(view)[1:]):
        k, s, p = window[axis], strides[axis], around[axis]
        if ceil:
            start = -(-(size + 2 * p - k) // s) * s
            start -= s if start >= size + p else 0  # a window has to start within the image or before it
            extra[axis] = max(0, start + k - size - 2 * p)
    if count_pad and any(around) and any(extra):
        raise Unsupported("a mean that counts padding, with ceil_mode")
    pad = (*around, around[0] + extra[0], around[1] + extra[1])
    counted = bool(count_pad and any(around))
    return mapped(build, view, build.add(Pool("", (), mode, window, strides, pad, counted), view.value))


def _reduced(mode: str, sums: bool = False) -> Callable[..., View]:
    """The mean, the maximum or the sum over some dimensions: a pool over all pixels, which these are made."""

    def lowering(build: Builder, x: fx.Node, axes: list[int] | None = None, keep: bool = False, *_: object) -> View:
        view = build.view(x)
        over = dims_of(axes, len(view.dims))
        return reduced(build, view, over, keep, mode, sums)

    return lowering


def reduced(build: Builder, view: View, over: list[int], keep: bool, mode: str, sums: bool = False) -> View:
    """A view without some dimensions, or with ones in their places."""
    if view.batch in over:
        raise Unsupported("a reduction over the batch")
    kept = [dim for dim in range(len(view.dims)) if dim not in over]
    view = build.with_channels(view, kept)
    c, height, width = build.shape(view)
    value = build.add(Pool("", (), mode, (height, width), (height, width)), view.value)
    if sums:
        factor = np.full(c, height * width, np.float32)
        value = build.add(Affine("", (), Scale(factor, np.zeros(c, np.float32))), value)
    found = placed(view.sizes, view.batch, value, kept, (), ())
    found = View(value, tuple(() if dim in over else each for dim, each in enumerate(found.dims)), view.batch)
    for dim in reversed(over if not keep else []):
        found = found.removed(dim)
    return found


LOWERINGS: dict[object, Callable[..., View]] = {
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.conv1d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv_transpose2d.input: _transposed,
    aten.conv_transpose1d.default: _transposed,
    aten.linear.default: _linear,
    aten.mm.default: lambda build, x, weight: _matrix(build, None, x, weight),
    aten.addmm.default: lambda build, bias, x, weight, *_: _matrix(build, bias, x, weight),
    aten.max_pool2d.default: _max_pool,
    aten.max_pool1d.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.avg_pool1d.default: _avg_pool,
    aten.mean.dim: _reduced("avg"),
    aten.sum.dim_IntList: _reduced("avg", sums=True),
    aten.amax.default: _reduced("max"),
}
