"""Scores: how important each entry of S is, beside those of its layer and of all others.

Of an S in blocks (see `splore.design.blocks`) all entries of a block have one score, from the mean of their squares.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from splore.design.layers import LowRankSparse

Score = Callable[[LowRankSparse], Tensor]
"""The importance of each entry of a layer's S, a tensor (m, k) of non-negative numbers comparable across layers.

Of a block the mean counts; the scores here give all entries of a block the same."""


def magnitude(layer: LowRankSparse) -> Tensor:
    """|S|, of a block the root of its mean square: one threshold over all layers."""
    S, blocks = layer.S.detach(), layer.blocks
    return blocks.spread(blocks.norms(S) / blocks.sizes(S).sqrt())


def lamp(layer: LowRankSparse) -> Tensor:
    """S^2 over the energy of the entries of that layer that are at least as large (Lee et al., arXiv 2010.07611).

    The share of the layer's remaining energy that goes with the entry, when the layer is cut from the smallest up: an
    equal marginal loss over all layers, and no layer is ever emptied.
    """
    energies, squares = block_energies(layer)
    ordered, order = squares.flatten().sort()
    remaining = energies.flatten()[order].double().flip(0).cumsum(0).flip(0)
    scores = torch.zeros_like(ordered)
    scores[order] = (ordered / remaining.clamp_min(torch.finfo(torch.float64).tiny)).float()
    return layer.blocks.spread(scores.view_as(squares))


def energy_share(layer: LowRankSparse) -> Tensor:
    """The share of S's energy that lies in entries no larger than this one.

    Keeping what exceeds 1 - tau is the paper's rule for the energy tau: so a budget met by this score is the paper's
    rule, with the one tau for all layers that meets it.
    """
    energies, squares = block_energies(layer, torch.float64)
    order = squares.flatten().sort().indices
    reached = energies.flatten()[order].cumsum(0)
    shares = torch.empty_like(reached)
    shares[order] = reached / reached[-1].clamp_min(torch.finfo(torch.float64).tiny)
    return layer.blocks.spread(shares.view_as(squares))


def relative(layer: LowRankSparse) -> Tensor:
    """S^2 over the energy of the layer's whole weight A·B + S: an equal marginal error of each layer's weight."""
    weight = layer.matrix.detach().float()
    squares = block_energies(layer)[1]
    return layer.blocks.spread(squares) / weight.square().sum().clamp_min(torch.finfo(torch.float32).tiny)


def block_energies(layer: LowRankSparse, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The energy of each block of S, and its mean over the block's entries."""
    squares = layer.S.detach().to(dtype).square()
    return layer.blocks.sums(squares), layer.blocks.means(squares)


def scores_within(name: str, layer: LowRankSparse, within: Tensor, score: Score) -> Tensor:
    """The scores of those blocks of a layer's S that a mask (m, b) of blocks names, flat, in float64.

    Raises:
        ValueError: scores that don't have the shape of S, or that are no numbers.
    """
    scores = score(layer)
    if not isinstance(scores, Tensor) or scores.shape != layer.S.shape:
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"expected a score for each entry of S, of shape {tuple(layer.S.shape)}, found {found} for {name!r}"
        )
    scores = layer.blocks.means(scores.double())[within]
    if scores.isnan().any():
        raise ValueError(f"expected numbers as scores, found NaN for {name!r}")
    return scores
