"""The weights of a program as data: the matrix of a convolution in up to three parts, and factors for each channel."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.uint32]


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

    @property
    def entries(self) -> tuple[Floats | None, ...]:
        """Of all parts: each is a multiply-add for each output pixel."""
        return self.dense, self.A, self.B, self.values

    def check(self, n: int, channels: int, taps: int, groups: int) -> None:
        """For n output channels, `channels` input channels of a group and `taps` places of the window."""
        k = channels * taps
        if (self.A is None) != (self.B is None):
            raise ValueError("A and B come together, found only one of them")
        if len({part is None for part in (self.values, self.columns, self.rows)}) != 1:
            raise ValueError("values, columns and rows come together, found only some of them")
        if self.dense is None and self.A is None and self.values is None:
            raise ValueError("a weight needs a dense, a low-rank or a sparse part, found none")
        if groups != 1 and (self.A is not None or self.values is not None):
            raise ValueError(f"a grouped convolution takes a dense weight only, found groups={groups}")
        if self.dense is not None:
            expect_array("dense", self.dense, np.float32, (n, k))
        if self.A is not None and self.B is not None:
            rank = self.A.shape[1] if self.A.ndim == 2 else -1
            if not 1 <= rank <= min(n, k):
                raise ValueError(f"A must be ({n}, r) with r from 1 to {min(n, k)}, found {self.A.shape}")
            expect_array("A", self.A, np.float32, (n, rank))
            expect_array("B", self.B, np.float32, (rank, k))
        if self.values is not None and self.columns is not None and self.rows is not None:
            _check_sparse(self.values, self.columns, self.rows, n, k)


@dataclass(frozen=True, eq=False)
class Scale:
    """Per-channel x * scale + shift: both (c)."""

    scale: Floats
    shift: Floats

    def check(self, channels: int) -> None:
        expect_array("scale", self.scale, np.float32, (channels,))
        expect_array("shift", self.shift, np.float32, (channels,))


def _check_sparse(values: Floats, columns: Indices, rows: Indices, n: int, k: int) -> None:
    expect_array("values", values, np.float32, (values.size,))
    expect_array("columns", columns, np.uint32, (values.size,))
    expect_array("rows", rows, np.uint32, (n + 1,))
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


def owners(rows: Indices) -> NDArray[np.int64]:
    """The row of each entry of a CSR matrix, from where its rows begin: (z)."""
    begins = rows.astype(np.int64)
    return np.repeat(np.arange(len(rows) - 1), begins[1:] - begins[:-1])


def expect_array(name: str, array: NDArray, dtype: type, shape: tuple[int, ...]) -> None:
    """Raises ValueError where an array is not contiguous, or not of this type and shape."""
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be a contiguous {np.dtype(dtype)} array {shape}, found {array.dtype} {array.shape}"
        )
