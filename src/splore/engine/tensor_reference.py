"""The readable twin of the operations in `splore.engine.tensor_ops`."""

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import as_strided

from splore.engine.program import Op
from splore.engine.tensor_ops import Clamp, Fn, Leaky, MatMul, Normalize, Reorder, Resample, Softmax
from splore.engine.weight import Floats

COMBINED: dict[Fn, Callable[[Floats, Floats], Floats]] = {
    Fn.ADD: np.add, Fn.SUB: np.subtract, Fn.MUL: np.multiply, Fn.DIV: np.divide, Fn.MAX: np.maximum, Fn.MIN: np.minimum,
}  # fmt: skip


def apply(op: Op, x: Floats, *others: Floats) -> Floats:
    """One operation on its inputs, each (N, C, H, W)."""
    if isinstance(op, Reorder):
        return reorder(op, x)
    if isinstance(op, Resample):
        return resample(op, x)
    if isinstance(op, Leaky):
        return np.where(x < 0, x * op.slope[:, None, None], x)
    if isinstance(op, Clamp):
        return np.clip(x, np.float32(op.low), np.float32(op.high))
    if isinstance(op, Normalize):
        return normalize(op, x)
    if isinstance(op, Softmax):
        grouped = x.reshape(len(x), op.groups, -1, *x.shape[2:])
        powers = np.exp(grouped - grouped.max(2, keepdims=True))
        return (powers / powers.sum(2, keepdims=True)).reshape(x.shape)
    if isinstance(op, MatMul):
        return matmul(op, x, others[0])
    raise TypeError(f"no such operation: {type(op).__name__}")


def reorder(op: Reorder, x: Floats) -> Floats:
    """The elements at the steps of the factors."""
    x = np.ascontiguousarray(x)
    factors = (*op.channels, *op.height, *op.width)
    start = x[:, op.offset[0] :, op.offset[1] :, op.offset[2] :]
    shape = (len(x), *(factor.size for factor in factors))
    strides = (x.strides[0], *(factor.stride * x.strides[1 + factor.axis] for factor in factors))
    return as_strided(start, shape, strides, writeable=False).reshape(len(x), *op.shape(x.shape[1:]))


def resample(op: Resample, x: Floats) -> Floats:
    """Weighted sums of rows, then of columns."""
    rows = (x[:, :, op.row_index] * op.row_weight[:, :, None]).sum(3, dtype=np.float32)
    return (rows[..., op.column_index] * op.column_weight).sum(-1, dtype=np.float32)


def normalize(op: Normalize, x: Floats) -> Floats:
    """Each group of channels less its mean, over its deviation."""
    grouped = x.reshape(len(x), op.groups, -1, *x.shape[2:])
    axes = (2,) if op.pixelwise else (2, 3, 4)
    centred = grouped - grouped.mean(axes, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axes, keepdims=True) + np.float32(op.eps))
    return (centred / deviation).reshape(x.shape) * op.factors.scale[:, None, None] + op.factors.shift[:, None, None]


def matmul(op: MatMul, x: Floats, b: Floats) -> Floats:
    """A product for each image and group."""
    x, b = (value.reshape(len(x), op.groups, -1, value.shape[3]) for value in (x, b))
    y = np.float32(op.scale) * ((b.swapaxes(2, 3) if op.transposed else b) @ x)
    return y.reshape(len(x), -1, 1, x.shape[3])
