"""Blocks of S: what is kept or cut together.

A block is one row of the matrix m x k (one output channel), one tap of the kernel, and `size` neighbouring input
channels: size j to size (j + 1) - 1, fewer where the channels end. In the matrix of a convolution these are no
neighbouring columns: with c channels and t taps (kh kw, or kh where the scheme is spatial) a row has its columns in the
order (c, t). Blocks are counted in the order (row, j, tap). A block of 1 is an entry: the S of the paper.

What a matrix (m, k) holds of its entries, a matrix (m, b) with b = ceil(c / size) t holds of its blocks.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """How the matrix of a layer is divided into blocks.

    Attributes:
        size: neighbouring input channels in a block.
        channels: input channels of the layer; for a linear layer its features.
    """

    size: int
    channels: int

    @classmethod
    def of(cls, size: int, shape: tuple[int, ...] | torch.Size, transposed: bool = False) -> "Blocks":
        """Those of a weight (n, c, ...), or (c, n, ...) of a transposed convolution, of at most as many channels."""
        channels = shape[0 if transposed else 1]
        return cls(max(min(size, channels), 1), channels)

    def sums(self, entries: Tensor) -> Tensor:
        """The sum of each block (m, b) of some entries (m, k)."""
        return entries if self.size == 1 else self._grid(entries).sum(2).flatten(1)

    def norms(self, entries: Tensor) -> Tensor:
        """The Euclidean norm of each block; of an entry its magnitude."""
        return entries.abs() if self.size == 1 else torch.linalg.vector_norm(self._grid(entries), dim=2).flatten(1)

    def any(self, entries: Tensor) -> Tensor:
        """Which blocks hold anything but zeros, bool."""
        return entries != 0 if self.size == 1 else (self._grid(entries) != 0).any(2).flatten(1)

    def sizes(self, entries: Tensor) -> Tensor:
        """How many entries each block has (m, b)."""
        return self.sums(torch.ones_like(entries, dtype=torch.int64))

    def count(self, m: int, k: int) -> int:
        """How many blocks a matrix (m, k) has."""
        return m * self.sizes(torch.empty(1, k)).numel()

    def means(self, entries: Tensor) -> Tensor:
        """The mean over each block's entries."""
        return entries if self.size == 1 else self.sums(entries) / self.sizes(entries)

    def spread(self, blocks: Tensor) -> Tensor:
        """The value of its block (m, b) for each entry (m, k)."""
        if self.size == 1:
            return blocks
        rows, count = len(blocks), -(-self.channels // self.size)
        taps = blocks.shape[1] // count
        spread = blocks.reshape(rows, count, 1, taps).expand(-1, -1, self.size, -1)
        return spread.reshape(rows, count * self.size, taps)[:, : self.channels].flatten(1)

    def whole(self, mask: Tensor) -> bool:
        """Whether a mask (m, k) has each block as a whole or not at all."""
        return self.size == 1 or torch.equal(self.spread(self.any(mask)), mask)

    def _grid(self, entries: Tensor) -> Tensor:
        """The entries as (m, ceil(c / size), size, t), zeros in the places where channels end."""
        rows, count = len(entries), -(-self.channels // self.size)
        taps = entries.shape[1] // self.channels
        grid = entries.reshape(rows, self.channels, taps)
        if count * self.size > self.channels:
            grid = F.pad(grid, (0, 0, 0, count * self.size - self.channels))
        return grid.view(rows, count, self.size, taps)


ENTRIES = Blocks(1, 1)
"""Each entry by itself."""


def best_within(scores: Tensor, sizes: Tensor, room: float) -> Tensor:
    """The mask of the blocks of highest score, flat, whose sizes (entries, or what they cost) add up to `room` at most.

    Of blocks of equal score those that come first count as higher. None is passed over for a smaller one that would
    still fit.
    """
    order = scores.argsort(descending=True, stable=True)
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[order] = sizes[order].cumsum(0) <= room
    return chosen
