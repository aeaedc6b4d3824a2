"""Where the non-zeros of a sparse matrix are, in few bytes.

The positions are those of the True entries of a flat bool array, and are written in the smallest of three codings:

- `ALL`: every entry; no byte at all.
- `BITMAP`: one bit per entry, lowest bit first, the last byte filled up with zeros.
- `GAPS`: one byte per position, the number of entries passed over since the position before it, from 0 to 254. A byte
  of 255 passes over 255 entries and ends at none, so that longer gaps take more bytes.

Gaps win below a density of about 1/8, down to 1/255th of a byte per entry where there is next to nothing.
"""

from enum import Enum

import numpy as np
from numpy.typing import NDArray

ESCAPE = 255
"""The byte that passes over 255 entries without ending at a position."""


class Coding(str, Enum):
    """How positions are written."""

    ALL = "all"
    BITMAP = "bitmap"
    GAPS = "gaps"


def encode(mask: NDArray[np.bool_]) -> tuple[Coding, NDArray[np.uint8]]:
    """The positions of the True entries of a flat bool array, in the smallest coding and its bytes."""
    bitmap_bytes = -(-mask.size // 8)
    count = np.count_nonzero(mask)
    if count == mask.size > 0:
        return Coding.ALL, np.empty(0, np.uint8)
    if count < bitmap_bytes or mask.size == 0:
        gaps = np.diff(np.flatnonzero(mask), prepend=-1) - 1
        ends = np.cumsum(gaps // ESCAPE + 1)
        if count == 0 or ends[-1] < bitmap_bytes:
            code = np.full(ends[-1] if count else 0, ESCAPE, np.uint8)
            code[ends - 1] = gaps % ESCAPE
            return Coding.GAPS, code
    return Coding.BITMAP, np.packbits(mask, bitorder="little")


def decode(coding: Coding, code: NDArray[np.uint8], size: int, count: int) -> NDArray[np.bool_]:
    """The flat bool array of `size` entries, `count` of them True, that `encode` wrote.

    No byte is trusted: memory is taken for `size` entries and for the bytes at hand, and for nothing else.

    Raises:
        ValueError: the bytes don't mark exactly `count` of `size` entries, or go on after the last of them.
    """
    if not 0 <= count <= size:
        raise ValueError(f"{count} positions can't lie among {size} entries")
    if coding is Coding.ALL:
        _expect(len(code), 0, "bytes")
        _expect(count, size, "positions")
        return np.ones(size, np.bool_)
    if coding is Coding.BITMAP:
        _expect(len(code), -(-size // 8), "bytes")
        bits = np.unpackbits(code, bitorder="little").view(np.bool_)
        if bits[size:].any():
            raise ValueError("the bitmap marks entries beyond its last")
        _expect(int(np.count_nonzero(bits[:size])), count, "positions")
        return bits[:size]
    if len(code) > count + size // ESCAPE:
        raise ValueError(f"expected at most {count + size // ESCAPE} bytes of gaps, found {len(code)}")
    ends = code < ESCAPE
    _expect(int(np.count_nonzero(ends)), count, "positions")
    if len(code) and not ends[-1]:
        raise ValueError("the gaps go on after the last position")
    positions = np.cumsum(code + ends, dtype=np.int64)[ends] - 1
    if count and positions[-1] >= size:
        raise ValueError(f"expected positions below {size}, found {positions[-1]}")
    mask = np.zeros(size, np.bool_)
    mask[positions] = True
    return mask


def _expect(found: int, expected: int, what: str) -> None:
    if found != expected:
        raise ValueError(f"expected {expected} {what}, found {found}")
