"""The program: what the engine runs, as data.

A program computes one image at a time, in float32, or in eight bits where an operation has a `quant`
(`splore.engine.integer`). Its values are numbered: value 0 is the input, and operation i
writes value i + 1; the last value is the output. Every value has a shape (C, H, W); a flat vector of C numbers is
(C, 1, 1).

A `Program` that exists is valid: its constructor checks every shape, index and size, and raises `ValueError` with the
operation at fault. The native engine checks all of it once more, for its C interface may be called by others.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from splore.engine.integer import Convert, IntWeight, Quant, Table, check_quants
from splore.engine.tensor_ops import Clamp, Combine, Constant, Leaky, MatMul, Normalize, Reorder, Resample, Softmax
from splore.engine.values import (
    MAX_DIMS,
    MAX_NAME,
    MAX_OPS,
    Act,
    Pair,
    Shape,
    expect_inputs,
    expect_shape,
    window_shape,
)
from splore.engine.weight import Floats, Scale, Weight, expect_array


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
        expect_inputs(inputs, 1, 2)
        c, n = inputs[0][0], self.bias.size
        if self.groups < 1 or c % self.groups or n % self.groups:
            raise ValueError(f"groups must divide the {c} input and {n} output channels, found {self.groups}")
        expect_array("bias", self.bias, np.float32, (n,))
        height, width = window_shape(inputs[0], self.kernel, self.stride, self.pad, self.dilation)
        self.weight.check(n, c // self.groups, self.kernel[0] * self.kernel[1], self.groups)
        if self.pre is not None:
            self.pre.check(c)
        if len(inputs) == 2 and inputs[1] != (n, height, width):
            raise ValueError(f"the residual must have the output's shape {(n, height, width)}, found {inputs[1]}")
        return n, height, width


@dataclass(frozen=True, eq=False)
class IntConv(Conv):
    """A convolution of values in bytes, with weights in bytes; its result is in float32 where there is no `quant`."""

    weight: IntWeight  # type: ignore[assignment]
    quant: Quant | None = None


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
    quant: Quant | None = None

    def shape(self, *inputs: Shape) -> Shape:
        expect_inputs(inputs, 1)
        if self.mode not in ("max", "avg"):
            raise ValueError(f"mode must be max or avg, found {self.mode!r}")
        height, width = window_shape(inputs[0], self.kernel, self.stride, self.pad, (1, 1))
        if any(pad >= side for pad, side in zip(self.pad, self.kernel * 2, strict=True)):
            raise ValueError(f"a pad must be smaller than the window {self.kernel}, found {self.pad}")
        return inputs[0][0], height, width


@dataclass(frozen=True, eq=False)
class Add:
    """act(a + b) of two values of one shape."""

    name: str
    inputs: tuple[int, ...]
    act: Act = Act.NONE
    quant: Quant | None = None  # of the sum

    def shape(self, *inputs: Shape) -> Shape:
        expect_inputs(inputs, 2)
        if inputs[0] != inputs[1]:
            raise ValueError(f"expected two values of one shape, found {inputs[0]} and {inputs[1]}")
        return inputs[0]


@dataclass(frozen=True, eq=False)
class Mul:
    """act(a * b); b has the shape of a, or is (C, 1, 1) and counts for every pixel."""

    name: str
    inputs: tuple[int, ...]
    act: Act = Act.NONE
    quant: Quant | None = None

    def shape(self, *inputs: Shape) -> Shape:
        expect_inputs(inputs, 2)
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
        expect_inputs(inputs, 1)
        return inputs[0]


@dataclass(frozen=True, eq=False)
class Affine:
    """act(scale x + shift) per channel: a batch normalisation that found no convolution to join."""

    name: str
    inputs: tuple[int, ...]
    factors: Scale
    act: Act = Act.NONE
    quant: Quant | None = None

    def shape(self, *inputs: Shape) -> Shape:
        expect_inputs(inputs, 1)
        self.factors.check(inputs[0][0])
        return inputs[0]


@dataclass(frozen=True, eq=False)
class Concat:
    """The channels of all inputs, one after another."""

    name: str
    inputs: tuple[int, ...]
    quant: Quant | None = None

    def shape(self, *inputs: Shape) -> Shape:
        expect_inputs(inputs, 1, len(inputs))
        if len({shape[1:] for shape in inputs}) != 1:
            raise ValueError(f"expected values of one height and width, found {list(inputs)}")
        return (sum(shape[0] for shape in inputs), *inputs[0][1:])


@dataclass(frozen=True, eq=False)
class Flatten:
    """(C, H, W) -> (C H W, 1, 1), the last dimension fastest."""

    name: str
    inputs: tuple[int, ...]
    quant: Quant | None = None

    def shape(self, *inputs: Shape) -> Shape:
        expect_inputs(inputs, 1)
        c, height, width = inputs[0]
        return c * height * width, 1, 1


Op = (
    Conv | IntConv | Pool | Add | Mul | Activate | Affine | Concat | Flatten | Convert | Table
    | Reorder | Resample | Constant | Combine | Leaky | Clamp | Normalize | Softmax | MatMul
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Program:
    """Operations in the order in which they run; see the module's docstring.

    Raises ValueError, naming the operation, where one of them is not valid.
    """

    input: Shape
    ops: tuple[Op, ...]
    flat_input: bool = False  # the caller gives (N, C), not (N, C, 1, 1)
    flat_output: bool = False  # the caller gets (N, C), not (N, C, 1, 1)
    # What the caller gives and gets for an image where that is neither (C, H, W) nor flat: the same numbers in order.
    input_dims: tuple[int, ...] = ()
    output_dims: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for flat, shape in ((self.flat_input, self.shapes[0]), (self.flat_output, self.shapes[-1])):
            if flat and shape[1:] != (1, 1):
                raise ValueError(f"a flat input or output must be (C, 1, 1), found {shape}")
        for dims, shape in ((self.input_dims, self.shapes[0]), (self.output_dims, self.shapes[-1])):
            if dims and (len(dims) > MAX_DIMS or min(dims) < 1 or math.prod(dims) != math.prod(shape)):
                raise ValueError(f"the dimensions of an image must have the numbers of {shape}, found {dims}")
        if self.quants[-1] is not None:
            raise ValueError("the output must be in float32, found bytes: end with a Convert")

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """The shape of every value: the input's, then one for each operation."""
        if not 1 <= len(self.ops) <= MAX_OPS:
            raise ValueError(f"a program needs 1 to {MAX_OPS} operations, found {len(self.ops)}")
        shapes = [expect_shape(self.input)]
        for index, op in enumerate(self.ops):
            try:
                if len(op.name) > MAX_NAME or not op.name.isprintable():
                    raise ValueError(f"a name must be at most {MAX_NAME} printable characters")
                if any(not 0 <= value <= index for value in op.inputs):
                    raise ValueError(f"inputs must be values made before, 0 to {index}, found {list(op.inputs)}")
                shapes.append(expect_shape(op.shape(*(shapes[value] for value in op.inputs))))
                check_quants(op, tuple(self.quants[value] for value in op.inputs))
            except ValueError as error:
                raise ValueError(f"operation {index} ({type(op).__name__} {op.name[:MAX_NAME]!r}): {error}") from error
        return tuple(shapes)

    @cached_property
    def quants(self) -> tuple[Quant | None, ...]:
        """How each value is stored: None for float32, as the input is."""
        return (None, *(getattr(op, "quant", None) for op in self.ops))

    @property
    def caller_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of an image as the caller gives it, and of its result."""
        given = self.input_dims or (self.input[:1] if self.flat_input else self.input)
        return given, self.output_dims or (self.output[:1] if self.flat_output else self.output)

    @property
    def output(self) -> Shape:
        return self.shapes[-1]

    @property
    def multiply_adds(self) -> int:
        """Of one image, the convolutions and products only, of what is stored."""
        convolutions = sum(
            array.size * (shape[1] * shape[2])
            for op, shape in zip(self.ops, self.shapes[1:], strict=True)
            if isinstance(op, Conv)
            for array in op.weight.entries
            if array is not None
        )
        products = sum(
            math.prod(shape) * (self.shapes[op.inputs[0]][0] // op.groups)
            for op, shape in zip(self.ops, self.shapes[1:], strict=True)
            if isinstance(op, MatMul)
        )
        return convolutions + products


def arrays(op: Op) -> Iterator[tuple[str, NDArray]]:
    """The arrays of an operation with the names they have in a file: `dense`, `A`, ..., `pre.scale`, `bias`."""
    for field in fields(op):
        part = getattr(op, field.name)
        if isinstance(part, np.ndarray):
            yield field.name, part
        elif isinstance(part, Weight | IntWeight | Scale):
            prefix = "pre." if field.name == "pre" else ""
            yield from (
                (prefix + f.name, getattr(part, f.name)) for f in fields(part) if getattr(part, f.name) is not None
            )
