"""Sums, products, activations, and what changes nothing at inference."""

from collections.abc import Callable

import numpy as np
import torch
from torch import fx

from splore.capture.lowering.exported import Argument, Exported, Lowered, Unsupported, dims, module_name
from splore.engine.program import Act, Activate, Add, Affine, Mul
from splore.engine.weight import Scale

aten = torch.ops.aten


def _add(node: fx.Node, model: Exported, a: Argument, b: Argument, alpha: float = 1) -> Lowered:
    if alpha != 1:
        raise Unsupported(f"a sum with alpha={alpha}")
    if model.is_constant(a):
        a, b = b, a
    if model.is_constant(b):
        return _affine(node, a, np.ones(model.shape(a)[0]), model.channels(b, a))
    if dims(a) != dims(b) or model.shape(a) != model.shape(b):
        raise Unsupported(f"it adds {model.shape(a)} and {model.shape(b)}")
    return Lowered((a, b), (Add(module_name(node), ()),))


def _sub(node: fx.Node, model: Exported, a: Argument, b: Argument, alpha: float = 1) -> Lowered:
    if alpha != 1 or not (model.is_constant(a) or model.is_constant(b)):
        raise Unsupported("a difference of two images")
    if model.is_constant(b):
        return _affine(node, a, np.ones(model.shape(a)[0]), -model.channels(b, a))
    return _affine(node, b, -np.ones(model.shape(b)[0]), model.channels(a, b))


def _reversed_sub(node: fx.Node, model: Exported, a: Argument, b: Argument, alpha: float = 1) -> Lowered:
    return _sub(node, model, b, a, alpha)


def _mul(node: fx.Node, model: Exported, a: Argument, b: Argument) -> Lowered:
    if model.is_constant(a):
        a, b = b, a
    if model.is_constant(b):
        return _affine(node, a, model.channels(b, a), np.zeros(model.shape(a)[0]))
    if model.shape(a)[1:] == (1, 1):
        a, b = b, a
    image, factor = model.shape(a), model.shape(b)
    if dims(a) != dims(b) or factor not in (image, (image[0], 1, 1)):
        raise Unsupported(f"it multiplies {image} and {factor}")
    return Lowered((a, b), (Mul(module_name(node), ()),))


def _div(node: fx.Node, model: Exported, a: Argument, b: Argument) -> Lowered:
    if model.is_constant(a) or not model.is_constant(b):
        raise Unsupported("it divides by an image")
    return _affine(node, a, 1 / model.channels(b, a), np.zeros(model.shape(a)[0]))


def _affine(node: fx.Node, x: fx.Node, scale: np.ndarray, shift: np.ndarray) -> Lowered:
    factors = Scale(scale.astype(np.float32), shift.astype(np.float32))
    return Lowered((x,), (Affine(module_name(node), (), factors),))


def _limit(node: fx.Node, model: Exported, x: fx.Node, low: float | None = None, high: float | None = None) -> Lowered:
    if low != 0 or high not in (None, 6):
        raise Unsupported(f"it limits to {low} and {high}")
    return Lowered((x,), (Activate(module_name(node), (), Act.RELU if high is None else Act.RELU6),))


def _act(act: Act, *expected: object) -> Callable[..., Lowered]:
    def lowering(node: fx.Node, model: Exported, x: fx.Node, *found: object) -> Lowered:
        if found != expected:
            raise Unsupported(f"{act.value} with {found}")
        return Lowered((x,), (Activate(module_name(node), (), act),))

    return lowering


def _same(node: fx.Node, model: Exported, x: fx.Node, *_: object) -> Lowered:
    return Lowered((x,))


LOWERINGS: dict[object, Callable[..., Lowered]] = {
    aten.add.Tensor: _add,
    aten.sub.Tensor: _sub,
    aten.rsub.Scalar: _reversed_sub,
    aten.rsub.Tensor: _reversed_sub,
    aten.mul.Tensor: _mul,
    aten.div.Tensor: _div,
    aten.hardtanh.default: _limit,
    aten.clamp.default: _limit,
    aten.clamp_min.default: _limit,
    aten.relu.default: _act(Act.RELU),
    aten.relu6.default: _act(Act.RELU6),
    aten.silu.default: _act(Act.SILU),
    aten.sigmoid.default: _act(Act.SIGMOID),
    aten.hardswish.default: _act(Act.HARDSWISH),
    aten.hardsigmoid.default: _act(Act.HARDSIGMOID),
    aten.gelu.default: _act(Act.GELU, "none"),
    aten.dropout.default: _same,
    aten.feature_dropout.default: _same,
    aten.clone.default: _same,
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.contiguous.default: _same,
}
