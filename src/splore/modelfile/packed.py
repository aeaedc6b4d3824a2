"""The sparse part of a layer, packed: the non-zeros of S and where they are, as the model file keeps them.

Where S is kept in blocks (see `splore.design.blocks`) the support and the mask are sets of blocks, so that a block
takes one position, and all its entries are among the values.

Beside the values three sets of positions in the matrix m x k are kept, each by `splore.modelfile.sparse_index`:

- the support of S, its non-zeros;
- the mask, by its difference from the support, or as full. After a cut the two are one, and nothing is stored;
- the zeros of S with a minus sign under the mask: they are rare, and they come back as they were. Where the mask is
  False there is no entry, and a zero of either sign comes back as +0.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splore.design.blocks import ENTRIES, Blocks
from splore.design.eight_bits import outputs
from splore.design.layers import LowRankSparse
from splore.modelfile.sparse_index import Coding, decode, encode
from splore.modelfile.values import Values, coded


@dataclass(frozen=True)
class Index:
    """A coded set of positions in a flat array: the coding, the number of positions, and the bytes."""

    coding: Coding
    count: int
    code: NDArray[np.uint8]

    @classmethod
    def of(cls, positions: Tensor, rice: bool = False) -> "Index":
        """The True entries of a bool tensor of any shape, in row-major order; perhaps by a Rice code."""
        flat = positions.flatten().numpy()
        coding, code = encode(flat, rice)
        return cls(coding, int(np.count_nonzero(flat)), code)

    def positions(self, size: int) -> Tensor:
        """The bool tensor (size,) again; raises ValueError where the bytes don't fit it."""
        return torch.from_numpy(decode(self.coding, self.code, size, self.count))


@dataclass(frozen=True)
class PackedSparse:
    """S and its mask without the zeros.

    Attributes:
        values: the non-zeros of S, or all entries of the blocks that have one, in the row-major order of the matrix,
            (nnz,), in the layer's dtype; or as they are coded, int8 or float16.
        scale: of each row of int8 values, see `splore.modelfile.values`; otherwise None.
        support: where they are.
        mask: where the mask differs from the support, or None for a mask that is full.
        negative_zeros: where S is -0 under the mask.
    """

    values: Tensor
    scale: Tensor | None
    support: Index
    mask: Index | None
    negative_zeros: Index

    @property
    def nbytes(self) -> int:
        """Bytes of the values and of all positions."""
        indices = [index.code.nbytes for index in (self.support, self.mask, self.negative_zeros) if index is not None]
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes) + sum(indices)

    def bytes_at_least(self, places: int) -> float:
        """The bytes of the values, and what any coding takes for the support: a random set of `places` positions."""
        share = self.support.count / max(places, 1)
        entropy = -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes) + places * entropy / 8


@torch.no_grad()
def pack(layer: LowRankSparse, values: Values | None = None) -> PackedSparse | None:
    """The sparse part of a layer without its zeros, on the CPU; None for a layer that has none."""
    if layer.S is None or layer.mask is None:
        return None
    S, mask, blocks = layer.S.detach().cpu(), layer.mask.cpu(), layer.blocks
    if not blocks.whole(mask):
        raise ValueError(f"expected a mask of whole blocks of {blocks.size} to be written, found parts of blocks")
    code = coded(S, outputs(layer), values, mask)
    rice = blocks.size > 1 or code is not None
    if code is not None:
        S = code.numbers
    support = blocks.any(S)
    held = blocks.spread(support)
    return PackedSparse(
        values=S[held],
        scale=None if code is None else code.scale,
        support=Index.of(support, rice),
        mask=None if mask.all() else Index.of(blocks.any(mask) ^ support, rice),
        negative_zeros=Index.of(mask & ~held & S.signbit()),
    )


def unpack(packed: PackedSparse, m: int, k: int, blocks: Blocks = ENTRIES) -> tuple[Tensor, Tensor]:
    """S (m, k), in the dtype of the values and as these are coded, and its mask (m, k): the inverse of `pack`.

    Raises:
        ValueError: the positions are not those of such a matrix, or not as many as the values.
    """

    def whole(positions: Tensor) -> Tensor:
        return blocks.spread(positions.view(m, -1)).flatten()

    count = blocks.count(m, k)
    support = whole(packed.support.positions(count))
    if packed.values.shape != (support.count_nonzero(),):
        raise ValueError(f"expected {support.count_nonzero()} values, found a tensor {tuple(packed.values.shape)}")
    negative = packed.negative_zeros.positions(m * k)
    mask = torch.ones_like(support) if packed.mask is None else support ^ whole(packed.mask.positions(count))
    if (negative & (support | ~mask)).any():
        raise ValueError("zeros with a sign lie on non-zeros or outside the mask")
    S = torch.zeros(m * k, dtype=packed.values.dtype)
    S[support] = packed.values
    S[negative] = -0.0
    return S.view(m, k), mask.view(m, k)
