"""The readable twin of the native kernels: runs a program with NumPy, one obvious step per operation.

It composes every weight and multiplies it densely, so it is right, and slow: tens of times slower than the kernels on a
sparse network. The tests hold the kernels to it, and a machine where the native library can't load falls back to it.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from splore.engine import integer_reference, tensor_reference
from splore.engine.program import Act, Activate, Add, Affine, Concat, Conv, Flatten, Mul, Op, Pair, Pool, Program
from splore.engine.tensor_ops import Combine, Constant
from splore.engine.weight import Floats, Scale, Weight


def run(program: Program, x: Floats) -> Floats:
    """The program's output (N, C', H', W') for the images x (N, C, H, W); N may be 0."""
    if x.ndim != 4 or x.shape[1:] != program.input:
        raise ValueError(f"expected images of shape (N, {', '.join(map(str, program.input))}), found {x.shape}")
    last_use = {value: index for index, op in enumerate(program.ops) for value in op.inputs}
    values = {0: np.ascontiguousarray(x, np.float32)}
    for index, op in enumerate(program.ops):
        if isinstance(op, Constant):
            values[index + 1] = np.broadcast_to(op.data, (len(x), *op.data.shape))
            continue
        inputs = tuple(values[value] for value in op.inputs)
        quants = tuple(program.quants[value] for value in (*op.inputs, index + 1))
        in_bytes = any(quant is not None for quant in quants)
        values[index + 1] = integer_reference.apply(op, inputs, quants[:-1]) if in_bytes else apply(op, *inputs)
        for value in op.inputs:
            if last_use[value] == index:
                values.pop(value, None)
    return values[len(program.ops)]


def apply(op: Op, *inputs: Floats) -> Floats:
    """One operation on its inputs, at least one, each (N, C, H, W)."""
    x = inputs[0]
    if isinstance(op, Conv):
        y = convolve(op, x)
        return activate(y if len(inputs) == 1 else y + inputs[1], op.act)
    if isinstance(op, Pool):
        return pool(op, x)
    if isinstance(op, Add):
        return activate(x + inputs[1], op.act)
    if isinstance(op, Mul):
        return activate(x * inputs[1], op.act)
    if isinstance(op, Activate):
        return activate(x, op.act)
    if isinstance(op, Affine):
        return activate(scaled(x, op.factors), op.act)
    if isinstance(op, Concat):
        return np.concatenate(inputs, axis=1)
    if isinstance(op, Flatten):
        return x.reshape(len(x), math.prod(x.shape[1:]), 1, 1)
    if isinstance(op, Combine):
        return activate(tensor_reference.COMBINED[op.fn](x, inputs[1]), op.act)
    return tensor_reference.apply(op, *inputs)


def compose(weight: Weight, k: int) -> Floats:
    """The matrix of a weight, (n, k): the sum of its parts."""
    parts = []
    if weight.dense is not None:
        parts.append(weight.dense)
    if weight.A is not None and weight.B is not None:
        parts.append(weight.A @ weight.B)
    if weight.values is not None and weight.columns is not None and weight.rows is not None:
        n = len(weight.rows) - 1
        sparse = np.zeros((n, k), np.float32)
        sparse[np.repeat(np.arange(n), np.diff(weight.rows)), weight.columns] = weight.values
        parts.append(sparse)
    return sum(parts[1:], start=parts[0])


def convolve(op: Conv, x: Floats) -> Floats:
    """W * x + bias, without the residual and the activation."""
    if op.pre is not None:
        x = np.maximum(scaled(x, op.pre), 0)
    windows = _windows(x, op.kernel, op.stride, op.pad, op.dilation, 0.0)  # (N, c, H', W', kh, kw)
    images, c, height, width, kh, kw = windows.shape
    per_group = c // op.groups * kh * kw
    columns = windows.transpose(1, 4, 5, 0, 2, 3).reshape(op.groups, per_group, images * height * width)
    matrix = compose(op.weight, per_group)
    y = matrix.reshape(op.groups, -1, per_group) @ columns
    y = y.reshape(op.bias.size, images, height, width) + op.bias[:, None, None, None]
    return np.ascontiguousarray(y.swapaxes(0, 1))


def pool(op: Pool, x: Floats) -> Floats:
    """The maximum or the mean of each window."""
    if op.mode == "max":
        return _windows(x, op.kernel, op.stride, op.pad, (1, 1), -np.inf).max((-2, -1))
    total = _windows(x, op.kernel, op.stride, op.pad, (1, 1), 0.0).sum((-2, -1), dtype=np.float32)
    counted = _windows(np.ones_like(x[:1, :1]), op.kernel, op.stride, op.pad, (1, 1), float(op.count_include_pad))
    return total / counted.sum((-2, -1), dtype=np.float32)


def scaled(x: Floats, factors: Scale) -> Floats:
    """scale x + shift, per channel."""
    return x * factors.scale[:, None, None] + factors.shift[:, None, None]


_erf = np.vectorize(math.erf, otypes=[np.float32])


def activate(x: Floats, act: Act) -> Floats:
    """act(x), elementwise."""
    if act is Act.NONE:
        return x
    if act is Act.RELU:
        return np.maximum(x, 0)
    if act is Act.RELU6:
        return np.clip(x, 0, 6)
    if act is Act.SIGMOID or act is Act.SILU:
        with np.errstate(over="ignore"):
            sigmoid = 1 / (1 + np.exp(-x))
        return np.asarray(x * sigmoid if act is Act.SILU else sigmoid, np.float32)
    if act is Act.HARDSIGMOID or act is Act.HARDSWISH:
        hard = np.clip(x + 3, 0, 6) / 6
        return np.asarray(x * hard if act is Act.HARDSWISH else hard, np.float32)
    if act is Act.GELU:
        return (x * (1 + _erf(x / np.sqrt(np.float32(2)))) / 2) if x.size else x
    with np.errstate(all="ignore"):
        return np.asarray(FUNCTIONS[act](x), np.float32)


FUNCTIONS: dict[Act, Callable[[Floats], Floats]] = {
    Act.GELU_TANH: lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    Act.TANH: np.tanh,
    Act.EXP: np.exp,
    Act.SQRT: np.sqrt,
    Act.RECIPROCAL: np.reciprocal,
    Act.ABS: np.abs,
    Act.ELU: lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    Act.MISH: lambda x: x * np.tanh(np.logaddexp(0, x)),
}


def _windows(
    x: Floats, kernel: Pair, stride: Pair, pad: tuple[int, int, int, int], dilation: Pair, fill: float
) -> Floats:
    """Every window of the padded images: (N, C, H', W', kh, kw)."""
    top, left, bottom, right = pad
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    windows = sliding_window_view(padded, reach, axis=(2, 3))
    return windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
