"""Operations by which a program computes with tensors of any dimensions, as transformers do.

Tokens are pixels: a tensor (N, T, D) is a value (D, 1, T), and a linear layer over its last dimension a 1 x 1
convolution. `Reorder` brings a tensor's dimensions to where an operation wants them, `MatMul` and `Softmax` make
attention, and `Resample` whatever takes each row and column from a few others: upsampling, pools that don't divide,
padding by what is there, rolls.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np

from splore.engine.values import MAX_ATTRIBUTE, MAX_ELEMENTS, Act, Shape, expect_inputs, expect_shape
from splore.engine.weight import Floats, Indices, Scale, expect_array

MAX_FACTORS = 16  # of a dimension


class Factor(NamedTuple):
    """`size` steps, each `stride` places on along an axis of a value: 0 for channels, 1 for rows, 2 for columns."""

    axis: int
    size: int
    stride: int


@dataclass(frozen=True, eq=False)
class Reorder:
    """Elements in another order: each dimension of the output counts through its factors, the last one fastest.

    The output's element at the steps i of all factors is the input's at offset + i·stride along each factor's axis.
    It serves transposes, reshapes, slices, copies (a stride of 0) and shuffles.
    """

    name: str
    inputs: tuple[int, ...]
    channels: tuple[Factor, ...]
    height: tuple[Factor, ...]
    width: tuple[Factor, ...]
    offset: Shape = (0, 0, 0)

    def shape(self, *inputs: Shape) -> Shape:
        expect_inputs(inputs, 1)
        last = list(self.offset)
        for factor in (*self.channels, *self.height, *self.width):
            if not (0 <= factor.axis <= 2 and 1 <= factor.size <= MAX_ELEMENTS and 0 <= factor.stride <= MAX_ELEMENTS):
                raise ValueError(f"a factor must be an axis from 0 to 2, a size and a stride, found {tuple(factor)}")
            last[factor.axis] += (factor.size - 1) * factor.stride
        if any(not 0 <= first <= end < side for first, end, side in zip(self.offset, last, inputs[0], strict=True)):
            raise ValueError(f"it reads from {self.offset} to {tuple(last)} of a value of shape {inputs[0]}")
        dims = (self.channels, self.height, self.width)
        if max(map(len, dims)) > MAX_FACTORS:
            raise ValueError(f"expected at most {MAX_FACTORS} factors of a dimension")
        c, height, width = (math.prod(factor.size for factor in factors) for factors in dims)
        return c, height, width


@dataclass(frozen=True, eq=False)
class Resample:
    """y[i, j] = sum over a, b of row_weight[i, a] column_weight[j, b] x[row_index[i, a], column_index[j, b]]."""

    name: str
    inputs: tuple[int, ...]
    row_index: Indices  # (H', taps)
    row_weight: Floats
    column_index: Indices  # (W', taps)
    column_weight: Floats

    def shape(self, *inputs: Shape) -> Shape:
        expect_inputs(inputs, 1)
        sides = []
        for axis, side in (("row", inputs[0][1]), ("column", inputs[0][2])):
            index, weight = getattr(self, f"{axis}_index"), getattr(self, f"{axis}_weight")
            if index.ndim != 2 or not 0 < index.size <= MAX_ELEMENTS:
                raise ValueError(f"{axis}_index must be (outputs, taps), found {index.shape}")
            expect_array(f"{axis}_index", index, np.uint32, index.shape)
            expect_array(f"{axis}_weight", weight, np.float32, index.shape)
            if index.max() >= side:
                raise ValueError(f"{axis}_index must lie below {side}, found {index.max()}")
            sides.append(index.shape[0])
        return inputs[0][0], sides[0], sides[1]


@dataclass(frozen=True, eq=False)
class Constant:
    """The same value for every image."""

    name: str
    inputs: tuple[int, ...]  # none
    data: Floats  # (C, H, W)

    def shape(self, *inputs: Shape) -> Shape:
        expect_inputs(inputs, 0)
        if self.data.ndim != 3:
            raise ValueError(f"a constant must be (C, H, W), found {self.data.shape}")
        c, height, width = expect_shape(self.data.shape)
        expect_array("data", self.data, np.float32, (c, height, width))
        return c, height, width


class Fn(str, Enum):
    """A function of two numbers."""

    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    DIV = "div"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, eq=False)
class Combine:
    """act(fn(a, b)); b counts for every channel of a where it has one, and for every pixel where it has one."""

    name: str
    inputs: tuple[int, ...]
    fn: Fn
    act: Act = Act.NONE

    def shape(self, *inputs: Shape) -> Shape:
        expect_inputs(inputs, 2)
        a, b = inputs
        if b[0] not in (a[0], 1) or b[1:] not in (a[1:], (1, 1)):
            raise ValueError(f"expected a second value of {a[0]} or 1 channels, {a[1:]} or one pixels, found {b}")
        return a


@dataclass(frozen=True, eq=False)
class Leaky:
    """x, or slope x where x is below 0, with a slope for each channel."""

    name: str
    inputs: tuple[int, ...]
    slope: Floats  # (C)

    def shape(self, *inputs: Shape) -> Shape:
        expect_inputs(inputs, 1)
        expect_array("slope", self.slope, np.float32, (inputs[0][0],))
        return inputs[0]


@dataclass(frozen=True, eq=False)
class Clamp:
    """x, but at least low and at most high."""

    name: str
    inputs: tuple[int, ...]
    low: float
    high: float

    def shape(self, *inputs: Shape) -> Shape:
        expect_inputs(inputs, 1)
        if not self.low <= self.high:
            raise ValueError(f"expected low <= high, found {self.low} and {self.high}")
        return inputs[0]


@dataclass(frozen=True, eq=False)
class Normalize:
    """scale (x - mean) / sqrt(variance + eps) + shift, with the mean and the variance of each group of channels: of
    each pixel by itself where `pixelwise` (layer normalisation), or of all pixels together (group normalisation)."""

    name: str
    inputs: tuple[int, ...]
    groups: int
    pixelwise: bool
    eps: float
    factors: Scale

    def shape(self, *inputs: Shape) -> Shape:
        expect_inputs(inputs, 1)
        expect_groups(self.groups, inputs[0][0])
        if not 0 <= self.eps < 1e30:
            raise ValueError(f"eps must be a number of at least 0, found {self.eps}")
        self.factors.check(inputs[0][0])
        return inputs[0]


@dataclass(frozen=True, eq=False)
class Softmax:
    """e^x over its sum, over the channels of each group, at each pixel."""

    name: str
    inputs: tuple[int, ...]
    groups: int

    def shape(self, *inputs: Shape) -> Shape:
        expect_inputs(inputs, 1)
        expect_groups(self.groups, inputs[0][0])
        return inputs[0]


@dataclass(frozen=True, eq=False)
class MatMul:
    """y[g n + i, 1, p] = scale sum over k of b[g, i, k] x[g k + k, 1, p], for each group g: x is (g k, 1, P).

    b is (g n, 1, k), or (g k, 1, n) where it is `transposed`. Attention is a product of keys, transposed, and queries,
    a softmax over the keys, and a product of values and that.
    """

    name: str
    inputs: tuple[int, ...]
    groups: int
    transposed: bool
    scale: float = 1.0

    def shape(self, *inputs: Shape) -> Shape:
        expect_inputs(inputs, 2)
        x, b = inputs
        expect_groups(self.groups, x[0])
        expect_groups(self.groups, b[0])
        k = x[0] // self.groups
        found, n = (b[0] // self.groups, b[2]) if self.transposed else (b[2], b[0] // self.groups)
        if x[1] != 1 or b[1] != 1 or found != k:
            raise ValueError(f"expected factors (g k, 1, P) and one of k = {k} in {self.groups} groups, found {x}, {b}")
        if not abs(self.scale) < 1e30:
            raise ValueError(f"scale must be a number, found {self.scale}")
        return self.groups * n, 1, x[2]


def expect_groups(groups: int, channels: int) -> None:
    """Raises ValueError where so many groups don't divide the channels."""
    if not 1 <= groups <= MAX_ATTRIBUTE or channels % groups:
        raise ValueError(f"groups must divide the {channels} channels, found {groups}")


OPS: tuple[type, ...] = (Reorder, Resample, Constant, Combine, Leaky, Clamp, Normalize, Softmax, MatMul)
