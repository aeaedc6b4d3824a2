"""Convolution, linear layer, batch normalisation, pooling."""

from collections.abc import Callable

import numpy as np
import torch
from torch import fx

from splore.capture.lowering.exported import Exported, Lowered, Unsupported, dims, module_name, pair
from splore.capture.weights import from_dense, from_layer
from splore.engine.program import Affine, Conv, Pair, Pool
from splore.engine.weight import Floats, Scale, Weight

aten = torch.ops.aten
Sizes = list[int] | int


def _convolution(
    node: fx.Node,
    model: Exported,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
) -> Lowered:
    name, matrix, shape = _weight(weight, model, groups)
    kernel, dilations = pair(list(shape[2:])), pair(dilation)
    if padding == "valid":
        pad = (0, 0, 0, 0)
    elif padding == "same":  # the odd one goes to the bottom and to the right
        rows, columns = (d * (k - 1) for d, k in zip(dilations, kernel, strict=True))
        pad = (rows // 2, columns // 2, rows - rows // 2, columns - columns // 2)
    elif isinstance(padding, str):
        raise Unsupported(f"padding {padding}")
    else:
        pad = pair(padding) * 2
    if dims(x) != 4:
        raise Unsupported(f"a convolution of {dims(x)} dimensions")
    shift = _bias(bias, model, shape[0])
    return Lowered((x,), (Conv(name, (), matrix, shift, kernel, pair(stride), pad, dilations, groups),))


def _linear(node: fx.Node, model: Exported, x: fx.Node, weight: fx.Node, bias: fx.Node | None) -> Lowered:
    if dims(x) != 2:
        raise Unsupported(f"a linear layer of {dims(x)} dimensions")
    name, matrix, shape = _weight(weight, model)
    return Lowered((x,), (Conv(name, (), matrix, _bias(bias, model, shape[0])),))


def _weight(node: fx.Node, model: Exported, groups: int = 1) -> tuple[str, Weight, tuple[int, ...]]:
    """Name, weight and shape of the weight of a convolution or a linear layer."""
    if node in model.layers:
        layer = model.layers[node]
        return model.names[node], from_layer(layer, groups), layer.weight_shape
    weight = model.array(node)
    return model.names.get(node, node.name), from_dense(weight.reshape(len(weight), -1), groups), weight.shape


def _bias(node: fx.Node | None, model: Exported, n: int) -> Floats:
    return np.zeros(n, np.float32) if node is None else model.array(node)


def _batch_norm(
    node: fx.Node,
    model: Exported,
    x: fx.Node,
    weight: fx.Node | None,
    bias: fx.Node | None,
    mean: fx.Node,
    variance: fx.Node,
    momentum: float,
    eps: float,
) -> Lowered:
    scale = 1 / np.sqrt(model.array(variance).astype(np.float64) + eps)
    if weight is not None:
        scale = scale * model.array(weight)
    shift = _bias(bias, model, len(scale)) - model.array(mean) * scale
    factors = Scale(scale.astype(np.float32), shift.astype(np.float32))
    return Lowered((x,), (Affine(module_name(node), (), factors),))


def _max_pool(
    node: fx.Node, model: Exported, x: fx.Node, kernel: Sizes, stride: Sizes, pad: Sizes, dilation: Sizes, ceil: bool
) -> Lowered:
    if pair(dilation) != (1, 1):
        raise Unsupported("a dilated pooling window")
    return _pool("max", node, model, x, _window(kernel, stride, pad), ceil, False)


def _avg_pool(
    node: fx.Node,
    model: Exported,
    x: fx.Node,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Lowered:
    if divisor is not None:
        raise Unsupported("a mean with a divisor of its own")
    return _pool("avg", node, model, x, _window(kernel, stride, padding), ceil_mode, count_include_pad)


def _window(kernel: Sizes, stride: Sizes, padding: Sizes) -> tuple[Pair, Pair, Pair]:
    """Sides, strides and pads; a window without a stride moves on by its side."""
    return pair(kernel), pair(stride or kernel), pair(padding)


def _pool(
    mode: str, node: fx.Node, model: Exported, x: fx.Node, window: tuple[Pair, Pair, Pair], ceil: bool, count_pad: bool
) -> Lowered:
    sides, strides, pads = window
    extra = [0, 0]  # how far the last window of ceil_mode reaches beyond the padding
    for axis, size in enumerate(model.shape(x)[1:]):
        k, s, p = sides[axis], strides[axis], pads[axis]
        if ceil:
            start = -(-(size + 2 * p - k) // s) * s
            start -= s if start >= size + p else 0  # a window has to start within the image or before it
            extra[axis] = max(0, start + k - size - 2 * p)
    if count_pad and any(pads) and any(extra):
        raise Unsupported("a mean that counts padding, with ceil_mode")
    pad = (*pads, pads[0] + extra[0], pads[1] + extra[1])
    counted = bool(count_pad and any(pads))
    return Lowered((x,), (Pool(module_name(node), (), mode, sides, strides, pad, counted),))


def _adaptive_avg_pool(node: fx.Node, model: Exported, x: fx.Node, size: Sizes) -> Lowered:
    (_, height, width), (rows, columns) = model.shape(x), pair(size)
    if (rows, columns) == (height, width):
        return Lowered((x,))
    if height % rows or width % columns:
        raise Unsupported(f"pooling {height} x {width} to {rows} x {columns}, which does not divide")
    window = (height // rows, width // columns)
    return Lowered((x,), (Pool(module_name(node), (), "avg", window, window),))


def _global(mode: str) -> Callable[..., Lowered]:
    def lowering(node: fx.Node, model: Exported, x: fx.Node, axes: list[int] | None, *_: object) -> Lowered:
        window = model.shape(x)[1:]
        if dims(x) != 4 or {axis % 4 for axis in axes or ()} != {2, 3}:
            raise Unsupported(f"a reduction over the dimensions {axes}")
        return Lowered((x,), (Pool(module_name(node), (), mode, window, window),))

    return lowering


LOWERINGS: dict[object, Callable[..., Lowered]] = {
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.linear.default: _linear,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
    aten.mean.dim: _global("avg"),
    aten.amax.default: _global("max"),
}
