"""A program as the C header wants it: `native/splore.h`, whose structs and numbers are said here once more."""

import ctypes
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from splore.engine.integer import Convert, Table
from splore.engine.library import Array, RawProgram
from splore.engine.program import Act, Activate, Add, Affine, Concat, Conv, Flatten, IntConv, Mul, Op, Pool, Program
from splore.engine.tensor_ops import (
    Clamp,
    Combine,
    Constant,
    Fn,
    Leaky,
    MatMul,
    Normalize,
    Reorder,
    Resample,
    Softmax,
)
from splore.engine.weight import Floats, Scale

_TYPES = [np.dtype(name) for name in ("float32", "uint32", "int8", "uint8")]

# The words of an operation, in the header's order.
_WORDS = [
    "kind", "act", "inputs_begin", "inputs_count", "outputs", "kernel_h", "kernel_w", "stride_h", "stride_w", "pad_top",
    "pad_left", "pad_bottom", "pad_right", "dilation_h", "dilation_w", "groups", "count_pad", "fn", "rank", "size_h",
    "size_w", "bias", "dense", "A", "B", "values", "columns", "rows", "scale", "shift",
    "quant", "weight_scale", "A_scale", "B_scale", "t_scale", "table",
]  # fmt: skip
_ARRAYS = _WORDS[_WORDS.index("bias") :]
_CONV, _MAX_POOL, _AVG_POOL, _ADD, _MUL, _ACTIVATE, _AFFINE, _CONCAT, _FLATTEN = range(9)
_REORDER, _RESAMPLE, _CONSTANT, _COMBINE, _LEAKY, _CLAMP, _NORM_PIXEL, _NORM_GROUP = range(9, 17)
_SOFTMAX, _MATMUL, _MATMUL_TRANSPOSED, _INT_CONV, _CONVERT, _LOOKUP = range(17, 23)
_INT_NAMES = {"blocks": "values", "positions": "columns", "scale": "weight_scale"}


def raw_program(program: Program) -> tuple[RawProgram, list]:
    """The program as the header wants it, and what must stay alive as long as an engine of it."""
    arrays: list[NDArray] = []
    inputs: list[int] = []
    words = np.zeros((len(program.ops), len(_WORDS)), np.int64)
    words[:, [_WORDS.index(name) for name in _ARRAYS]] = -1

    for row, op in zip(words, program.ops, strict=True):
        for name, value in (_words(op) | _quant_word(op)).items():
            if isinstance(value, np.ndarray):
                arrays.append(value)
                value = len(arrays) - 1
            row[_WORDS.index(name)] = value
        row[_WORDS.index("inputs_begin")], row[_WORDS.index("inputs_count")] = len(inputs), len(op.inputs)
        inputs.extend(op.inputs)

    raw_arrays = (Array * max(1, len(arrays)))(*(Array(a.ctypes.data, a.size, _TYPES.index(a.dtype)) for a in arrays))
    raw_inputs = (ctypes.c_int64 * len(inputs))(*inputs)
    raw = RawProgram(
        ctypes.sizeof(RawProgram),
        len(_WORDS),
        ctypes.sizeof(Array),
        (ctypes.c_int64 * 3)(*program.input),
        len(program.ops),
        words.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)),
        len(inputs),
        ctypes.cast(raw_inputs, ctypes.POINTER(ctypes.c_int64)),
        len(arrays),
        ctypes.cast(raw_arrays, ctypes.POINTER(Array)),
    )
    return raw, [words, raw_inputs, raw_arrays, arrays]


def _words(op: Op) -> dict[str, int | NDArray]:
    """The words of an operation that are not zero, or not absent."""
    act = list(Act).index(getattr(op, "act", Act.NONE))
    if isinstance(op, Conv):
        window = _window(op.kernel, op.stride, op.pad) | {"dilation_h": op.dilation[0], "dilation_w": op.dilation[1]}
        parts = {_INT_NAMES.get(f.name, f.name): getattr(op.weight, f.name) for f in fields(op.weight)}
        kind = _INT_CONV if isinstance(op, IntConv) else _CONV
        return {
            "kind": kind, "act": act, "outputs": op.bias.size, "groups": op.groups, "bias": op.bias,
            "rank": 0 if op.weight.A is None else op.weight.A.shape[1],
            **window, **{name: part for name, part in parts.items() if part is not None}, **_scale(op.pre),
        }  # fmt: skip
    if isinstance(op, Pool):
        window = _window(op.kernel, op.stride, op.pad) | {"dilation_h": 1, "dilation_w": 1}
        kind = _MAX_POOL if op.mode == "max" else _AVG_POOL
        return {"kind": kind, "count_pad": int(op.count_include_pad), **window}
    if isinstance(op, Affine):
        return {"kind": _AFFINE, "act": act, **_scale(op.factors)}
    if isinstance(op, Combine):
        return {"kind": _COMBINE, "act": act, "fn": list(Fn).index(op.fn)}
    if isinstance(op, Table):
        return {"kind": _LOOKUP, "table": op.table}
    if not isinstance(op, Convert | Add | Mul | Activate | Concat | Flatten):
        return _tensor_words(op)
    kinds = {Add: _ADD, Mul: _MUL, Activate: _ACTIVATE, Concat: _CONCAT, Flatten: _FLATTEN, Convert: _CONVERT}
    return {"kind": kinds[type(op)], "act": act}


def _quant_word(op: Op) -> dict[str, NDArray]:
    """How the result is stored in bytes, where it is."""
    quant = getattr(op, "quant", None)
    return {} if quant is None else {"quant": np.array([quant.scale, quant.zero], np.float32)}


def _tensor_words(op: Op) -> dict[str, int | NDArray]:
    """The words of an operation on tensors."""
    if isinstance(op, Reorder):
        dims = (op.channels, op.height, op.width)
        factors = [number for factors in dims for factor in factors for number in factor]
        places = np.array([*op.offset, *map(len, dims), *factors], np.uint32)
        return {"kind": _REORDER, "columns": places}
    if isinstance(op, Resample):
        (height, rows), (width, columns) = op.row_index.shape, op.column_index.shape
        return {
            "kind": _RESAMPLE, "size_h": height, "size_w": width, "kernel_h": rows, "kernel_w": columns,
            "columns": np.concatenate([op.row_index, op.column_index], None),
            "values": np.concatenate([op.row_weight, op.column_weight], None),
        }  # fmt: skip
    if isinstance(op, Constant):
        c, height, width = op.data.shape
        return {"kind": _CONSTANT, "outputs": c, "size_h": height, "size_w": width, "values": op.data}
    if isinstance(op, Leaky):
        return {"kind": _LEAKY, "scale": op.slope}
    if isinstance(op, Clamp):
        return {"kind": _CLAMP, "values": np.array([op.low, op.high], np.float32)}
    if isinstance(op, Normalize):
        kind = _NORM_PIXEL if op.pixelwise else _NORM_GROUP
        return {"kind": kind, "groups": op.groups, "values": np.array([op.eps], np.float32), **_scale(op.factors)}
    if isinstance(op, Softmax):
        return {"kind": _SOFTMAX, "groups": op.groups}
    assert isinstance(op, MatMul)
    kind = _MATMUL_TRANSPOSED if op.transposed else _MATMUL
    return {"kind": kind, "groups": op.groups, "values": np.array([op.scale], np.float32)}


def _window(kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int, int, int]) -> dict[str, int]:
    names = ["kernel_h", "kernel_w", "stride_h", "stride_w", "pad_top", "pad_left", "pad_bottom", "pad_right"]
    return dict(zip(names, (*kernel, *stride, *pad), strict=True))


def _scale(factors: Scale | None) -> dict[str, Floats]:
    return {} if factors is None else {"scale": factors.scale, "shift": factors.shift}
