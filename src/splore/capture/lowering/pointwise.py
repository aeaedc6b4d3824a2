"""Functions of one number and of two, and what changes nothing at inference."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import fx

from splore.capture.lowering.builder import Builder
from splore.capture.lowering.exported import Argument, Unsupported
from splore.capture.views import View
from splore.engine.program import Act, Activate, Add, Affine, Mul
from splore.engine.tensor_ops import Clamp, Combine, Fn, Leaky
from splore.engine.weight import Floats, Scale

aten = torch.ops.aten
LARGEST = float(np.finfo(np.float32).max)
AFFINE = (Fn.ADD, Fn.SUB, Fn.MUL, Fn.DIV)


def _two(fn: Fn) -> Callable[..., View]:
    def lowering(build: Builder, a: Argument, b: Argument, alpha: float = 1, *_: object) -> View:
        if alpha != 1:
            raise Unsupported(f"a sum with alpha={alpha}")
        return _of_two(build, fn, _operand(build, a), _operand(build, b))

    return lowering


def _operand(build: Builder, argument: Argument) -> View | Floats:
    constant = build.constant(argument)
    return build.view(argument) if constant is None else constant


def _of_two(build: Builder, fn: Fn, a: View | Floats, b: View | Floats) -> View:
    if isinstance(a, View):
        return combined(build, fn, a, b) if isinstance(b, View) else with_constant(build, fn, a, b)
    if isinstance(b, View):
        return _constant_first(build, fn, a, b)
    raise Unsupported("it computes a constant")


def _add_product(build: Builder, x: Argument, a: Argument, b: Argument, value: float = 1) -> View:
    if value != 1:
        raise Unsupported(f"a product with value={value}")
    return _of_two(build, Fn.ADD, _operand(build, x), _of_two(build, Fn.MUL, _operand(build, a), _operand(build, b)))


def _reversed_sub(build: Builder, a: Argument, b: Argument, alpha: float = 1) -> View:
    return _two(Fn.SUB)(build, b, a, alpha)


def _constant_first(build: Builder, fn: Fn, constant: Floats, x: View) -> View:
    if fn is Fn.SUB:
        return with_constant(build, Fn.ADD, with_constant(build, Fn.MUL, x, np.full((), -1, np.float32)), constant)
    if fn is Fn.DIV:
        return with_constant(build, Fn.MUL, unary(build, x, Activate("", (), Act.RECIPROCAL)), constant)
    return with_constant(build, fn, x, constant)


def with_constant(build: Builder, fn: Fn, x: View, constant: Floats) -> View:
    """fn(x, constant): an affine map where the constant is the same for all pixels."""
    while constant.ndim > len(x.dims):  # ones before the dimensions of the tensor
        constant = constant[0]
    sizes = np.broadcast_shapes(constant.shape, x.sizes)
    if sizes != x.sizes:
        x = x.expanded(sizes)
    x = build.whole(x)
    c, height, width = build.shape(x)
    number = constant.reshape(-1)[0] if constant.size == 1 else None
    data = np.full((c, 1, 1), number) if number is not None else x.filled((c, height, width), constant)
    same = bool((data == data[:, :1, :1]).all())
    if same and fn in AFFINE:
        vector: Floats = data[:, 0, 0].astype(np.float32)
        if fn in (Fn.ADD, Fn.SUB):
            factors = Scale(np.ones(c, np.float32), vector if fn is Fn.ADD else -vector)
        else:
            factors = Scale(vector if fn is Fn.MUL else np.reciprocal(vector), np.zeros(c, np.float32))
        return unary(build, x, Affine("", (), factors))
    if number is not None and fn in (Fn.MAX, Fn.MIN):
        return clamped(build, x, float(number) if fn is Fn.MAX else None, float(number) if fn is Fn.MIN else None)
    return combined(build, fn, x, build.filled(x, constant))


def combined(build: Builder, fn: Fn, a: View, b: View) -> View:
    """fn(a, b) of two tensors, one of which may have one in the place of some of the other's dimensions."""
    while len(a.dims) < len(b.dims):
        a = a.inserted(0)
    while len(b.dims) < len(a.dims):
        b = b.inserted(0)
    if a.batch != b.batch:
        raise Unsupported("its tensors have the batch in different dimensions")
    try:
        sizes = np.broadcast_shapes(a.sizes, b.sizes)
    except ValueError:
        raise Unsupported(f"it combines {a.sizes} and {b.sizes}") from None
    turned = b.sizes == sizes != a.sizes and fn not in (Fn.SUB, Fn.DIV)
    if turned:
        a, b = b, a
    a = build.whole(a if a.sizes == sizes else a.expanded(sizes))
    other = build.like(b, a)
    alike = build.shapes[other] == build.shape(a)
    channelwise = build.shapes[other] == (build.shape(a)[0], 1, 1)
    if fn is Fn.ADD and alike:
        pair = (other, a.value) if turned else (a.value, other)
        return replace(a, value=build.add(Add("", ()), *pair))
    if fn is Fn.MUL and (alike or channelwise):
        return replace(a, value=build.add(Mul("", ()), a.value, other))
    return replace(a, value=build.add(Combine("", (), fn), a.value, other))


def unary(build: Builder, x: View, op: Activate | Affine | Clamp) -> View:
    """An operation on each number."""
    view = build.whole(x)
    return replace(view, value=build.add(op, view.value))


def clamped(build: Builder, x: View, low: float | None, high: float | None) -> View:
    if low == 0 and high in (None, 6):
        return unary(build, x, Activate("", (), Act.RELU if high is None else Act.RELU6))
    limits = (-LARGEST if low is None else low, LARGEST if high is None else high)
    if not all(isinstance(limit, int | float) and abs(limit) <= LARGEST for limit in limits) or limits[0] > limits[1]:
        raise Unsupported(f"it limits to {low} and {high}")
    return unary(build, x, Clamp("", (), *map(float, limits)))


def _clamp(build: Builder, x: fx.Node, low: Argument = None, high: Argument = None) -> View:
    return clamped(build, build.view(x), low, high)


def _leaky(build: Builder, x: fx.Node, slope: float = 0.01) -> View:
    view = build.whole(build.view(x))
    slopes = np.full(build.shape(view)[0], slope, np.float32)
    return replace(view, value=build.add(Leaky("", (), slopes), view.value))


def _prelu(build: Builder, x: fx.Node, slope: fx.Node) -> View:
    slopes, view = build.constant(slope), build.view(x)
    if slopes is None or len(view.dims) < 2:
        raise Unsupported("its slopes depend on the input")
    view = build.with_channels(view, (1,))
    slopes = np.ascontiguousarray(np.broadcast_to(slopes.reshape(-1), build.shape(view)[:1]))
    return replace(view, value=build.add(Leaky("", (), slopes), view.value))


def _act(act: Act, *expected: object) -> Callable[..., View]:
    def lowering(build: Builder, x: fx.Node, *found: object) -> View:
        if found != expected:
            raise Unsupported(f"{act.value} with {found}")
        return unary(build, build.view(x), Activate("", (), act))

    return lowering


def _gelu(build: Builder, x: fx.Node, approximate: str) -> View:
    return unary(build, build.view(x), Activate("", (), Act.GELU if approximate == "none" else Act.GELU_TANH))


def _negative(build: Builder, x: fx.Node) -> View:
    return with_constant(build, Fn.MUL, build.view(x), np.full((), -1, np.float32))


def _power(build: Builder, x: fx.Node, exponent: float) -> View:
    view = build.view(x)
    if exponent == 2:
        return combined(build, Fn.MUL, view, view)
    if exponent == 0.5:
        return unary(build, view, Activate("", (), Act.SQRT))
    if exponent == -0.5:
        return _rsqrt(build, x)
    raise Unsupported(f"a power of {exponent}")


def _rsqrt(build: Builder, x: fx.Node) -> View:
    root = unary(build, build.view(x), Activate("", (), Act.SQRT))
    return unary(build, root, Activate("", (), Act.RECIPROCAL))


def _same(build: Builder, x: fx.Node, *_: object) -> View:
    return build.view(x, joined=True)


LOWERINGS: dict[object, Callable[..., View]] = {
    aten.add.Tensor: _two(Fn.ADD),
    aten.sub.Tensor: _two(Fn.SUB),
    aten.rsub.Scalar: _reversed_sub,
    aten.rsub.Tensor: _reversed_sub,
    aten.mul.Tensor: _two(Fn.MUL),
    aten.div.Tensor: _two(Fn.DIV),
    aten.addcmul.default: _add_product,
    aten.maximum.default: _two(Fn.MAX),
    aten.minimum.default: _two(Fn.MIN),
    aten.neg.default: _negative,
    aten.pow.Tensor_Scalar: _power,
    aten.square.default: lambda build, x: _power(build, x, 2),
    aten.rsqrt.default: _rsqrt,
    aten.hardtanh.default: _clamp,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_max.default: lambda build, x, high: clamped(build, build.view(x), None, high),
    aten.leaky_relu.default: _leaky,
    aten.prelu.default: _prelu,
    aten.relu.default: _act(Act.RELU),
    aten.relu6.default: _act(Act.RELU6),
    aten.silu.default: _act(Act.SILU),
    aten.sigmoid.default: _act(Act.SIGMOID),
    aten.hardswish.default: _act(Act.HARDSWISH),
    aten.hardsigmoid.default: _act(Act.HARDSIGMOID),
    aten.tanh.default: _act(Act.TANH),
    aten.exp.default: _act(Act.EXP),
    aten.sqrt.default: _act(Act.SQRT),
    aten.reciprocal.default: _act(Act.RECIPROCAL),
    aten.abs.default: _act(Act.ABS),
    aten.elu.default: _act(Act.ELU, 1, 1, 1),
    aten.mish.default: _act(Act.MISH),
    aten.gelu.default: _gelu,
    aten.dropout.default: _same,
    aten.feature_dropout.default: _same,
    aten.clone.default: _same,
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.contiguous.default: _same,
}
