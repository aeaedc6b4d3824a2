"""Stage (c), post-processing: the ranks of L are cut, by the energy of singular values or to a budget shared with S."""

import copy

import torch
from torch import Tensor, nn

from splore.design.blocks import Blocks
from splore.design.layers import LowRankSparse, check_finite, decomposed_layers
from splore.design.prices import Limit, Params, Priced, Prices
from splore.design.ranks import count_holding
from splore.postprocess.prune import settled
from splore.postprocess.scores import Score, lamp, scores_within

Spectrum = tuple[Tensor, Tensor, Tensor]

ROUNDS = 5
"""How often ranks are chosen by the costs that the ranks before them left, where they do not settle sooner."""


def _spectrum(layer: LowRankSparse) -> Spectrum:
    """A (m, r) and B (r, k) whose product is L, by singular directions, and the energies of these, largest first."""
    m, k = layer.matrix.shape
    A, B = layer.factors or (layer.reference.new_empty(m, 0), layer.reference.new_empty(0, k))
    Qa, Ra = torch.linalg.qr(A.detach().double())
    Qb, Rb = torch.linalg.qr(B.detach().double().T)
    U, s, Vh = torch.linalg.svd(Ra @ Rb.T)
    root = s.sqrt()
    return Qa @ U * root, root[:, None] * (Vh @ Qb.T), s.square()


def _at_rank(layer: LowRankSparse, W: Tensor, spectrum: Spectrum, rank: int) -> None:
    """Gives a layer this rank; what of W that leaves over becomes S, where the mask lets it."""
    A, B, _ = spectrum
    A, B = A[:, :rank].to(W), B[:rank].to(W)
    layer.set_parts(A, B, W - A @ B, layer.mask)


def _cheapest(W: Tensor, mask: Tensor, blocks: Blocks, spectrum: Spectrum, cost: float, step: float) -> int:
    """The rank r that makes least of what is lost and paid: a loss of `cost` for an entry, of `step` for a direction.

    That is sum of min((W - L_r)^2, cost) where S may be, sum of (W - L_r)^2 where it may not, and step r; the least of
    what a block loses and costs where S is kept in blocks.
    """
    A, B, energies = spectrum
    rest = W.to(torch.promote_types(W.dtype, torch.float32), copy=True)  # squares of half precision underflow
    most = (cost * blocks.sizes(mask)).to(rest).masked_fill(~blocks.any(mask), torch.inf)
    best, least = 0, _lost(rest, blocks, most)
    for r in range(len(energies)):
        if step * (r + 1) >= least:
            break
        rest.addr_(A[:, r].to(rest), B[r].to(rest), alpha=-1)
        loss = _lost(rest, blocks, most) + step * (r + 1)
        if loss < least:
            best, least = r + 1, loss
    return best


def _lost(rest: Tensor, blocks: Blocks, most: Tensor) -> float:
    return torch.minimum(blocks.sums(rest.square()), most).sum().item()


@torch.no_grad()
def cut_ranks(model: nn.Module, energy: float) -> dict[str, int]:
    """Cuts the singular values of every L = A·B by energy, in place, and returns the ranks afterwards.

    Each layer keeps the smallest rank whose singular values hold at least this share of the energy of its L; the
    parameters A and B are new ones where the rank falls, so optimisers must be built afterwards.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"the energy to keep must be above 0 and at most 1, found {energy}")
    check_finite(model)
    for layer in decomposed_layers(model).values():
        if layer.rank == 0:
            continue
        A, B, energies = _spectrum(layer)
        rank = count_holding(energies, energy)
        if rank < layer.rank:
            layer.set_parts(A[:, :rank].to(layer.A), B[:rank].to(layer.B))
    return {name: layer.rank for name, layer in decomposed_layers(model).items()}


@torch.no_grad()
def share_budget(
    model: nn.Module, params: int | float | None = None, score: Score = lamp, budget: Limit | None = None
) -> dict[str, int]:
    """Cuts every rank to what a budget that L shares with S makes worth its cost, in place; returns the ranks.

    A layer pays for an entry of S what the weakest one that the budget lets it keep is worth: p, its energy. A singular
    direction of L costs as much as c entries; in parameters that is m + k. The layer's rank is then the r that makes
    least of

        sum of min((W - L_r)^2, p)  +  p c r,

    what is lost in cutting S plus what L takes away from it. The directions above r go over into S, so that W = A·B + S
    stays as it was; `prune` with the same budget and score is to follow. Where an earlier cut has masked S, nothing can
    go over: there all of (W - L_r)^2 is lost, and counts as lost. Optimisers must be built afterwards.

    Args:
        model: a decomposed network.
        params: the budget, as in `prune`.
        score: how entries are compared across layers, as in `prune`.
        budget: one in another currency instead, as in `prune`.

    Raises:
        ValueError: as `prune` does.
    """
    if (params is None) == (budget is None):
        raise ValueError("give exactly one of params= and budget=")
    if not any(layer.S is not None for layer in decomposed_layers(model).values()):
        raise ValueError("the model has no sparse part to share a budget with: decompose it first, with sparse=True")
    limit = budget if budget is not None else Params(params)  # type: ignore[arg-type]
    _share(model, settled(model, limit, score, _share), score)
    return {name: layer.rank for name, layer in decomposed_layers(model).items()}


def _share(model: nn.Module, budget: Priced, score: Score) -> None:
    layers = {name: layer for name, layer in decomposed_layers(model).items() if layer.S is not None}
    prices, left = budget.account, max(budget.amount - budget.account.held, 0.0)
    parts = {name: _spectrum(layer) for name, layer in layers.items()}
    weights = {name: layer.matrix.detach() for name, layer in layers.items()}
    trials = copy.deepcopy(layers)  # the ranks are tried on these, so that an error leaves the model as it was
    ranks = dict.fromkeys(layers, 0)
    for name, trial in trials.items():
        if not trial.mask.any():  # what an entry of such a layer would be worth is known from a whole S alone
            trial.mask.fill_(True)
        _at_rank(trial, weights[name], parts[name], 0)
    for _ in range(ROUNDS):
        before = ranks
        # What is outside a mask is W's, not the trial's: there it is gone with the directions that held it.
        weights = {name: torch.where(x.mask, x.matrix.detach(), weights[name]) for name, x in trials.items()}
        masks = {name: layer.mask for name, layer in layers.items()}
        ranks = _ranks_within(left, prices, trials, masks, weights, parts, score)
        for name, trial in trials.items():
            _at_rank(trial, weights[name], parts[name], ranks[name])
        if ranks == before:
            break
    for name, trial in trials.items():
        layers[name].set_parts(trial.A, trial.B, trial.S, layers[name].mask)


def _ranks_within(
    budget: float,
    prices: Prices,
    layers: dict[str, LowRankSparse],
    masks: dict[str, Tensor],
    weights: dict[str, Tensor],
    parts: dict[str, Spectrum],
    score: Score,
) -> dict[str, int]:
    """The ranks at the costs of entries for which ranks and entries together take the budget."""
    values, squares, paid = {}, {}, {}  # of the blocks that a mask has, the dearest first
    for name, x in layers.items():
        within, price = x.blocks.any(x.mask), prices.entry[name]
        values[name], order = scores_within(name, x, within, score).div(price).sort(descending=True)
        paid[name] = price * x.blocks.sizes(x.mask)[within][order].double()
        squares[name] = x.blocks.means(x.S.detach().double().square())[within].sort(descending=True).values
    ordered, order = torch.cat(list(values.values())).sort(descending=True)
    taken = torch.cat(list(paid.values()))[order].cumsum(0)
    real = [name for name, mask in masks.items() if mask.any()]  # the others' entries set a cost, and are none

    def at(count: int, dearer: float = 1.0) -> tuple[dict[str, int], float]:
        """The ranks at the costs that hold when the `count` best are kept, and what they and the entries take."""
        ranks, least = {}, ordered[count - 1] if count else ordered[0] + 1
        for name, layer in layers.items():
            kept = int((values[name] >= least).sum())
            cost = dearer * squares[name][max(kept, 1) - 1].item()
            step = cost * prices.direction[name] / prices.entry[name]
            ranks[name] = _cheapest(weights[name], masks[name], layer.blocks, parts[name], cost, step)
        entries = sum(paid[name][values[name] >= least].sum().item() for name in real)
        entries = min(taken[count - 1].item() if count else 0.0, entries)  # of equal ones, some may be too many
        return ranks, entries + sum(rank * prices.direction[name] for name, rank in ranks.items())

    few, many = 0, len(ordered)
    while few < many:  # more entries make for lower costs, and so for higher ranks
        middle = (few + many + 1) // 2
        if at(middle)[1] <= budget:
            few = middle
        else:
            many = middle - 1
    if few:
        return at(few)[0]
    # Even beside a single entry the ranks would take more: where S is masked, directions can be worth many an entry.
    tries = (at(0, 2.0 ** (quarters / 4)) for quarters in range(256))
    return next((ranks for ranks, taken in tries if taken <= budget), dict.fromkeys(layers, 0))
