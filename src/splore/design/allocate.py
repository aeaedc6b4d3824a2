"""One budget of parameters, shared by the ranks and the entries of all layers of a trained network.

A rank of an m x k matrix costs m + k parameters and an entry of S one. With a cost p of a parameter, in the unit of the
squared error, every layer makes least of

    ||W - L - S||^2  +  p (c rank(L) (m + k) + nnz(S))

by turns: L keeps the singular directions of W - S whose energy exceeds p c (m + k), S the entries of W - L whose square
exceeds p; where S is kept in blocks, those whose mean square does. Each turn lowers the sum, so a layer has rank 0
where directions are not worth their cost. The p for which the layers together meet the budget is found by bisection.
The factor c asks more of a direction than of as many entries; see `CAUTION`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from splore.design.blocks import ENTRIES, Blocks, best_within

CAUTION = 4.0
"""c, where nothing tells a better one. With c = 1 a trained ResNet-20 at 30 % of its parameters came nearer to the
outputs of the dense net than with S alone, and yet classified worse: a last layer took rank 10, for ten classes, and
little else."""

ROUNDS, HALVINGS, RANGE = 6, 14, 30
"""Rounds of L and S at most, and bisection steps, over so many octaves of p."""


@dataclass(frozen=True)
class Split:
    """L = A·B and the mask of S for one matrix (m, k)."""

    A: Tensor
    B: Tensor
    mask: Tensor

    @property
    def params(self) -> int:
        """Parameters of A, B and the entries of S."""
        return self.A.numel() + self.B.numel() + int(self.mask.sum())


def split_at(W: Tensor, cost: float, most: int, blocks: Blocks = ENTRIES, caution: float = CAUTION) -> Split:
    """The best split of W (m, k) found where a parameter costs as much as a squared error of `cost`.

    `most` is the largest rank, `caution` is c; where that is infinite, S is alone. L and S each have the first turn
    once, S alone is a third try, and the best one counts.
    """
    mask = _dear(W, cost, blocks)
    found = [Split(W[:, :0], W[:0], mask)]
    if most and math.isfinite(caution):
        found += [_alternate(W, start, cost, most, blocks, caution) for start in (torch.zeros_like(mask), mask)]

    def total(split: Split) -> float:
        rest = (W - split.A @ split.B).masked_fill(split.mask, 0)
        dear = caution * split.A.shape[1] * sum(W.shape) if split.A.numel() else 0
        return rest.square().sum().item() + cost * (dear + int(split.mask.sum()))

    return min(found, key=total)


def _dear(rest: Tensor, cost: float, blocks: Blocks) -> Tensor:
    """The mask of the blocks that are worth more than their entries cost."""
    return blocks.spread(blocks.means(rest.square()) > cost)


def _alternate(W: Tensor, mask: Tensor, cost: float, most: int, blocks: Blocks, caution: float) -> Split:
    A, B = W[:, :0], W[:0]
    for _ in range(ROUNDS):
        A, B = _directions(W - (W - A @ B) * mask, caution * cost * sum(W.shape), most)
        before, mask = mask, _dear(W - A @ B, cost, blocks)
        if torch.equal(mask, before):
            break
    return Split(A, B, mask)


def _directions(matrix: Tensor, cost: float, most: int) -> tuple[Tensor, Tensor]:
    """A (m, r) with orthonormal columns, and B: the singular directions whose energy exceeds `cost`, at most `most`.

    For a tall matrix it is B that has orthonormal rows.
    """
    if matrix.shape[0] > matrix.shape[1]:
        B, A = _directions(matrix.T, cost, most)
        return A.T, B.T
    energies, vectors = torch.linalg.eigh(matrix @ matrix.T)
    rank = min(int((energies > cost).sum()), most)
    A = vectors[:, len(energies) - rank :]
    return A, A.T @ matrix


def share(
    matrices: Mapping[str, Tensor],
    budget: int,
    most: Mapping[str, int],
    blocks: Mapping[str, Blocks] | None = None,
    caution: float = CAUTION,
) -> dict[str, Split]:
    """The split of each matrix (m, k), for one cost of a parameter, that together take at most `budget` parameters.

    Squared errors must be comparable between the matrices. `most` is the largest rank of each, and S is kept in
    `blocks`, or entry by entry; `caution` is c. What one cost leaves of the budget goes to the largest blocks that are
    left, so it is met exactly, or but for a part of a block.
    """
    blocks = dict.fromkeys(matrices, ENTRIES) if blocks is None else blocks
    exact = {name: matrix.double() for name, matrix in matrices.items()}
    high = math.log2(max(W.square().sum().item() for W in exact.values()) or 1.0)
    low, splits = high - RANGE - math.log2(max(W.numel() for W in exact.values())), None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        trial = {name: split_at(W, 2.0**middle, most[name], blocks[name], caution) for name, W in exact.items()}
        if sum(split.params for split in trial.values()) <= budget:
            high, splits = middle, trial
        else:
            low = middle
    if splits is None:
        splits = {name: split_at(W, 2.0**high, most[name], blocks[name], caution) for name, W in exact.items()}
    return _filled(exact, splits, budget, blocks)


def _filled(
    matrices: Mapping[str, Tensor], splits: dict[str, Split], budget: int, blocks: Mapping[str, Blocks]
) -> dict[str, Split]:
    """The splits with the largest blocks that they leave out, as far as the budget goes."""
    scores, sizes = {}, {}
    for name, x in splits.items():
        each = blocks[name]
        kept = each.any(x.mask)
        scores[name] = each.means((matrices[name] - x.A @ x.B).square()).masked_fill(kept, -1)
        sizes[name] = each.sizes(x.mask).masked_fill(kept, budget + 1)  # which are in already, and fit no more
    free = max(budget - sum(x.params for x in splits.values()), 0)
    flat_scores, flat_sizes = (torch.cat([x.flatten() for x in each.values()]) for each in (scores, sizes))
    more = best_within(flat_scores, flat_sizes, free).split([x.numel() for x in scores.values()])
    return {
        name: Split(x.A, x.B, x.mask | blocks[name].spread(piece.view_as(scores[name])))
        for (name, x), piece in zip(splits.items(), more, strict=True)
    }
