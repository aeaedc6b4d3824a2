"""One ATen operator of an exported model to the operations of a program.

`lower` looks at one node at a time. What it can't express raises `Unsupported` with the reason, and runs in torch.
A tensor (N, C, H, W) is the value (C, H, W); (N, C) and (N, C, 1) are (C, 1, 1).
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from splore.deploy.fuse import Pad, Select
from splore.deploy.program import Act, Activate, Add, Affine, Concat, Conv, Flatten, Mul, Op, Pool, Scale, Shape, Weight
from splore.deploy.weights import from_dense, from_layer
from splore.design.layers import LowRankSparse

aten = torch.ops.aten


class Unsupported(Exception):
    """The engine has no operation for this operator, or not with these arguments."""


@dataclass(frozen=True)
class Lowered:
    """The operations of a node, each reading the one before it; the first reads `sources`. None: the node changes nothing."""

    sources: tuple[fx.Node, ...]
    ops: tuple[Op | Pad | Select, ...] = ()


@dataclass(frozen=True)
class Model:
    """What the nodes of an exported model refer to."""

    batch: object  # the symbolic batch size
    constants: dict[fx.Node, Tensor]
    layers: dict[fx.Node, LowRankSparse]  # by the node of their weight
    names: dict[fx.Node, str]  # of parameters, for the plan

    def shape(self, node: object) -> Shape:
        """The value of a node, (C, H, W)."""
        found = node.meta.get("val") if isinstance(node, fx.Node) and node not in self.constants else None
        if not isinstance(found, Tensor):
            raise Unsupported("it reads something that is no tensor of images")
        if found.dtype != torch.float32:
            raise Unsupported(f"it reads {found.dtype}")
        if found.dim() < 2 or str(found.shape[0]) != str(self.batch):
            raise Unsupported("its first dimension is not the batch")
        sizes = [*found.shape[1:], 1, 1][: max(3, found.dim() - 1)]
        if found.dim() > 4 or not all(isinstance(size, int) for size in sizes) or (found.dim() == 3 and sizes[1] != 1):
            raise Unsupported(f"its shape is {tuple(found.shape)}")
        return tuple(sizes)

    def channels(self, constant: object, like: fx.Node) -> np.ndarray:
        """A number or a constant tensor that broadcasts over batch and pixels: (C)."""
        c, dims = self.shape(like)[0], like.meta["val"].dim()
        tensor = self.constants[constant] if isinstance(constant, fx.Node) else torch.tensor(constant)
        try:
            tensor = tensor.to(torch.float32).broadcast_to(1, c, *[1] * (dims - 2))
        except RuntimeError:
            raise Unsupported(f"it combines images with a constant of shape {tuple(tensor.shape)}") from None
        return np.ascontiguousarray(tensor.reshape(-1).detach().numpy())

    def is_constant(self, argument: object) -> bool:
        return isinstance(argument, int | float) or argument in self.constants


def lower(node: fx.Node, model: Model) -> Lowered:
    """The operations of a node; raises Unsupported."""
    lowering = LOWERINGS.get(node.target)
    if lowering is None:
        raise Unsupported("the engine has no such operator")
    lowered = lowering(node, model, *bound(node))
    if not isinstance(node.meta["val"], list | tuple):
        model.shape(node)
    return lowered


def bound(node: fx.Node) -> list[object]:
    """The arguments of a node in the order of the operator's schema, with its defaults."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return list(node.args)
    arguments = node.target._schema.arguments
    given = dict(zip((a.name for a in arguments), node.args, strict=False)) | node.kwargs
    return [given.get(a.name, a.default_value) for a in arguments]


def name(node: fx.Node) -> str:
    """The module that made a node, or the node's own name."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return (stack[-1][0] if stack else "") or node.name


def _weight(node: fx.Node, model: Model, groups: int = 1) -> tuple[str, Weight, tuple[int, ...]]:
    """Name, weight and shape of the weight of a convolution or a linear layer."""
    if node in model.layers:
        layer = model.layers[node]
        return model.names[node], from_layer(layer), layer.weight_shape
    if node not in model.constants:
        raise Unsupported("its weight depends on the input")
    weight = model.constants[node].detach()
    label = model.names.get(node, node.name).removesuffix(".weight")
    return label, from_dense(weight.reshape(len(weight), -1).numpy(), groups), tuple(weight.shape)


def _bias(node: fx.Node | None, model: Model, n: int) -> np.ndarray:
    if node is None:
        return np.zeros(n, np.float32)
    if node not in model.constants:
        raise Unsupported("its bias depends on the input")
    return np.ascontiguousarray(model.constants[node].detach().numpy(), np.float32)


def _conv2d(node, model, x, weight, bias, stride, padding, dilation, groups) -> Lowered:  # noqa: ANN001
    label, matrix, shape = _weight(weight, model, groups)
    kernel, dilation = shape[2:], _pair(dilation)
    if padding == "valid":
        pad = (0, 0, 0, 0)
    elif padding == "same":  # the odd one goes to the bottom and to the right
        (th, tw) = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        pad = (th // 2, tw // 2, th - th // 2, tw - tw // 2)
    else:
        pad = _pair(padding) * 2
    if model.shape(x)[0] != shape[1] * groups:
        raise Unsupported(f"its input has the shape {tuple(x.meta['val'].shape)}")
    bias = _bias(bias, model, shape[0])
    return Lowered((x,), (Conv(label, (), matrix, bias, kernel, _pair(stride), pad, dilation, groups),))


def _linear(node, model, x, weight, bias) -> Lowered:  # noqa: ANN001
    label, matrix, shape = _weight(weight, model)
    model.shape(x)
    if x.meta["val"].dim() != 2:
        raise Unsupported(f"a linear layer of {x.meta['val'].dim()} dimensions")
    return Lowered((x,), (Conv(label, (), matrix, _bias(bias, model, shape[0])),))


def _batch_norm(node, model, x, weight, bias, mean, variance, *rest) -> Lowered:  # noqa: ANN001
    eps = rest[-1]
    c = model.shape(x)[0]
    if mean not in model.constants or variance not in model.constants:
        raise Unsupported("it has no running statistics")
    mean, variance = (model.constants[part].double().numpy() for part in (mean, variance))
    scale = 1 / np.sqrt(variance + eps)
    scale = scale if weight is None else scale * _bias(weight, model, c)
    shift = _bias(bias, model, c) - mean * scale
    return Lowered((x,), (Affine(name(node), (), Scale(scale.astype(np.float32), shift.astype(np.float32))),))


def _getitem(node, model, source, index) -> Lowered:  # noqa: ANN001
    target, args = source.target, bound(source)
    if target in (aten._native_batch_norm_legit_no_training.default,) and index == 0:
        return Lowered((source,))
    if target in (aten.split.Tensor, aten.split_with_sizes.default) and args[2] == 1:
        sizes = [part.shape[1] for part in source.meta["val"]]
        return _channels(node, model, args[0], range(sum(sizes[:index]), sum(sizes[: index + 1])))
    raise Unsupported("it takes one of several results")


def _channels(node, model, x, source) -> Lowered:  # noqa: ANN001
    return Lowered((x,), (Select(name(node), (), model.shape(x)[0], tuple(source)),))


def _slice(node, model, x, dim, start, end, step) -> Lowered:  # noqa: ANN001
    sizes = (None, *model.shape(x))
    first, last = start or 0, 2**62 if end is None else end
    if dim == 0 and first == 0 and step == 1 and isinstance(last, int) and last >= 2**62:
        return Lowered((x,))
    if dim == 0 or x.meta["val"].dim() != 4:
        raise Unsupported(f"a slice of dimension {dim}")
    taken = range(sizes[dim])[first:last:step]
    if dim == 1:
        return _channels(node, model, x, taken)
    if taken != range(0, sizes[dim], step):
        raise Unsupported("a slice that cuts a border off")
    stride = (step, 1) if dim == 2 else (1, step)
    return Lowered((x,), (Select(name(node), (), sizes[1], tuple(range(sizes[1])), stride),))


def _pad(node, model, x, pad, mode="constant", value=None) -> Lowered:  # noqa: ANN001
    c, _, _ = model.shape(x)
    left, right, top, bottom, before, after, *_ = (*pad, 0, 0, 0, 0, 0, 0)
    if mode != "constant" or value not in (None, 0) or min(pad) < 0 or x.meta["val"].dim() != 4 or len(pad) > 6:
        raise Unsupported(f"padding in mode {mode} by {list(pad)} with {value or 0}")
    ops = []
    if before or after:
        ops.append(Select(name(node), (), c, (-1,) * before + tuple(range(c)) + (-1,) * after))
    if any(pad[:4]):
        ops.append(Pad(name(node), (), c + before + after, (top, left, bottom, right)))
    return Lowered((x,), tuple(ops))


def _max_pool(node, model, x, kernel, stride, padding, dilation, ceil_mode) -> Lowered:  # noqa: ANN001
    if _pair(dilation) != (1, 1):
        raise Unsupported("a dilated pooling window")
    return _pool(node, model, "max", x, kernel, stride, padding, ceil_mode, False)


def _avg_pool(node, model, x, kernel, stride, padding, ceil_mode, count_include_pad, divisor) -> Lowered:  # noqa: ANN001
    if divisor is not None:
        raise Unsupported("a mean with a divisor of its own")
    return _pool(node, model, "avg", x, kernel, stride, padding, ceil_mode, count_include_pad)


def _pool(node, model, mode, x, kernel, stride, padding, ceil_mode, count_include_pad) -> Lowered:  # noqa: ANN001
    kernel = _pair(kernel)
    stride, padding = _pair(stride) if stride else kernel, _pair(padding)
    extra = [0, 0]  # what the last window of ceil_mode reaches beyond the padding
    for axis, size in enumerate(model.shape(x)[1:]):
        k, s, p = kernel[axis], stride[axis], padding[axis]
        if ceil_mode:
            last = -(-(size + 2 * p - k) // s) * s
            last -= s if last >= size + p else 0
            extra[axis] = max(0, last + k - size - 2 * p)
    if count_include_pad and any(padding) and any(extra):
        raise Unsupported("a mean with padding and ceil_mode")
    pad = (*padding, padding[0] + extra[0], padding[1] + extra[1])
    count_include_pad = bool(count_include_pad and any(padding))
    return Lowered((x,), (Pool(name(node), (), mode, kernel, stride, pad, count_include_pad),))


def _adaptive_avg_pool(node, model, x, size) -> Lowered:  # noqa: ANN001
    _, height, width = model.shape(x)
    rows, columns = _pair(size)
    if (rows, columns) == (height, width):
        return Lowered((x,))
    if height % rows or width % columns:
        raise Unsupported(f"pooling {height} x {width} to {rows} x {columns}, which does not divide")
    window = (height // rows, width // columns)
    return Lowered((x,), (Pool(name(node), (), "avg", window, window),))


def _global(mode: str) -> Callable[..., Lowered]:
    def lowering(node, model, x, dims, *_) -> Lowered:  # noqa: ANN001
        _, height, width = model.shape(x)
        if x.meta["val"].dim() != 4 or {dim % 4 for dim in dims or ()} != {2, 3}:
            raise Unsupported(f"a reduction over the dimensions {dims}")
        return Lowered((x,), (Pool(name(node), (), mode, (height, width), (height, width)),))

    return lowering


def _reshape(node, model, x, *_) -> Lowered:  # noqa: ANN001
    before, after = model.shape(x), model.shape(node)
    if before == after:
        return Lowered((x,))
    if after != (before[0] * before[1] * before[2], 1, 1):
        raise Unsupported(f"a reshape of {before} to {after}")
    return Lowered((x,), (Flatten(name(node), ()),))


def _add(node, model, a, b, alpha=1) -> Lowered:  # noqa: ANN001
    sign = -1 if node.target is aten.sub.Tensor else 1
    if alpha != 1:
        raise Unsupported(f"a sum with alpha={alpha}")
    if model.is_constant(b):
        return _affine(node, a, np.ones(model.shape(a)[0]), sign * model.channels(b, a))
    if model.is_constant(a):
        return _affine(node, b, np.full(model.shape(b)[0], sign), model.channels(a, b))
    if sign < 0 or a.meta["val"].dim() != b.meta["val"].dim() or model.shape(a) != model.shape(b):
        raise Unsupported(f"it combines {model.shape(a)} and {model.shape(b)}")
    return Lowered((a, b), (Add(name(node), ()),))


def _mul(node, model, a, b) -> Lowered:  # noqa: ANN001
    if model.is_constant(a):
        a, b = b, a
    if model.is_constant(b):
        return _affine(node, a, model.channels(b, a), np.zeros(model.shape(a)[0]))
    if model.shape(a)[1:] == (1, 1):
        a, b = b, a
    before, scale = model.shape(a), model.shape(b)
    if a.meta["val"].dim() != b.meta["val"].dim() or scale not in (before, (before[0], 1, 1)):
        raise Unsupported(f"it combines {before} and {scale}")
    return Lowered((a, b), (Mul(name(node), ()),))


def _div(node, model, a, b) -> Lowered:  # noqa: ANN001
    if model.is_constant(a) or not model.is_constant(b):
        raise Unsupported("it divides by an image")
    return _affine(node, a, 1 / model.channels(b, a), np.zeros(model.shape(a)[0]))


def _affine(node: fx.Node, x: fx.Node, scale: np.ndarray, shift: np.ndarray) -> Lowered:
    return Lowered((x,), (Affine(name(node), (), Scale(scale.astype(np.float32), shift.astype(np.float32))),))


def _cat(node, model, parts, dim) -> Lowered:  # noqa: ANN001
    if dim % node.meta["val"].dim() != 1 or len({part.meta["val"].dim() for part in parts}) != 1:
        raise Unsupported(f"it joins along dimension {dim}")
    for part in parts:
        model.shape(part)
    return Lowered(tuple(parts), (Concat(name(node), ()),))


def _clamp(node, model, x, low=None, high=None) -> Lowered:  # noqa: ANN001
    act = {(0, None): Act.RELU, (0, 6): Act.RELU6}.get((low, high))
    if act is None:
        raise Unsupported(f"it limits to {low} and {high}")
    model.shape(x)
    return Lowered((x,), (Activate(name(node), (), act),))


def _act(act: Act, *expected: object) -> Callable[..., Lowered]:
    def lowering(node, model, x, *found) -> Lowered:  # noqa: ANN001
        if found != expected:
            raise Unsupported(f"{act.value} with {found}")
        model.shape(x)
        return Lowered((x,), (Activate(name(node), (), act),))

    return lowering


def _same(node, model, x, *_) -> Lowered:  # noqa: ANN001
    model.shape(x)
    return Lowered((x,))




def _pair(numbers: list[int] | int) -> tuple[int, int]:
    if isinstance(numbers, int):
        return numbers, numbers
    numbers = tuple(numbers)
    if not all(isinstance(number, int) for number in numbers):
        raise Unsupported("it depends on the batch size")
    return numbers * 2 if len(numbers) == 1 else numbers


LOWERINGS: dict[object, Callable[..., Lowered]] = {
    aten.conv2d.default: _conv2d,
    aten.conv2d.padding: _conv2d,
    aten.linear.default: _linear,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    operator.getitem: _getitem,
    aten.split.Tensor: _same,  # `_getitem` says which part
    aten.split_with_sizes.default: _same,  # `_getitem` says which part
    aten.slice.Tensor: _slice,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: lambda node, model, x, pad, value: _pad(node, model, x, pad, "constant", value),
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
    aten.mean.dim: _global("avg"),
    aten.amax.default: _global("max"),
    aten.add.Tensor: _add,
    aten.sub.Tensor: _add,
    aten.mul.Tensor: _mul,
    aten.div.Tensor: _div,
    aten.cat.default: _cat,
    aten.relu.default: _act(Act.RELU),
    aten.relu6.default: _act(Act.RELU6),
    aten.silu.default: _act(Act.SILU),
    aten.sigmoid.default: _act(Act.SIGMOID),
    aten.hardswish.default: _act(Act.HARDSWISH),
    aten.hardsigmoid.default: _act(Act.HARDSIGMOID),
    aten.gelu.default: _act(Act.GELU, "none"),
    aten.hardtanh.default: _clamp,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
} | dict.fromkeys((aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
                   aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default), _reshape) | (
    dict.fromkeys((aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
                   aten.dropout.default, aten.feature_dropout.default, aten.lift_fresh_copy.default), _same)
)  # fmt: skip
