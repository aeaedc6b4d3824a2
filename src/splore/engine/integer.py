"""Eight bits: what a program says of quantised values and weights.

A quantised value is stored as unsigned bytes q, and stands for the real numbers scale (q - zero). Weights are signed
bytes with a scale for each output channel; their sums are exact in 32 bits, which `IntWeight.check` makes sure of.
What becomes of the sums is specified to the bit: see `splore.engine.integer_reference`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splore.engine.weight import Floats, Indices, expect_array, owners

Bytes = NDArray[np.int8]

LARGEST = 255  # of a quantised value
BLOCK = 4  # neighbouring input channels that a block of weights holds


@dataclass(frozen=True)
class Quant:
    """How a value is stored in bytes: real = scale (q - zero). The scale is a float32."""

    scale: float
    zero: int = 0

    def check(self) -> None:
        if not (1e-30 < self.scale < 1e30 and float(np.float32(self.scale)) == self.scale):
            raise ValueError(f"a scale must be a positive float32, found {self.scale!r}")
        if not 0 <= self.zero <= LARGEST:
            raise ValueError(f"a zero point must lie between 0 and {LARGEST}, found {self.zero}")


@dataclass(frozen=True, eq=False)
class IntWeight:
    """The matrix of a convolution in signed bytes, (n, k) as in `Weight`, as a sum of any of three parts.

    - `dense` (n, k), of scale[i] in row i;
    - `blocks` (z, 4), `positions` (z) and `rows` (n + 1), of the same scales: row i holds the blocks rows[i] to
      rows[i + 1]. A block holds the weights of input channels 4 j to 4 j + 3 under one tap of the kernel, at the
      position j taps + tap; positions are strictly increasing within a row. Channels beyond the last have weight 0;
    - `A` (n, r) of A_scale (n), and `B` (r, k) of B_scale (r): A t with t = B x rounded to t_scale, -127 to 127.
    """

    scale: Floats  # (n)
    dense: Bytes | None = None
    blocks: Bytes | None = None
    positions: Indices | None = None
    rows: Indices | None = None
    A: Bytes | None = None
    A_scale: Floats | None = None
    B: Bytes | None = None
    B_scale: Floats | None = None
    t_scale: Floats | None = None  # (1)

    @property
    def entries(self) -> tuple[Bytes | None, ...]:
        """Of all parts: each is a multiply-add for each output pixel."""
        return self.dense, self.A, self.B, self.blocks

    def check(self, n: int, channels: int, taps: int, groups: int) -> None:
        """For n output channels, `channels` input channels of a group and `taps` places of the window."""
        k = channels * taps
        _check_scales("scale", self.scale, n)
        for parts in (("blocks", "positions", "rows"), ("A", "A_scale", "B", "B_scale", "t_scale")):
            if len({getattr(self, name) is None for name in parts}) != 1:
                raise ValueError(f"{', '.join(parts)} come together, found only some of them")
        if self.dense is None and self.blocks is None and self.A is None:
            raise ValueError("a weight needs a dense, a low-rank or a block part, found none")
        if groups != 1 and (self.A is not None or self.blocks is not None):
            raise ValueError(f"a grouped convolution takes a dense weight only, found groups={groups}")
        if self.dense is not None:
            expect_array("dense", self.dense, np.int8, (n, k))
        if self.A is not None and self.B is not None:
            rank = self.A.shape[1] if self.A.ndim == 2 else -1
            if not 1 <= rank <= min(n, k):
                raise ValueError(f"A must be ({n}, r) with r from 1 to {min(n, k)}, found {self.A.shape}")
            expect_array("A", self.A, np.int8, (n, rank))
            expect_array("B", self.B, np.int8, (rank, k))
            for name, size in (("A_scale", n), ("B_scale", rank), ("t_scale", 1)):
                _check_scales(name, getattr(self, name), size)
        if self.blocks is not None and self.positions is not None and self.rows is not None:
            _check_blocks(self.blocks, self.positions, self.rows, n, channels, taps)
        self._check_sums(n)

    def _check_sums(self, n: int) -> None:
        """No sum of products of a row, with values of up to 255, leaves 32 bits."""
        sums = np.zeros(n, np.int64)
        if self.dense is not None:
            sums += np.abs(self.dense.astype(np.int64)).sum(1)
        if self.blocks is not None and self.rows is not None:
            before = np.concatenate([[0], np.cumsum(np.abs(self.blocks.astype(np.int64)).sum(1))])
            sums += before[self.rows[1:].astype(np.int64)] - before[self.rows[:-1].astype(np.int64)]
        largest = int(sums.max(initial=0))
        for part in (self.A, self.B):
            if part is not None:
                largest = max(largest, int(np.abs(part.astype(np.int64)).sum(1).max()))
        if largest * LARGEST >= 1 << 31:
            raise ValueError(f"a row's weights must sum up to less than {(1 << 31) // LARGEST}, found {largest}")


@dataclass(frozen=True, eq=False)
class Convert:
    """A float32 value in bytes, where `quant` is given, or a value in bytes as float32, where it is not."""

    name: str
    inputs: tuple[int, ...]
    quant: Quant | None = None

    def shape(self, *inputs: tuple[int, int, int]) -> tuple[int, int, int]:
        return _one_of(inputs)


@dataclass(frozen=True, eq=False)
class Table:
    """table[q] for each byte q of a value: any function of one number."""

    name: str
    inputs: tuple[int, ...]
    table: NDArray[np.uint8]  # (256)
    quant: Quant | None = None

    def shape(self, *inputs: tuple[int, int, int]) -> tuple[int, int, int]:
        expect_array("table", self.table, np.uint8, (LARGEST + 1,))
        return _one_of(inputs)


def check_quants(op: Any, inputs: tuple[Quant | None, ...]) -> None:  # noqa: ANN401
    """Raises ValueError where an operation can't read its inputs as they are stored, or store its result so."""
    quant: Quant | None = getattr(op, "quant", None)
    if quant is not None:
        quant.check()
    act = getattr(op, "act", "none")
    if quant is not None and act not in ("none", "relu", "relu6"):
        raise ValueError(f"a result in bytes takes none, relu or relu6, found {act}: give the other ones as a Table")
    integer = [q is not None for q in inputs]
    if isinstance(op, Convert):
        if integer[0] == (quant is not None):
            raise ValueError("a conversion goes from float32 to bytes, or from bytes to float32")
    elif isinstance(getattr(op, "weight", None), IntWeight):
        if not all(integer):
            raise ValueError("weights in bytes want inputs in bytes: convert them first")
        if op.pre is not None:
            raise ValueError("weights in bytes take no `pre`: give it as an Affine before")
    elif not hasattr(op, "quant"):
        if any(integer) or quant is not None:
            raise ValueError("this operation runs in float32 alone: convert its inputs first")
    elif isinstance(op, Table):
        if not integer[0] or quant is None:
            raise ValueError("a table maps bytes to bytes")
    elif len({*integer, quant is not None}) != 1:
        raise ValueError("its inputs and its result must all be in bytes, or all in float32")
    keeps = type(op).__name__ == "Flatten" or getattr(op, "mode", None) == "max"
    if keeps and quant != inputs[0]:
        raise ValueError(f"its result must be stored as its input, {inputs[0]}, found {quant}")


def _one_of(inputs: tuple[tuple[int, int, int], ...]) -> tuple[int, int, int]:
    if len(inputs) != 1:
        raise ValueError(f"expected 1 input, found {len(inputs)}")
    return inputs[0]


def _check_scales(name: str, scales: Floats, size: int) -> None:
    expect_array(name, scales, np.float32, (size,))
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise ValueError(f"{name} must be positive")


def _check_blocks(blocks: Bytes, positions: Indices, rows: Indices, n: int, channels: int, taps: int) -> None:
    count = positions.size
    expect_array("blocks", blocks, np.int8, (count, BLOCK))
    expect_array("positions", positions, np.uint32, (count,))
    expect_array("rows", rows, np.uint32, (n + 1,))
    if rows[0] != 0 or rows[-1] != count or np.any(rows[1:] < rows[:-1]):
        raise ValueError(f"rows must rise from 0 to the {count} blocks")
    if not count:
        return
    groups = -(-channels // BLOCK)
    if positions.max() >= groups * taps:
        raise ValueError(f"positions must lie below {groups * taps}, found {positions.max()}")
    owner = owners(rows)
    if np.any((positions[1:] <= positions[:-1]) & (owner[1:] == owner[:-1])):
        raise ValueError("positions must be strictly increasing within each row")
    if channels % BLOCK and blocks[positions >= (groups - 1) * taps][:, channels % BLOCK :].any():
        raise ValueError("a weight lies beyond the last input channel")
