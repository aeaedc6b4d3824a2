"""How large the rank of each layer is to be."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from splore.design.start import singular_energies


@dataclass(frozen=True)
class Energy:
    """The smallest rank whose singular values hold this share of the matrix's energy (the sum of their squares)."""

    energy: float

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise ValueError(f"a rank's energy must be above 0 and at most 1, found {self.energy}")


@dataclass(frozen=True)
class Budget:
    """Ranks chosen per layer so that the whole net, with S empty, keeps at most this share of the dense parameters.

    One rank more in a layer costs m + k parameters and gains the next singular value's share of the layer's energy:
    ranks are given where the gain per parameter is greatest.
    """

    budget: float

    def __post_init__(self) -> None:
        if not 0 < self.budget < 1:
            raise ValueError(f"a rank budget is a share of the dense parameters between 0 and 1, found {self.budget}")


Rank = int | float | Energy | Budget
"""A whole number: the rank. A fraction below 1: the share of the full rank min(m, k). Or `Energy`, or `Budget`."""


def check_rank(rank: Rank) -> None:
    """Raises ValueError for a rank that no matrix can have."""
    if isinstance(rank, bool) or not isinstance(rank, int | float | Energy | Budget):
        raise ValueError(f"a rank is a number, a fraction, Energy(...) or Budget(...), found {rank!r}")
    if isinstance(rank, int) and rank < 0:
        raise ValueError(f"a rank can't be negative, found {rank}")
    if isinstance(rank, float) and not 0 < rank < 1:
        raise ValueError(f"a rank given as a fraction must lie between 0 and 1, found {rank}; whole ranks are integers")


def check_params(params: int | float | None) -> None:
    """Raises ValueError for a budget that is no number of parameters and no share of the dense net's."""
    if isinstance(params, bool) or not isinstance(params, int | float) or params <= 0:
        raise ValueError(f"a budget is a number of parameters or a share of the dense net's above 0, found {params!r}")
    if isinstance(params, float) and params > 1:
        raise ValueError(f"a share of the dense net's parameters is at most 1, found {params}; give a number as an int")


def choose_rank(rank: int | float | Energy, matrix: Tensor) -> int:
    """The rank of one layer with this matrix (m, k); at least 1, save for the whole number 0. May exceed min(m, k)."""
    if isinstance(rank, int):
        return rank
    if isinstance(rank, float):
        return max(1, round(rank * min(matrix.shape)))
    return count_holding(singular_energies(matrix), rank.energy * (1 - 1e-12))  # what is rounded counts as nothing


def count_holding(energies: Tensor, share: float) -> int:
    """How many of the energies, largest first, together hold at least this share of their sum; at least 1."""
    reached = energies.cumsum(0)
    return int((reached < share * reached[-1]).sum()) + 1


def largest_useful_rank(shape: tuple[int, ...] | torch.Size) -> int:
    """The largest r with r (m + k) < m k: from there on A and B hold more numbers than the matrix itself."""
    m, k = shape
    return (m * k - 1) // (m + k)


def ranks_within(budget: int, matrices: Mapping[str, Tensor], least: int) -> dict[str, int]:
    """Ranks by layer with the sum of r (m + k) at most `budget`, greedily by energy gained per parameter.

    `least` (0 or 1) is the rank that each layer gets before the rest is shared out.

    Raises:
        ValueError: not even the least ranks fit.
    """
    ranks = {name: least for name in matrices}
    left = budget - least * sum(sum(matrix.shape) for matrix in matrices.values())
    if budget < 0:
        raise ValueError(
            f"the rank budget is met by no ranks: what is not decomposed already holds {-budget:,} parameters more; "
            "raise the budget or decompose more layers"
        )
    if left < 0:
        raise ValueError(
            f"the rank budget leaves {budget:,} parameters for A and B, but rank {least} in every layer "
            f"takes {budget - left:,}: raise the budget or decompose fewer layers"
        )
    offers = []
    for name, matrix in matrices.items():
        energies = singular_energies(matrix)
        gains = energies / energies.sum().clamp_min(1e-300) / sum(matrix.shape)
        offers += [(-gains[i].item(), name, i) for i in range(least, largest_useful_rank(matrix.shape))]
    full: set[str] = set()
    for _, name, _ in sorted(offers):
        cost = sum(matrices[name].shape)
        if cost > left:
            full.add(name)
        if name not in full:
            ranks[name] += 1
            left -= cost
    return ranks
