"""Stage (c), post-processing: the ranks of L are cut, by the energy of singular values or to a budget shared with S."""

import torch
from torch import Tensor, nn

from splore.design.layers import LowRankSparse, decomposed_layers
from splore.design.ranks import count_holding
from splore.postprocess.prune import Score, entries_within, lamp

Spectrum = tuple[Tensor, Tensor, Tensor]

ROUNDS = 5
"""How often ranks are chosen by the prices that the ranks before them left, where they do not settle sooner."""


def _spectrum(layer: LowRankSparse) -> Spectrum:
    """A (m, r) and B (r, k) whose product is L, by singular directions, and the energies of these, largest first."""
    Qa, Ra = torch.linalg.qr(layer.A.detach().double())
    Qb, Rb = torch.linalg.qr(layer.B.detach().double().T)
    U, s, Vh = torch.linalg.svd(Ra @ Rb.T)
    root = s.sqrt()
    return Qa @ U * root, root[:, None] * (Vh @ Qb.T), s.square()


def _move(layer: LowRankSparse, spectrum: Spectrum, rank: int) -> None:
    """Gives a layer this rank; what L loses or gains by it, S gains or loses where its mask lets it."""
    A, B, _ = spectrum
    W = layer.matrix.detach()
    A, B = A[:, :rank].to(W), B[:rank].to(W)
    layer.set_parts(A, B, W - A @ B, layer.mask)


def _cheapest(W: Tensor, spectrum: Spectrum, price: float) -> int:
    """The rank r that makes least of sum of min((W - L_r)^2, price) + price r (m + k)."""
    A, B, energies = spectrum
    rest, toll = W.clone(), price * sum(W.shape)
    best, least = 0, rest.square().clamp_max(price).sum().item()
    for r in range(len(energies)):
        if toll * (r + 1) >= least:
            break
        rest.addr_(A[:, r].to(W), B[r].to(W), alpha=-1)
        loss = rest.square().clamp_max(price).sum().item() + toll * (r + 1)
        if loss < least:
            best, least = r + 1, loss
    return best


@torch.no_grad()
def cut_ranks(model: nn.Module, energy: float) -> dict[str, int]:
    """Cuts the singular values of every L = A·B by energy, in place, and returns the ranks afterwards.

    Each layer keeps the smallest rank whose singular values hold at least this share of the energy of its L; the
    parameters A and B are new ones where the rank falls, so optimisers must be built afterwards.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"the energy to keep must be above 0 and at most 1, found {energy}")
    for layer in decomposed_layers(model).values():
        if layer.rank == 0:
            continue
        A, B, energies = _spectrum(layer)
        rank = count_holding(energies, energy)
        if rank < layer.rank:
            layer.set_parts(A[:, :rank].to(layer.A), B[:rank].to(layer.B))
    return {name: layer.rank for name, layer in decomposed_layers(model).items()}


@torch.no_grad()
def share_budget(model: nn.Module, params: int | float, score: Score = lamp) -> dict[str, int]:
    """Cuts every rank to what a budget that L shares with S makes worth its price, in place; returns the ranks.

    A singular direction of L costs m + k parameters, an entry of S costs 1, and a layer pays for an entry what the
    weakest one that the budget lets it keep is worth: p, its energy. Its rank is then the r that makes least of

        sum of min((W - L_r)^2, p)  +  p r (m + k),

    what is lost in cutting S plus what L takes away from it. The directions above r go over into S, so that W = A·B + S
    stays as it was; `prune` with the same budget and score is to follow. Optimisers must be built afterwards.

    Args:
        model: a decomposed network.
        params: the budget, as in `prune`.
        score: how entries are compared across layers, as in `prune`.

    Raises:
        ValueError: as `prune` does.
    """
    layers = {name: layer for name, layer in decomposed_layers(model).items() if layer.S is not None}
    if not layers:
        raise ValueError("the model has no sparse part to share a budget with: decompose it first, with sparse=True")
    budget = entries_within(model, params, without_L=True)
    parts = {name: _spectrum(layer) for name, layer in layers.items()}
    ranks = dict.fromkeys(layers, 0)
    for name, layer in layers.items():
        _move(layer, parts[name], 0)
    for _ in range(ROUNDS):
        before = ranks
        ranks = _ranks_within(budget, layers, parts, score)
        for name, layer in layers.items():
            _move(layer, parts[name], ranks[name])
        if ranks == before:
            break
    return {name: layer.rank for name, layer in decomposed_layers(model).items()}


def _ranks_within(
    budget: int, layers: dict[str, LowRankSparse], parts: dict[str, Spectrum], score: Score
) -> dict[str, int]:
    """The ranks at the prices of entries for which ranks and entries together take the budget."""
    weights = {name: layer.matrix.detach() for name, layer in layers.items()}
    values = {name: score(layer).flatten().double().sort(descending=True).values for name, layer in layers.items()}
    squares = {name: layer.S.detach().square().flatten().sort(descending=True).values for name, layer in layers.items()}
    ordered = torch.cat(list(values.values())).sort(descending=True).values

    def at(count: int) -> tuple[dict[str, int], int]:
        """The ranks at the prices that hold when `count` entries are kept, and what they and the entries take."""
        ranks = {}
        for name in layers:
            kept = int((values[name] >= ordered[count - 1]).sum())
            ranks[name] = _cheapest(weights[name], parts[name], squares[name][max(kept, 1) - 1].item())
        return ranks, count + sum(rank * sum(layers[name].S.shape) for name, rank in ranks.items())

    few, many = 0, min(budget, len(ordered))  # more entries make for lower prices, and so for higher ranks
    while few < many:
        middle = (few + many + 1) // 2
        if at(middle)[1] <= budget:
            few = middle
        else:
            many = middle - 1
    return at(few)[0] if few else dict.fromkeys(layers, 0)
