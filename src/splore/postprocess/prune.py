"""Stage (c), post-processing: the unimportant entries of S are cut, by energy or to an exact budget.

Where S is kept in blocks (see `splore.design.blocks`) a whole block stays or goes. What is said of an entry here holds
for a block then: its energy is the sum over its entries, its score the mean, its cost the parameters that it has.

The energy of a matrix is the sum of its squares. What is cut is recorded in the layer's `mask`; to keep it cut while
fine-tuning, see `splore.hold_masks`.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from splore.design.blocks import best_within
from splore.design.layers import LowRankSparse, check_finite, decomposed_layers, parameter_counts
from splore.design.ranks import check_params, count_holding

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
    energies, squares = _energies(layer)
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
    energies, squares = _energies(layer, torch.float64)
    order = squares.flatten().sort().indices
    reached = energies.flatten()[order].cumsum(0)
    shares = torch.empty_like(reached)
    shares[order] = reached / reached[-1].clamp_min(torch.finfo(torch.float64).tiny)
    return layer.blocks.spread(shares.view_as(squares))


def relative(layer: LowRankSparse) -> Tensor:
    """S^2 over the energy of the layer's whole weight A·B + S: an equal marginal error of each layer's weight."""
    weight = layer.matrix.detach().float()
    squares = _energies(layer)[1]
    return layer.blocks.spread(squares) / weight.square().sum().clamp_min(torch.finfo(torch.float32).tiny)


def _energies(layer: LowRankSparse, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The energy of each block of S, and its mean over the block's entries."""
    squares = layer.S.detach().to(dtype).square()
    return layer.blocks.sums(squares), layer.blocks.means(squares)


@torch.no_grad()
def prune(
    model: nn.Module,
    *,
    energy: float | None = None,
    params: int | float | None = None,
    score: Score = lamp,
) -> dict[str, float]:
    """Cuts entries of S in place, and returns the density of S in each layer afterwards.

    Args:
        model: a decomposed network.
        energy: the paper's rule, per layer: the smallest set of entries of S is kept that holds at least this share
            of S's energy, above 0 and at most 1.
        params: a budget for the whole net instead: parameters that it may hold after the cut, as a number, or as a
            share (a float) of the parameters of the dense net. Met exactly, or but for a part of a block, unless fewer
            entries are left, non-zero and within the masks: those are all kept, and a warning says what the net holds.
        score: the global criterion by which `params` chooses entries.

    Raises:
        ValueError: not exactly one of `energy` and `params`; a value out of range; a budget below what the net holds
            without any S; nothing to cut; weights or scores with NaN, or scores of another shape than S.
    """
    if (energy is None) == (params is None):
        raise ValueError("give exactly one of energy= (per layer) and params= (a budget for the whole net)")
    layers = {name: layer for name, layer in decomposed_layers(model).items() if layer.S is not None}
    if not layers:
        raise ValueError("the model has no sparse part to cut: decompose it first, with sparse=True")
    if energy is not None:
        if not 0 < energy <= 1:
            raise ValueError(f"the energy to keep must be above 0 and at most 1, found {energy}")
        check_finite(model)
        for layer in layers.values():
            _keep(layer, _energetic(layer, energy))
    elif params is not None:
        allowed = entries_within(model, params)
        check_finite(model)
        missing = allowed - _keep_best(layers, allowed, score)
        if missing > 0:
            held = budget_entries(model, 1.0)[1] + allowed - missing
            warnings.warn(
                f"the budget of {held + missing:,} parameters leaves room for {allowed:,} entries of S, but only "
                f"{allowed - missing:,} are left, non-zero and within the masks: the net holds {held:,}",
                stacklevel=3,  # past the decorator
            )
    return {name: layer.mask.double().mean().item() for name, layer in layers.items()}


def budget_entries(model: nn.Module, params: int | float, without_L: bool = False) -> tuple[int, int]:
    """How many parameters a budget allows, and how many a decomposed model holds without any entry of S.

    `params` is a number, or a share (a float) of the dense net's parameters. `without_L` leaves out what A and B hold,
    too, where there is an S.
    """
    held, dense = parameter_counts(model)
    if without_L:
        layers = [layer for layer in decomposed_layers(model).values() if layer.S is not None]
        held -= sum(part.numel() for layer in layers for part in layer.factors)
    return (int(params * dense) if isinstance(params, float) else params), held


def entries_within(model: nn.Module, params: int | float, without_L: bool = False) -> int:
    """How many entries of S a budget allows, beside all else that the model holds; ValueError if it allows less."""
    check_params(params)
    allowed, held = budget_entries(model, params, without_L)
    if allowed < held:
        cut, advice = ("L and S", "") if without_L else ("S", "lower the ranks, ")
        raise ValueError(
            f"a budget of {allowed:,} parameters can't be met by cutting {cut}: without any {cut} the net holds "
            f"{held:,}; raise the budget, {advice}or decompose the layers that are still dense"
        )
    return allowed - held


def _energetic(layer: LowRankSparse, energy: float) -> Tensor:
    """The blocks of the smallest set of entries of S that holds this share of its energy; never a block of zeros."""
    energies, squares = _energies(layer, torch.float64)
    order = squares.flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
    mask[order[: count_holding(energies.flatten()[order], energy)]] = True
    return mask.view_as(squares) & layer.blocks.any(layer.S.detach())


def scores_within(name: str, layer: LowRankSparse, within: Tensor, score: Score) -> Tensor:
    """The scores of those blocks of a layer's S that a mask (m, b) of blocks names, flat, in float64.

    Raises:
        ValueError: scores that don't have the shape of S, or that are no numbers.
    """
    scores = score(layer)
    if scores.shape != layer.S.shape:
        raise ValueError(
            f"expected a score for each entry of S, of shape {tuple(layer.S.shape)}, found {tuple(scores.shape)} for "
            f"{name!r}"
        )
    scores = layer.blocks.means(scores.double())[within]
    if scores.isnan().any():
        raise ValueError(f"expected numbers as scores, found NaN for {name!r}")
    return scores


def _keep_best(layers: dict[str, LowRankSparse], count: int, score: Score) -> int:
    """Keeps the `count` entries of the highest score over all layers; of equal ones, those that come first.

    Returns how many there were to keep, at most `count`.
    """
    alive = [layer.blocks.any(layer.S * layer.mask) for layer in layers.values()]
    sizes = torch.cat(
        [layer.blocks.sizes(layer.mask)[keep] for layer, keep in zip(layers.values(), alive, strict=True)]
    )
    scores = torch.cat(
        [scores_within(name, layer, keep, score) for (name, layer), keep in zip(layers.items(), alive, strict=True)]
    )
    chosen = best_within(scores, sizes, count)
    start = 0
    for layer, keep in zip(layers.values(), alive, strict=True):
        mask = torch.zeros_like(keep)
        end = start + int(keep.sum())
        mask[keep] = chosen[start:end]
        _keep(layer, mask)
        start = end
    return min(count, int(sizes.sum()))


def _keep(layer: LowRankSparse, blocks: Tensor) -> None:
    layer.mask.logical_and_(layer.blocks.spread(blocks))
    layer.S.mul_(layer.mask)


def cubic(progress: float, first: float, last: float) -> float:
    """The value between `first` and `last` at a progress from 0 to 1: fast at first, slow at the end.

    The gradual schedule of Zhu & Gupta (arXiv 1710.01878).
    """
    return last + (first - last) * (1 - min(max(progress, 0.0), 1.0)) ** 3
