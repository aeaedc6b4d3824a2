"""The readable twin of the kernels in eight bits. The kernels equal it bit for bit.

Sums of products are integers, and exact. Then come factors and offsets that are made in float64 and rounded to float32
once, one product and one sum in float32 at a time, the clamp of the activation and of a byte, and the rounding to the
nearest integer, half to even.
"""

import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from splore.engine.integer import BLOCK, LARGEST, Convert, IntWeight, Quant, Table
from splore.engine.program import Add, Affine, Concat, Flatten, IntConv, Mul, Pool
from splore.engine.weight import Floats, owners

Quants = tuple[Any, ...]  # of each input, a Quant or None, as `check_quants` has found right

T_ZERO = 128  # of t = B x, whose bytes are 1 to 255


def apply(op: Any, inputs: tuple[NDArray, ...], quants: Quants) -> NDArray:  # noqa: ANN401
    """One operation on its inputs (N, C, H, W), each in bytes where its `quants` says how."""
    x, at = inputs[0], quants[0]
    to: Any = op.quant
    if isinstance(op, Convert):
        if to is None:
            return f32(x.astype(np.int32) - at.zero) * np.float32(at.scale)
        return stored(x * np.float32(1 / to.scale) + np.float32(to.zero), to)
    if isinstance(op, Table):
        return op.table[x]
    if isinstance(op, IntConv):
        return convolve(op, inputs, quants)
    if isinstance(op, Flatten):
        return x.reshape(len(x), math.prod(x.shape[1:]), 1, 1)
    if isinstance(op, Pool):
        return pool(op, x, at, to)
    if isinstance(op, Concat):
        return np.concatenate([moved(y, quant, to) for y, quant in zip(inputs, quants, strict=True)], axis=1)
    if isinstance(op, Affine):
        scale, shift = (a.astype(np.float64)[:, None, None] for a in (op.factors.scale, op.factors.shift))
        factor = scale * at.scale / to.scale
        offset = (shift / to.scale + to.zero) - factor * at.zero
        return stored(f32(x) * f32(factor) + f32(offset), to, op.act)
    y, other = inputs[1], quants[1]
    if isinstance(op, Add):
        first, second = at.scale / to.scale, other.scale / to.scale
        offset = (to.zero - first * at.zero) - second * other.zero
        return stored((f32(x) * f32(first) + f32(offset)) + f32(y) * f32(second), to, op.act)
    if isinstance(op, Mul):
        product = (x.astype(np.int32) - at.zero) * (y.astype(np.int32) - other.zero)
        return stored(f32(product) * f32(at.scale * other.scale / to.scale) + f32(to.zero), to, op.act)
    raise TypeError(f"no such operation in bytes: {type(op).__name__}")


def convolve(op: IntConv, inputs: tuple[NDArray, ...], quants: Quants) -> NDArray:
    """act(W * x + bias + residual): in bytes, or in float32 where the result is."""
    x, at, to = inputs[0], quants[0], op.quant
    weight: Any = op.weight
    per_group = x.shape[1] // op.groups
    windows = columns(op, x, at.zero)
    scale, zero = (1.0, 0) if to is None else (to.scale, to.zero)
    offset = op.bias.astype(np.float64) / scale + zero
    if len(inputs) == 2:
        offset = offset - quants[1].zero * quants[1].scale / scale
    factor = weight.scale.astype(np.float64) * at.scale / scale
    matrix = compose(weight, per_group, math.prod(op.kernel))
    y = f32(sums(matrix, windows)) * per_channel(factor) + per_channel(offset)
    if weight.A is not None:
        t_scale = float(weight.t_scale[0])
        down = weight.B_scale.astype(np.float64) * at.scale / t_scale
        t = f32(sums(weight.B, windows)) * per_channel(down) + np.float32(T_ZERO)
        t = np.rint(np.clip(t, 1, LARGEST)).astype(np.int32) - T_ZERO
        up = weight.A_scale.astype(np.float64) * t_scale / scale
        y = y + f32(sums(weight.A, t[None])) * per_channel(up)
    y = y.swapaxes(0, 1)
    if len(inputs) == 2:
        y = y + f32(inputs[1]) * f32(quants[1].scale / scale)
    if to is not None:
        return stored(y, to, op.act)
    from splore.engine.reference import activate

    return np.ascontiguousarray(activate(y, op.act))


def compose(weight: IntWeight, channels: int, taps: int) -> NDArray[np.int32]:
    """The dense and the block part added up: (n, channels taps)."""
    n = weight.scale.size
    matrix = np.zeros((n, -(-channels // BLOCK) * BLOCK, taps), np.int32)
    if weight.dense is not None:
        matrix[:, :channels] += weight.dense.reshape(n, channels, taps)
    if weight.blocks is not None and weight.positions is not None and weight.rows is not None:
        row = owners(weight.rows)
        group, tap = np.divmod(weight.positions.astype(np.int64), taps)
        for i in range(BLOCK):
            matrix[row, group * BLOCK + i, tap] += weight.blocks[:, i]
    return matrix[:, :channels].reshape(n, channels * taps)


def columns(op: IntConv, x: NDArray[np.uint8], zero: int) -> NDArray[np.int32]:
    """What each window sees, less the zero point: (groups, c / groups kh kw, N, H', W')."""
    padded = np.pad(x.astype(np.int32) - zero, ((0, 0), (0, 0), op.pad[::2], op.pad[1::2]))
    reach = [d * (k - 1) + 1 for d, k in zip(op.dilation, op.kernel, strict=True)]
    windows = sliding_window_view(padded, reach, axis=(2, 3))
    windows = windows[:, :, :: op.stride[0], :: op.stride[1], :: op.dilation[0], :: op.dilation[1]]
    images, c, height, width, kh, kw = windows.shape
    return windows.transpose(1, 4, 5, 0, 2, 3).reshape(op.groups, c // op.groups * kh * kw, images, height, width)


def sums(matrix: NDArray, windows: NDArray[np.int32]) -> NDArray[np.int32]:
    """The products of rows and windows, (n, N, H', W'). They fit 32 bits, so float64 holds them exactly."""
    groups, k, *rest = windows.shape
    found = matrix.astype(np.float64).reshape(groups, -1, k) @ windows.astype(np.float64).reshape(groups, k, -1)
    return found.reshape(-1, *rest).astype(np.int32)


def pool(op: Pool, x: NDArray[np.uint8], at: Quant, to: Quant) -> NDArray[np.uint8]:
    """The maximum or the mean of each window."""
    top, left, bottom, right = op.pad
    sides = ((0, 0), (0, 0), (top, bottom), (left, right))

    def windows(values: NDArray) -> NDArray:
        return sliding_window_view(values, op.kernel, axis=(2, 3))[:, :, :: op.stride[0], :: op.stride[1]]

    if op.mode == "max":
        return windows(np.pad(x, sides)).max((-2, -1))
    inside = windows(np.pad(np.ones((1, 1, *x.shape[2:]), np.int64), sides)).sum((-2, -1))
    counted = windows(np.ones((1, 1, *np.add(x.shape[2:], (top + bottom, left + right))), np.int64)).sum((-2, -1))
    total = windows(np.pad(x.astype(np.int64), sides)).sum((-2, -1)) - at.zero * inside
    factor = at.scale / (to.scale * (counted if op.count_include_pad else inside))
    return stored(f32(total) * f32(factor) + np.float32(to.zero), to)


def moved(x: NDArray[np.uint8], at: Quant, to: Quant) -> NDArray[np.uint8]:
    """A value that is stored in another way."""
    factor = at.scale / to.scale
    return x if at == to else stored(f32(x) * f32(factor) + f32(to.zero - factor * at.zero), to)


def stored(y: Floats, quant: Quant, act: str = "none") -> NDArray[np.uint8]:
    """The bytes of y, which is in steps of the scale from the lowest byte on; relu and relu6 are clamps."""
    low = 0 if act == "none" else quant.zero
    high = min(np.float32(LARGEST), np.float32(6 / quant.scale + quant.zero)) if act == "relu6" else LARGEST
    return np.rint(np.clip(y, np.float32(low), np.float32(high))).astype(np.uint8)


def per_channel(values: NDArray[np.float64]) -> Floats:
    return f32(values)[:, None, None, None]


def f32(x: Any) -> Any:  # noqa: ANN401
    return np.asarray(x).astype(np.float32)
