"""Products of two tensors and attention; normalisations and softmax."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch
from torch import fx

from splore.capture.lowering.builder import Builder, dims_of
from splore.capture.lowering.convolutions import _matrix, reduced
from splore.capture.lowering.exported import Argument, Unsupported
from splore.capture.lowering.pointwise import combined, unary, with_constant
from splore.capture.views import View, placed
from splore.engine.program import Act, Activate, Affine
from splore.engine.tensor_ops import Factor, Fn, MatMul, Normalize, Softmax
from splore.engine.weight import Floats, Scale

aten = torch.ops.aten
Dims = Sequence[int]


def product(
    build: Builder, a: View, b: View, groups: tuple[Dims, Dims], free: tuple[Dims, Dims], summed: tuple[Dims, Dims],
    scale: float = 1.0,
) -> int:  # fmt: skip
    """The sums over the dimensions `summed` of a and b, for each of `groups`, which both have: a value whose channels
    are the groups and b's free dimensions, and whose columns are a's."""
    if a.batch not in groups[0] or groups[0].index(a.batch) != groups[1].index(b.batch):
        raise Unsupported("a product over the batch")
    first = build.arranged(a, [*groups[0], *summed[0]], (), free[0])
    keys = ([*groups[1], *summed[1]], (), free[1])
    values = ([*groups[1], *free[1]], (), summed[1])
    channels = [factor for dim in free[1] for factor in b.dims[dim] if factor.axis == 0]
    transposed = not channels  # its free dimension lies along the pixels already
    second = build.arranged(b, *(keys if transposed else values))
    count = prod(a.sizes[dim] for dim in groups[0])
    return build.add(MatMul("", (), count, transposed, scale), first.value, second.value)


def _matmul(build: Builder, a: Argument, b: Argument) -> View:
    if build.constant(b) is not None:
        return _matrix(build, None, a, b)
    return matmul(build, build.view(a), build.view(b))


def matmul(build: Builder, a: View, b: View, scale: float = 1.0) -> View:
    """(..., M, K) times (..., K, P)."""
    while len(a.dims) < len(b.dims):
        a = a.inserted(0)
    while len(b.dims) < len(a.dims):
        b = b.inserted(0)
    count = len(a.dims) - 2
    sizes = np.broadcast_shapes(a.sizes[:count], b.sizes[:count])
    if a.batch != b.batch or a.batch >= count or a.sizes[-1] != b.sizes[-2]:
        raise Unsupported("a product of tensors whose batch is not in the same place")
    a, b = (view.expanded((*sizes, *view.sizes[count:])) for view in (a, b))
    groups: Dims = range(count)
    value = product(build, a, b, (groups, groups), ([count], [count + 1]), ([count + 1], [count]), scale)
    whole = (*sizes, a.sizes[-2], b.sizes[-1])
    return placed(whole, a.batch, value, [*groups, count + 1], (), (count,))


def _einsum(build: Builder, equation: str, parts: list[fx.Node], *_: object) -> View:
    """Of two tensors: letters of both and of the result are groups, letters of both alone are summed over."""
    terms, result = (*equation.replace(" ", "").split("->"), "")[:2]
    letters = terms.split(",")
    if len(parts) != 2 or "." in equation or not result or any(len(set(term)) != len(term) for term in letters):
        raise Unsupported(f"the sum {equation}")
    (left, right), (a, b) = letters, map(build.view, parts)
    both = [letter for letter in left if letter in right]
    own = [[letter for letter in term if letter not in both] for term in letters]
    if any(letter not in result for each in own for letter in each):
        raise Unsupported(f"the sum {equation}")

    def numbers(chosen: Sequence[str]) -> tuple[Dims, Dims]:
        return [left.index(letter) for letter in chosen], [right.index(letter) for letter in chosen]

    groups = [letter for letter in both if letter in result]
    summed = [letter for letter in both if letter not in result]
    free = ([left.index(letter) for letter in own[0]], [right.index(letter) for letter in own[1]])
    value = product(build, a, b, numbers(groups), free, numbers(summed))
    order = [*groups, *own[1], *own[0]]
    sizes = dict(zip(left, a.sizes, strict=True)) | dict(zip(right, b.sizes, strict=True))
    found = placed(
        tuple(sizes[letter] for letter in order), order.index(left[a.batch]), value,
        range(len(groups) + len(own[1])), (), range(len(groups) + len(own[1]), len(order)),
    )  # fmt: skip
    return found.permuted([order.index(letter) for letter in result])


def _attention(
    build: Builder, q: fx.Node, k: fx.Node, v: fx.Node, mask: fx.Node | None, dropout: float, causal: bool,
    scale: float | None = None, grouped: bool = False,
) -> View:  # fmt: skip
    """softmax(q k^T scale + mask) v."""
    if grouped:
        raise Unsupported("attention with fewer keys than queries")
    query, key, value = map(build.view, (q, k, v))
    count = len(key.dims)
    turned = key.permuted([*range(count - 2), count - 1, count - 2])
    scores = matmul(build, query, turned, query.sizes[-1] ** -0.5 if scale is None else scale)
    if causal:
        rows, columns = scores.sizes[-2:]
        hidden = np.triu(np.full((rows, columns), -1e30, np.float32), 1)
        scores = with_constant(build, Fn.ADD, scores, hidden)
    if mask is not None:
        constant = build.constant(mask)
        if constant is None:
            scores = combined(build, Fn.ADD, scores, build.view(mask))
        else:
            if build.model.constants[mask].dtype == torch.bool:
                constant = np.where(constant != 0, 0, -1e30).astype(np.float32)
            scores = with_constant(build, Fn.ADD, scores, np.maximum(constant, -1e30))
    return matmul(build, softmax(build, scores, len(scores.dims) - 1), value)


def softmax(build: Builder, view: View, dim: int) -> View:
    """e^x over its sum along a dimension."""
    shape, size = build.shape(view), view.sizes[dim]
    if not (view.covers(shape) and view.dims[dim] == (Factor(0, size, 1),)):
        view = build.with_channels(view, (dim,))
    groups = build.shape(view)[0] // size
    return replace(view, value=build.add(Softmax("", (), groups), view.value))


def _softmax(build: Builder, x: fx.Node, dim: int, *_: object) -> View:
    view = build.view(x)
    if dim % len(view.dims) == view.batch:
        raise Unsupported("a softmax over the batch")
    return softmax(build, view, dim % len(view.dims))


def _factors(build: Builder, weight: fx.Node | None, bias: fx.Node | None, count: int) -> Scale:
    scale, shift = (None if node is None else build.constant(node) for node in (weight, bias))
    if (weight is not None and scale is None) or (bias is not None and shift is None):
        raise Unsupported("its factors depend on the input")
    one, zero = np.ones(count, np.float32), np.zeros(count, np.float32)
    return Scale(one if scale is None else scale.reshape(-1), zero if shift is None else shift.reshape(-1))


def _layer_norm(
    build: Builder, x: fx.Node, shape: list[int], weight: fx.Node | None = None, bias: fx.Node | None = None,
    eps: float = 1e-5, *_: object,
) -> View:  # fmt: skip
    view = build.view(x)
    over = list(range(len(view.dims) - len(shape), len(view.dims)))
    if view.batch in over:
        raise Unsupported("a normalisation over the batch")
    view = build.with_channels(view, over)
    factors = _factors(build, weight, bias, build.shape(view)[0])
    return replace(view, value=build.add(Normalize("", (), 1, True, eps, factors), view.value))


def _group_norm(
    build: Builder, x: fx.Node, groups: int, weight: fx.Node | None = None, bias: fx.Node | None = None,
    eps: float = 1e-5, *_: object,
) -> View:  # fmt: skip
    view = build.view(x)
    if view.batch or view.sizes[0] != 1:
        raise Unsupported("a group normalisation of parts of an image")
    view = build.with_channels(view, (1,))
    factors = _factors(build, weight, bias, build.shape(view)[0])
    return replace(view, value=build.add(Normalize("", (), groups, False, eps, factors), view.value))


def _instance_norm(
    build: Builder, x: fx.Node, weight: fx.Node | None, bias: fx.Node | None, mean: object, variance: object,
    use_input: bool, momentum: float, eps: float, *_: object,
) -> View:  # fmt: skip
    if not use_input:
        raise Unsupported("an instance normalisation by what was seen in training")
    return _group_norm(build, x, build.view(x).sizes[1], weight, bias, eps)


def _batch_norm(
    build: Builder, x: fx.Node, weight: fx.Node | None, bias: fx.Node | None, mean: fx.Node, variance: fx.Node,
    momentum: float, eps: float,
) -> list[View]:  # fmt: skip
    scale = 1 / np.sqrt(build.model.array(variance).astype(np.float64) + eps)
    if weight is not None:
        scale = scale * build.model.array(weight)
    shift: Floats = np.zeros(len(scale), np.float32) if bias is None else build.model.array(bias)
    factors = Scale(scale.astype(np.float32), (shift - build.model.array(mean) * scale).astype(np.float32))
    view = build.with_channels(build.view(x), (1,))
    return [replace(view, value=build.add(Affine("", (), factors), view.value))]


def _vector_norm(
    build: Builder, x: fx.Node, order: float = 2, axes: list[int] | None = None, keep: bool = False, *_: object
) -> View:
    if order != 2:
        raise Unsupported(f"a norm of order {order}")
    view = build.view(x)
    squares = combined(build, Fn.MUL, view, view)
    sums = reduced(build, squares, dims_of(axes, len(view.dims)), keep, "avg", sums=True)
    return unary(build, sums, Activate("", (), Act.SQRT))


LOWERINGS: dict[object, Callable[..., View | list[View]]] = {
    aten.matmul.default: _matmul,
    aten.bmm.default: _matmul,
    aten.einsum.default: _einsum,
    aten.scaled_dot_product_attention.default: _attention,
    aten.softmax.int: _softmax,
    aten._softmax.default: _softmax,
    aten.layer_norm.default: _layer_norm,
    aten.native_layer_norm.default: lambda build, *arguments: [_layer_norm(build, *arguments)],
    aten.group_norm.default: _group_norm,
    aten.instance_norm.default: _instance_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.linalg_vector_norm.default: _vector_norm,
}
