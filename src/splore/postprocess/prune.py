"""Stage (c), post-processing: the unimportant entries of S are cut, by energy or to an exact budget.

Where S is kept in blocks (see `splore.design.blocks`) a whole block stays or goes. What is said of an entry here holds
for a block then: its energy is the sum over its entries, its score the mean, its cost the parameters that it has.

The energy of a matrix is the sum of its squares. What is cut is recorded in the layer's `mask`; to keep it cut while
fine-tuning, see `splore.hold_masks`.
"""

import copy
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from splore.design.blocks import best_within
from splore.design.layers import LowRankSparse, check_finite, decomposed_layers
from splore.design.prices import Limit, Params, Priced, Prices, check_within, said
from splore.design.ranks import count_holding
from splore.postprocess.scores import Score, block_energies, lamp, scores_within

ATTEMPTS = 10
"""How often a budget whose prices move is tried, at most."""
SETTLING = 2
"""How often it is met by the prices of the try before, to learn those that hold there."""


class BudgetWarning(UserWarning):
    """A budget was missed by more than its tolerance, or leaves room for more entries than there are."""


@torch.no_grad()
def prune(
    model: nn.Module,
    *,
    energy: float | None = None,
    params: int | float | None = None,
    budget: Limit | None = None,
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
        budget: one in another currency: `splore.Bytes`, `splore.MACs`, `splore.Milliseconds`, or `splore.Params`,
            which is what `params` gives. Where the cost of an entry depends on what else is kept, as that of bytes and
            of time does, the cut is made, measured and made anew until it meets the budget.
        score: the global criterion by which a budget chooses entries: those of the best score for their cost are kept.

    Raises:
        ValueError: not exactly one of `energy`, `params` and `budget`; a value out of range; a budget below what the
            net holds without any S; nothing to cut; weights or scores with NaN, or scores of another shape than S.
    """
    if sum(given is not None for given in (energy, params, budget)) != 1:
        raise ValueError("give exactly one of energy= (per layer) and params= or budget= (for the whole net)")
    layers = _with_sparse_part(model)
    if energy is not None:
        if not 0 < energy <= 1:
            raise ValueError(f"the energy to keep must be above 0 and at most 1, found {energy}")
        check_finite(model)
        for layer in layers.values():
            _keep(layer, _energetic(layer, energy))
    else:
        limit = budget if budget is not None else Params(params)  # type: ignore[arg-type]
        for warning in _keep_within(model, layers, limit, score):
            warnings.warn(warning, BudgetWarning, stacklevel=3)  # past the decorator
    return {name: layer.mask.double().mean().item() for name, layer in layers.items()}


def _keep_within(model: nn.Module, layers: dict[str, LowRankSparse], limit: Limit, score: Score) -> list[str]:
    """Keeps what a budget allows; returns what there is to warn of."""
    check_finite(model)
    allowed = limit.allowed(model)
    if limit.tolerance:
        return _keep_measured(model, layers, limit, allowed, score)
    prices = limit.prices(model)
    check_within(model, prices, allowed)
    everything = _keep_best(layers, allowed - prices.of_ranks(model), prices.entry, score)
    held = prices.of(model)
    return [_left_over(layers, prices, allowed, held)] if everything and held < allowed else []


def _keep_measured(
    model: nn.Module, layers: dict[str, LowRankSparse], limit: Limit, allowed: float, score: Score
) -> list[str]:
    """The same where prices move with the cut: it is made, measured and made anew."""
    prices = settled(model, limit, score).account
    before = [(layer.S.detach().clone(), layer.mask.clone()) for layer in layers.values()]
    aim = allowed * (1 - limit.tolerance / 2)
    whole = sum(prices.entry[name] * int(layer.nnz) for name, layer in layers.items())

    def restore() -> None:
        for layer, (S, mask) in zip(layers.values(), before, strict=True):
            layer.S.copy_(S)
            layer.mask.copy_(mask)

    def keep(amount: float) -> float:
        restore()
        _keep_best(layers, amount, prices.entry, score)
        return limit.measure(model)

    held = keep(whole)
    if held <= allowed:
        return [_left_over(layers, prices, allowed, held)] if held < aim else []
    amount, low, high = aim - prices.of_ranks(model), 0.0, whole
    fits = 0.0  # the most that was found within the budget
    for _ in range(ATTEMPTS):
        amount = amount if low < amount < high else (low + high) / 2
        held = keep(amount)
        if allowed * (1 - limit.tolerance) <= held <= allowed:
            return []
        if held <= allowed:
            fits = max(fits, amount)
        low, high = (low, amount) if held > aim else (amount, high)
        if high - low < limit.tolerance / 2 * aim:  # nothing is left between them: a measurement was disturbed
            low, high = 0.0, whole
        amount += aim - held
    held = keep(fits)
    if held > allowed and not fits:
        restore()
        raise ValueError(
            f"a budget of {said(allowed)} {prices.unit} can't be met by cutting S: the least that was found takes "
            f"{said(held)}; raise the budget, lower the ranks, or decompose the layers that are still dense"
        )
    return [f"the budget of {said(allowed)} {prices.unit} was not met closely: the net takes {said(held)}"]


@torch.no_grad()
def settled(
    model: nn.Module, limit: Limit, score: Score, share: Callable[[nn.Module, Priced, Score], None] | None = None
) -> Priced:
    """A budget with the prices that hold where it is met, found by cutting copies; `share` cuts the ranks of one.

    Raises ValueError for a budget below what the net holds without S, and without L where that is cut too.
    """
    check_finite(model)
    allowed = limit.allowed(model)
    if not limit.tolerance:
        prices = limit.prices(model)
        check_within(model, prices, allowed, without_L=share is not None)
        return Priced(prices, allowed)
    trial = copy.deepcopy(model)
    layers = _with_sparse_part(trial)
    entries = sum(int(layer.nnz) for layer in layers.values())
    _keep_best(layers, entries / 4, dict.fromkeys(layers, 1.0), score)  # somewhere to begin
    for _ in range(SETTLING):
        prices = limit.prices(trial)
        trial = copy.deepcopy(model)
        if share is not None:
            share(trial, Priced(prices, allowed), score)
        layers = _with_sparse_part(trial)
        _keep_best(layers, allowed - prices.of_ranks(trial), prices.entry, score)
    prices = limit.prices(trial)
    if not any(layer.mask.any() for layer in layers.values()):
        check_within(trial, prices, allowed, without_L=share is not None)
    return Priced(prices, allowed)


def _with_sparse_part(model: nn.Module) -> dict[str, LowRankSparse]:
    layers = {name: layer for name, layer in decomposed_layers(model).items() if layer.S is not None}
    if not layers:
        raise ValueError("the model has no sparse part to cut: decompose it first, with sparse=True")
    return layers


def _left_over(layers: dict[str, LowRankSparse], prices: Prices, allowed: float, held: float) -> str:
    entries = sum(int(layer.mask.sum()) for layer in layers.values())
    return (
        f"the budget of {said(allowed)} {prices.unit} leaves room for more entries of S than the {entries:,} that are "
        f"left, non-zero and within the masks: the net holds {said(held)}"
    )


def _energetic(layer: LowRankSparse, energy: float) -> Tensor:
    """The blocks of the smallest set of entries of S that holds this share of its energy; never a block of zeros."""
    energies, squares = block_energies(layer, torch.float64)
    order = squares.flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
    mask[order[: count_holding(energies.flatten()[order], energy)]] = True
    return mask.view_as(squares) & layer.blocks.any(layer.S.detach())


def _keep_best(layers: dict[str, LowRankSparse], amount: float, prices: Mapping[str, float], score: Score) -> bool:
    """Keeps the entries of the highest score for their price that an amount pays; of equal ones, the first.

    Returns whether it pays for all that are left.
    """
    alive = {name: layer.blocks.any(layer.S * layer.mask) for name, layer in layers.items()}
    costs = [prices[name] * layer.blocks.sizes(layer.mask)[alive[name]].double() for name, layer in layers.items()]
    scores = [scores_within(name, layer, alive[name], score) / prices[name] for name, layer in layers.items()]
    chosen = best_within(torch.cat(scores), torch.cat(costs), amount * (1 + 1e-12))
    start = 0
    for layer, keep in zip(layers.values(), alive.values(), strict=True):
        mask = torch.zeros_like(keep)
        end = start + int(keep.sum())
        mask[keep] = chosen[start:end]
        _keep(layer, mask)
        start = end
    return bool(chosen.all())


def _keep(layer: LowRankSparse, blocks: Tensor) -> None:
    layer.mask.logical_and_(layer.blocks.spread(blocks))
    layer.S.mul_(layer.mask)


def cubic(progress: float, first: float, last: float) -> float:
    """The value between `first` and `last` at a progress from 0 to 1: fast at first, slow at the end.

    The gradual schedule of Zhu & Gupta (arXiv 1710.01878).
    """
    return last + (first - last) * (1 - min(max(progress, 0.0), 1.0)) ** 3
