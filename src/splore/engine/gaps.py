"""Where the blocks of a weight are, in about a byte each: how many places are passed over since the one before.

Each row begins anew. A byte of 255 passes over 255 places and ends at none.
"""

import numpy as np
from numpy.typing import NDArray

from splore.engine.weight import Indices, expect_array

SKIP = 255


def encode(positions: Indices, rows: Indices) -> NDArray[np.uint8]:
    """The bytes for positions that rise within each row; row i holds those from rows[i] to rows[i + 1]."""
    places = positions.astype(np.int64)
    passed = np.diff(places, prepend=-1) - 1
    starts = rows[:-1][rows[:-1] < rows[1:]].astype(np.int64)
    passed[starts] = places[starts]
    skips, rest = np.divmod(passed, SKIP)
    code = np.full(int((skips + 1).sum()), SKIP, np.uint8)
    code[np.cumsum(skips + 1) - 1] = rest
    return code


def decode(code: NDArray[np.uint8], rows: Indices) -> Indices:
    """The positions. ValueError where the bytes are not those of so many positions."""
    expect_array("gaps", code, np.uint8, (code.size,))
    expect_array("rows", rows, np.uint32, (rows.size,))
    ends = code < SKIP
    if rows.size < 1 or rows[0] != 0 or np.any(rows[1:] < rows[:-1]) or int(rows[-1]) != int(ends.sum()):
        raise ValueError("rows must rise from 0 to the number of positions in gaps")
    if code.size and not ends[-1]:
        raise ValueError("gaps must end at a position")
    reached = np.cumsum(code.astype(np.int64) + ends)[ends]
    before = np.concatenate([[0], reached])[rows[:-1]]
    places = reached - np.repeat(before, np.diff(rows.astype(np.int64)).astype(np.int64)) - 1
    if places.max(initial=0) >= 1 << 32:
        raise ValueError("a position in gaps is too large")
    return places.astype(np.uint32)
