"""The program: what the engine runs, as data.

A program computes one image at a time, in float32. Its values are numbered: value 0 is the input, and operation i
writes value i + 1; the last value is the output. Every value has a shape (C, H, W); a flat vector of C numbers is
(C, 1, 1).

A `Program` that exists is valid: its constructor checks every shape, index and size, and raises `ValueError` with the
operation at fault. The native engine checks all of it once more, for its C interface may be called by others.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int]
Pair = tuple[int, int]
Floats = NDArray[np.float32]
Indices = NDArray[np.uint32]

MAX_ELEMENTS = 1 << 28  # of one value of one image, its zero padding included: 1 GiB
MAX_ATTRIBUTE = 1 << 20  # of a stride, a pad, a kernel side, a dilation
MAX_OPS = 1 << 14
MAX_NAME = 200  # characters


class Act(str, Enum):
    """The function applied to each element, last."""

    NONE = "none"
    RELU = "relu"
    RELU6 = "relu6"
    SILU = "silu"
    SIGMOID = "sigmoid"
    HARDSWISH = "hardswish"
    HARDSIGMOID = "hardsigmoid"
    GELU = "gelu"  # the exact one, with erf


@dataclass(frozen=True, eq=False)
class Weight:
    """The matrix of a convolution, (n, k) with k = (c / groups) kh kw, as a sum of any of three parts.

    - `dense` (n, k);
    - `A` (n, r) and `B` (r, k): A·B, for one group only;
    - `values` (z), `columns` (z) and `rows` (n + 1): a sparse matrix in CSR, for one group only. Row i holds the
      entries rows[i] to rows[i + 1]; columns are strictly increasing within a row.

    Columns run over (input channel, kernel row, kernel column), the last one fastest.
    """

    dense: Floats | None = None
    A: Floats | None = None
    B: Floats | None = None
    values: Floats | None = None
    columns: Indices | None = None
    rows: Indices | None = None

    def check(self, n: int, k: int, groups: int) -> None:
        if (self.A is None) != (self.B is None):
            raise ValueError("A and B come together, found only one of them")
        if len({part is None for part in (self.values, self.columns, self.rows)}) != 1:
            raise ValueError("values, columns and rows come together, found only some of them")
        if self.dense is None and self.A is None and self.values is None:
            raise ValueError("a weight needs a dense, a low-rank or a sparse part, found none")
        if groups != 1 and (self.A is not None or self.values is not None):
            raise ValueError(f"a grouped convolution takes a dense weight only, found groups={groups}")
        if self.dense is not None:
            _expect_array("dense", self.dense, np.float32, (n, k))
        if self.A is not None and self.B is not None:
            rank = self.A.shape[1] if self.A.ndim == 2 else -1
            if not 1 <= rank <= min(n, k):
                raise ValueError(f"A must be ({n}, r) with r from 1 to {min(n, k)}, found {self.A.shape}")
            _expect_array("A", self.A, np.float32, (n, rank))
            _expect_array("B", self.B, np.float32, (rank, k))
        if self.values is not None and self.columns is not None and self.rows is not None:
            _check_sparse(self.values, self.columns, self.rows, n, k)


@dataclass(frozen=True, eq=False)
class Scale:
    """Per-channel x * scale + shift: both (c)."""

    scale: Floats
    shift: Floats

    def check(self, channels: int) -> None:
        _expect_array("scale", self.scale, np.float32, (channels,))
        _expect_array("shift", self.shift, np.float32, (channels,))


@dataclass(frozen=True, eq=False)
class Conv:
    """act(W * x' + bias + residual), with x' = x, or relu(pre.scale x + pre.shift) where there is a `pre`.

    `inputs` is (x,) or (x, residual). `pre` comes before the zero padding. A linear layer is a 1 x 1 convolution of a
    (C, 1, 1) value.
    """

    name: str
    inputs: tuple[int, ...]
    weight: Weight
    bias: Floats  # (n)
    kernel: Pair = (1, 1)  # (kh, kw)
    stride: Pair = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: Pair = (1, 1)
    groups: int = 1
    act: Act = Act.NONE
    pre: Scale | None = None

    def shape(self, *inputs: Shape) -> Shape:
        _expect_inputs(inputs, 1, 2)
        c, n = inputs[0][0], self.bias.size
        if self.groups < 1 or c % self.groups or n % self.groups:
            raise ValueError(f"groups must divide the {c} input and {n} output channels, found {self.groups}")
        _expect_array("bias", self.bias, np.float32, (n,))
        height, width = _window(inputs[0], self.kernel, self.stride, self.pad, self.dilation)
        self.weight.check(n, c // self.groups * self.kernel[0] * self.kernel[1], self.groups)
        if self.pre is not None:
            self.pre.check(c)
        if len(inputs) == 2 and inputs[1] != (n, height, width):
            raise ValueError(f"the residual must have the output's shape {(n, height, width)}, found {inputs[1]}")
        return n, height, width


@dataclass(frozen=True, eq=False)
class Pool:
    """The maximum or the mean of each window; global pooling is a window of the full size.

    Each pad is below the kernel's side, so that no window is empty. A mean counts the padded zeros where
    `count_include_pad` is true; a maximum never sees them.
    """

    name: str
    inputs: tuple[int, ...]
    mode: str  # max, avg
    kernel: Pair
    stride: Pair
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    count_include_pad: bool = False

    def shape(self, *inputs: Shape) -> Shape:
        _expect_inputs(inputs, 1)
        if self.mode not in ("max", "avg"):
            raise ValueError(f"mode must be max or avg, found {self.mode!r}")
        height, width = _window(inputs[0], self.kernel, self.stride, self.pad, (1, 1))
        if any(pad >= side for pad, side in zip(self.pad, self.kernel * 2, strict=True)):
            raise ValueError(f"a pad must be smaller than the window {self.kernel}, found {self.pad}")
        return inputs[0][0], height, width


@dataclass(frozen=True, eq=False)
class Add:
    """act(a + b) of two values of one shape."""

    name: str
    inputs: tuple[int, ...]
    act: Act = Act.NONE

    def shape(self, *inputs: Shape) -> Shape:
        _expect_inputs(inputs, 2)
        if inputs[0] != inputs[1]:
            raise ValueError(f"expected two values of one shape, found {inputs[0]} and {inputs[1]}")
        return inputs[0]


@dataclass(frozen=True, eq=False)
class Mul:
    """act(a * b); b has the shape of a, or is (C, 1, 1) and counts for every pixel."""

    name: str
    inputs: tuple[int, ...]
    act: Act = Act.NONE

    def shape(self, *inputs: Shape) -> Shape:
        _expect_inputs(inputs, 2)
        a, b = inputs
        if b not in (a, (a[0], 1, 1)):
            raise ValueError(f"expected a second value of shape {a} or {(a[0], 1, 1)}, found {b}")
        return a


@dataclass(frozen=True, eq=False)
class Activate:
    """act(x)."""

    name: str
    inputs: tuple[int, ...]
    act: Act

    def shape(self, *inputs: Shape) -> Shape:
        _expect_inputs(inputs, 1)
        return inputs[0]


@dataclass(frozen=True, eq=False)
class Affine:
    """act(scale x + shift) per channel: a batch normalisation that found no convolution to join."""

    name: str
    inputs: tuple[int, ...]
    factors: Scale
    act: Act = Act.NONE

    def shape(self, *inputs: Shape) -> Shape:
        _expect_inputs(inputs, 1)
        self.factors.check(inputs[0][0])
        return inputs[0]


@dataclass(frozen=True, eq=False)
class Concat:
    """The channels of all inputs, one after another."""

    name: str
    inputs: tuple[int, ...]

    def shape(self, *inputs: Shape) -> Shape:
        _expect_inputs(inputs, 1, len(inputs))
        if len({shape[1:] for shape in inputs}) != 1:
            raise ValueError(f"expected values of one height and width, found {list(inputs)}")
        return (sum(shape[0] for shape in inputs), *inputs[0][1:])


@dataclass(frozen=True, eq=False)
class Flatten:
    """(C, H, W) -> (C H W, 1, 1), the last dimension fastest."""

    name: str
    inputs: tuple[int, ...]

    def shape(self, *inputs: Shape) -> Shape:
        _expect_inputs(inputs, 1)
        c, height, width = inputs[0]
        return c * height * width, 1, 1


Op = Conv | Pool | Add | Mul | Activate | Affine | Concat | Flatten


@dataclass(frozen=True, eq=False)
class Program:
    """Operations in the order in which they run; see the module's docstring.

    Raises ValueError, naming the operation, where one of them is not valid.
    """

    input: Shape
    ops: tuple[Op, ...]
    flat_input: bool = False  # the caller gives (N, C), not (N, C, 1, 1)
    flat_output: bool = False  # the caller gets (N, C), not (N, C, 1, 1)

    def __post_init__(self) -> None:
        for flat, shape in ((self.flat_input, self.shapes[0]), (self.flat_output, self.shapes[-1])):
            if flat and shape[1:] != (1, 1):
                raise ValueError(f"a flat input or output must be (C, 1, 1), found {shape}")

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """The shape of every value: the input's, then one for each operation."""
        if not 1 <= len(self.ops) <= MAX_OPS:
            raise ValueError(f"a program needs 1 to {MAX_OPS} operations, found {len(self.ops)}")
        shapes = [_expect_shape(self.input)]
        for index, op in enumerate(self.ops):
            try:
                if len(op.name) > MAX_NAME or not op.name.isprintable():
                    raise ValueError(f"a name must be at most {MAX_NAME} printable characters")
                if any(not 0 <= value <= index for value in op.inputs):
                    raise ValueError(f"inputs must be values made before, 0 to {index}, found {list(op.inputs)}")
                shapes.append(_expect_shape(op.shape(*(shapes[value] for value in op.inputs))))
            except ValueError as error:
                raise ValueError(f"operation {index} ({type(op).__name__} {op.name[:MAX_NAME]!r}): {error}") from error
        return tuple(shapes)

    @property
    def output(self) -> Shape:
        return self.shapes[-1]

    @property
    def multiply_adds(self) -> int:
        """Of one image, the convolutions only: what is stored counts, zeros that are not stored don't."""
        return sum(
            array.size * (shape[1] * shape[2])
            for op, shape in zip(self.ops, self.shapes[1:], strict=True)
            if isinstance(op, Conv)
            for array in (op.weight.dense, op.weight.A, op.weight.B, op.weight.values)
            if array is not None
        )


def arrays(op: Op) -> Iterator[tuple[str, NDArray]]:
    """The arrays of an operation with the names they have in a file: `dense`, `A`, ..., `pre.scale`, `bias`."""
    for field in fields(op):
        part = getattr(op, field.name)
        if isinstance(part, np.ndarray):
            yield field.name, part
        elif isinstance(part, Weight | Scale):
            prefix = "pre." if field.name == "pre" else ""
            yield from (
                (prefix + f.name, getattr(part, f.name)) for f in fields(part) if getattr(part, f.name) is not None
            )


def _window(shape: Shape, kernel: Pair, stride: Pair, pad: tuple[int, int, int, int], dilation: Pair) -> Pair:
    """Height and width of what a sliding window gives."""
    for name, numbers, least in (
        ("kernel", kernel, 1),
        ("stride", stride, 1),
        ("pad", pad, 0),
        ("dilation", dilation, 1),
    ):
        if any(not least <= number <= MAX_ATTRIBUTE for number in numbers):
            raise ValueError(f"{name} must lie between {least} and {MAX_ATTRIBUTE}, found {numbers}")
    padded = (shape[1] + pad[0] + pad[2], shape[2] + pad[1] + pad[3])
    if shape[0] * padded[0] * padded[1] > MAX_ELEMENTS:
        raise ValueError(f"the padded input {(shape[0], *padded)} has more than {MAX_ELEMENTS} elements")
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if padded[0] < reach[0] or padded[1] < reach[1]:
        raise ValueError(f"the window reaches over {tuple(reach)}, more than the padded input {padded}")
    return (padded[0] - reach[0]) // stride[0] + 1, (padded[1] - reach[1]) // stride[1] + 1


def _check_sparse(values: Floats, columns: Indices, rows: Indices, n: int, k: int) -> None:
    _expect_array("values", values, np.float32, (values.size,))
    _expect_array("columns", columns, np.uint32, (values.size,))
    _expect_array("rows", rows, np.uint32, (n + 1,))
    if rows[0] != 0 or rows[-1] != values.size or np.any(rows[1:] < rows[:-1]):
        raise ValueError(f"rows must rise from 0 to the {values.size} entries of the sparse part")
    if values.size == 0:
        return
    if columns.max() >= k:
        raise ValueError(f"columns must lie below {k}, found {columns.max()}")
    falling = columns[1:] <= columns[:-1]
    starts = rows[1:-1]  # between two rows the columns may fall
    falling[starts[(starts > 0) & (starts < values.size)].astype(np.int64) - 1] = False
    if falling.any():
        raise ValueError("columns must be strictly increasing within each row")


def _expect_shape(shape: Shape) -> Shape:
    if len(shape) != 3 or min(shape) < 1 or shape[0] * shape[1] * shape[2] > MAX_ELEMENTS:
        raise ValueError(f"a value must be (C, H, W) with 1 to {MAX_ELEMENTS} elements, found {shape}")
    return shape


def _expect_inputs(inputs: tuple[Shape, ...], least: int, most: int | None = None) -> None:
    if not least <= len(inputs) <= (least if most is None else most):
        raise ValueError(f"expected {least}{'' if most is None else f' to {most}'} inputs, found {len(inputs)}")


def _expect_array(name: str, array: NDArray, dtype: type, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be a contiguous {np.dtype(dtype)} array {shape}, found {array.dtype} {array.shape}"
        )
