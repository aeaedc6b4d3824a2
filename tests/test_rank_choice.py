"""Stage a: the ranks that a design gives, by number, share, energy and budget."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import decomposable, params
from torch import nn

from splore.design.decompose import Design, decompose
from splore.design.layers import decomposed_layers
from splore.design.ranks import Budget, Energy, choose_rank, largest_useful_rank, ranks_within
from splore.design.start import singular_energies


@pytest.mark.parametrize("rank, expected", [(3, [3, 3]), (0.1, [2, 3]), (0.001, [1, 1])])
def test_a_rank_is_a_number_or_a_share_of_the_full_rank(rank, expected):
    model = nn.Sequential(nn.Linear(25, 20), nn.Linear(30, 30))
    assert list(decompose(model, Design(rank=rank, include=("Linear",))).ranks.values()) == expected


@settings(max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    energy=st.floats(0.01, 1.0, exclude_max=True),
    seed=st.integers(0, 99),
)
def test_energy_is_reached_with_the_smallest_rank(sizes, energy, seed):
    torch.manual_seed(seed)
    matrix = torch.randn(sizes, dtype=torch.float64)
    shares = torch.linalg.svdvals(matrix).square().cumsum(0)
    shares = shares / shares[-1]
    rank = choose_rank(Energy(energy), matrix)
    assert shares[rank - 1] >= energy - 1e-9
    assert rank == 1 or shares[rank - 2] < energy + 1e-9


def test_all_the_energy_of_a_matrix_of_low_rank_takes_just_that_rank():
    matrix = (torch.randn(12, 3, dtype=torch.float64) @ torch.randn(3, 9, dtype=torch.float64)) * 1e3
    assert choose_rank(Energy(1.0), matrix) == 3


@given(sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 99))
def test_singular_energies_are_the_squared_singular_values(sizes, seed):
    torch.manual_seed(seed)
    matrix = torch.randn(sizes)
    energies = singular_energies(matrix)
    torch.testing.assert_close(energies, torch.linalg.svdvals(matrix.double()).square(), rtol=1e-6, atol=1e-9)


@settings(max_examples=40)
@given(
    sizes=st.lists(st.tuples(st.integers(2, 16), st.integers(2, 16)), min_size=1, max_size=4),
    share=st.floats(0.0, 1.2),
    least=st.integers(0, 1),
)
def test_ranks_within_a_budget_never_exceed_it_and_leave_no_room_for_one_more(sizes, share, least):
    matrices = {str(i): torch.randn(size) for i, size in enumerate(sizes)}
    price = {name: sum(matrix.shape) for name, matrix in matrices.items()}
    budget = least * sum(price.values()) + int(share * sum(m.numel() for m in matrices.values()))
    ranks = ranks_within(budget, matrices, least)
    left = budget - sum(ranks[name] * price[name] for name in matrices)
    assert left >= 0
    for name, matrix in matrices.items():
        most = max(least, largest_useful_rank(matrix.shape))
        assert least <= ranks[name] <= most
        assert ranks[name] == most or price[name] > left


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
def test_a_budget_holds_for_the_whole_net_and_is_used_up_to_one_rank(sparse, share):
    model = decomposable()
    dense = params(model)
    decompose(model, Design(rank=Budget(share), sparse=sparse))
    layers = decomposed_layers(model).values()
    kept = params(model) - sum(layer.S.numel() for layer in layers if sparse)
    assert kept <= share * dense < kept + max(sum(layer.matrix.shape) for layer in layers)


def test_a_budget_gives_ranks_where_the_energy_is():
    flat, peaked = nn.Linear(20, 20), nn.Linear(20, 20)
    with torch.no_grad():
        flat.weight.copy_(torch.eye(20))
        peaked.weight.copy_(torch.outer(torch.randn(20), torch.randn(20)) + 1e-3 * torch.eye(20))
    summary = decompose(nn.Sequential(flat, peaked), Design(rank=Budget(0.35), include=("Linear",)))
    assert summary.ranks["1"] == 1 and summary.ranks["0"] == 5


def test_ranks_go_where_a_parameter_gains_the_largest_share_of_its_layers_energy_and_an_exact_fit_is_taken():
    cheap, dear = torch.eye(10), 100 * torch.eye(10, 90)  # a rank costs 20 and 100, and gains a tenth in each
    assert ranks_within(180, {"dear": dear, "cheap": cheap}, least=0) == {"dear": 1, "cheap": 4}
    assert ranks_within(179, {"dear": dear, "cheap": cheap}, least=0) == {"dear": 0, "cheap": 4}
    assert ranks_within(179, {"dear": dear, "cheap": cheap}, least=1) == {"dear": 1, "cheap": 3}
