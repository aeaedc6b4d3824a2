"""Where the non-zeros of a sparse matrix are, in few bytes.

The positions are those of the True entries of a flat bool array, and are written in the smallest of these codings:

- `ALL`: every entry; no byte at all.
- `BITMAP`: one bit per entry, lowest bit first, the last byte filled up with zeros.
- `GAPS`: one byte per position, the number of entries passed over since the position before it, from 0 to 254. A byte
  of 255 passes over 255 entries and ends at none, so that longer gaps take more bytes.
- `RICE` (Rice & Plaunt, 1971): each gap, the number of entries passed over, is q 2^b + low. A byte b; then the `low` of
  all gaps, b bits each; then for each gap q zeros and a one. Bits go lowest first, and both rows of bits are filled up
  with zeros to whole bytes.

Gaps win over bitmaps below a density of about 1/8, down to 1/255th of a byte per entry where there is next to nothing.
Rice codes take a few per cent more than the n H(share) bits that n positions of such a share need at the least, and are
written on request: files of version 1 do without them.
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
    RICE = "rice"


def encode(mask: NDArray[np.bool_], rice: bool = False) -> tuple[Coding, NDArray[np.uint8]]:
    """The positions of the True entries of a flat bool array, in the smallest coding and its bytes."""
    coding, code = _plain(mask)
    if rice and len(code) > 1:
        other = _rice(np.diff(np.flatnonzero(mask), prepend=-1) - 1)
        if len(other) < len(code):
            return Coding.RICE, other
    return coding, code


def _plain(mask: NDArray[np.bool_]) -> tuple[Coding, NDArray[np.uint8]]:
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
    if coding is Coding.RICE:
        return _marked(_rice_gaps(code, size, count), size)
    if len(code) > count + size // ESCAPE:
        raise ValueError(f"expected at most {count + size // ESCAPE} bytes of gaps, found {len(code)}")
    ends = code < ESCAPE
    _expect(int(np.count_nonzero(ends)), count, "positions")
    if len(code) and not ends[-1]:
        raise ValueError("the gaps go on after the last position")
    return _marked(np.diff(np.cumsum(code + ends, dtype=np.int64)[ends], prepend=0) - 1, size)


def _marked(gaps: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """The array in which positions follow each other by these gaps."""
    positions = np.cumsum(gaps + 1) - 1
    if len(gaps) and positions[-1] >= size:
        raise ValueError(f"expected positions below {size}, found {positions[-1]}")
    mask = np.zeros(size, np.bool_)
    mask[positions] = True
    return mask


def _rice(gaps: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The shortest Rice code of some gaps."""
    usual = int(gaps.mean()).bit_length() if len(gaps) else 0
    b = min(range(max(usual - 2, 0), usual + 2), key=lambda b: len(gaps) * b + int((gaps >> b).sum()))
    low = np.packbits(gaps[:, None] >> np.arange(b) & 1, bitorder="little")
    ends = np.cumsum((gaps >> b) + 1)
    high = np.zeros(ends[-1] if len(gaps) else 0, np.bool_)
    high[ends - 1] = True
    return np.concatenate([np.array([b], np.uint8), low, np.packbits(high, bitorder="little")])


def _rice_gaps(code: NDArray[np.uint8], size: int, count: int) -> NDArray[np.int64]:
    """The gaps of a Rice code, as many as it says, for positions below `size`."""
    b = int(code[0]) if len(code) else 0
    start = 1 + -(-count * b // 8)
    if not len(code) or b >= 63 or start > len(code):
        raise ValueError(f"expected a Rice code of {count} gaps, found {len(code)} bytes that begin with {b}")
    if len(code) - start > (count + (size >> b) + 7) // 8:
        raise ValueError(f"a Rice code of {count} gaps below {size} is shorter than {len(code)} bytes")
    low = np.unpackbits(code[1:start], bitorder="little")
    ones = np.flatnonzero(np.unpackbits(code[start:], bitorder="little"))
    _expect(len(ones), count, "positions")
    last = int(ones[-1]) + 1 if count else 0
    if low[count * b :].any() or len(code) - start != -(-last // 8):
        raise ValueError("the Rice code goes on after the last position")
    return (np.diff(ones, prepend=-1) - 1 << b) + low[: count * b].reshape(count, b) @ (1 << np.arange(b))


def _expect(found: int, expected: int, what: str) -> None:
    if found != expected:
        raise ValueError(f"expected {expected} {what}, found {found}")
