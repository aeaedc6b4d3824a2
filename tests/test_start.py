"""Stage a: the starting values of A, B and S."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import decomposable, low_rank_plus_sparse, svd_error
from torch import nn

from splore.design.decompose import Design, decompose
from splore.design.layers import decomposed_layers
from splore.design.matrix import Scheme
from splore.design.ranks import Budget, Energy
from splore.design.start import from_scratch, from_trained, low_rank_factors
from splore.measure.cost import cost
from splore.postprocess.prune import prune
from splore.postprocess.rank_cut import share_budget


@pytest.mark.parametrize("scheme", [*Scheme])
@pytest.mark.parametrize("rank", [1, 0.3, Energy(0.5), Budget(0.9), 0])
def test_a_start_from_scratch_is_the_very_function_of_the_dense_net(scheme, rank):
    model = decomposable().eval()
    dense = copy.deepcopy(model)
    summary = decompose(model, Design(rank=rank, scheme=scheme, include=(nn.Conv2d,)))
    assert summary.ranks
    for name, layer in decomposed_layers(model).items():
        weight = dense.get_submodule(name).weight
        torch.testing.assert_close(layer.compose(), weight, rtol=1e-5, atol=1e-6 * weight.abs().max().item())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


@given(sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)), rank=st.integers(0, 9), seed=st.integers(0, 99))
def test_factors_are_the_best_approximation_of_their_rank_and_of_equal_norm(sizes, rank, seed):
    torch.manual_seed(seed)
    matrix, rank = torch.randn(sizes, dtype=torch.float64), min(*sizes, rank)
    A, B = low_rank_factors(matrix, rank)
    assert A.shape == (sizes[0], rank) and B.shape == (rank, sizes[1])
    torch.testing.assert_close((matrix - A @ B).norm(), svd_error(matrix, rank), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(A.norm(dim=0), B.norm(dim=1), rtol=1e-6, atol=1e-6)


def test_a_low_rank_start_has_the_frobenius_norm_of_the_dense_draw():
    model = decomposable()
    norms = {name: m.weight.norm().item() for name, m in model.named_modules() if hasattr(m, "weight")}
    decompose(model, Design(rank=2, sparse=False, start="svd"))
    for name, layer in decomposed_layers(model).items():
        assert layer.S is None and layer.mask is None
        assert layer.weight.norm().item() == pytest.approx(norms[name], rel=1e-5)


@pytest.mark.parametrize("sparse", [True, False])
def test_a_random_start_has_the_variance_of_the_dense_draw_but_not_its_singular_vectors(sparse):
    torch.manual_seed(0)
    matrix = 0.3 * torch.randn(200, 300)
    A, B, S = from_scratch(matrix, 3, sparse, "random")
    W = A @ B if S is None else A @ B + S
    assert W.var().item() == pytest.approx(matrix.var().item(), rel=0.02)
    assert (A @ B).norm().item() == pytest.approx((0.5**0.5 if sparse else 1) * matrix.norm().item(), rel=1e-5)
    best = torch.matmul(*low_rank_factors(matrix, 3))
    assert abs(torch.cosine_similarity((A @ B).flatten(), best.flatten(), dim=0)) < 0.1


def test_a_random_start_without_a_rank_is_the_dense_draw():
    matrix = torch.randn(4, 5)
    assert from_scratch(matrix, 0, True, "random")[2].equal(matrix)


def test_a_start_of_another_name_is_refused():
    with pytest.raises(ValueError, match="a start is one of trained, svd, random, found 'xavier'"):
        Design(start="xavier")


@pytest.mark.parametrize("start", ["svd", "random"])
def test_a_start_afresh_that_is_to_be_trained_is_refused(start):
    with pytest.raises(ValueError, match=f"start='{start}' starts afresh, trained=True does not"):
        Design(start=start, trained=True)


@pytest.mark.parametrize("scheme", [*Scheme])
@pytest.mark.parametrize("rank", [0, 2, Energy(0.5)])
def test_trained_weights_are_kept_unless_a_start_afresh_is_asked_for(scheme, rank):
    model, afresh = decomposable().eval(), decomposable().eval()
    afresh.load_state_dict(model.state_dict())
    dense = copy.deepcopy(model)
    decompose(model, Design(rank=rank, scheme=scheme))
    decompose(afresh, Design(rank=rank, scheme=scheme, start="random"))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
    if rank:
        assert not torch.allclose(afresh(x), dense(x), rtol=1e-2, atol=1e-3)
    assert all(layer.mask.all() for layer in decomposed_layers(model).values())


@pytest.mark.parametrize("start", ["svd", "random"])
@pytest.mark.parametrize("sparse", [True, False])
def test_a_start_from_a_weight_of_zeros_is_finite(sparse, start):
    A, B, S = from_scratch(torch.zeros(6, 8), 2, sparse, start)
    assert all(part.isfinite().all() for part in (A, B, S) if part is not None)


@pytest.mark.parametrize("density", [0.0, 0.05, 0.3, 1.0])
def test_a_trained_start_keeps_exactly_its_density_and_the_exact_weight_there(density):
    matrix = low_rank_plus_sparse(13, 21, 3, 0.1)
    A, B, S = from_trained(matrix, 3, True, density)
    kept = S != 0
    assert kept.sum() == round(density * 13 * 21)
    torch.testing.assert_close((A @ B + S)[kept], matrix[kept], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_trained_start_is_nearer_than_svd_alone_and_than_one_round_of_svd_and_threshold(seed):
    torch.manual_seed(seed)
    matrix = low_rank_plus_sparse(24, 30, 4, 0.08)
    A, B, S = from_trained(matrix, 4, True, 0.1)
    error = (matrix - A @ B - S).norm()
    A1, B1 = low_rank_factors(matrix, 4)
    rest = (matrix - A1 @ B1).flatten().abs().sort(descending=True).values
    once = rest[round(0.1 * matrix.numel()) :].norm()
    assert error < 0.5 * svd_error(matrix, 4)
    assert error < 0.7 * once
    A, B, S = from_trained(matrix, 4, True, 0.1, rounds=1)
    assert error < 0.7 * (matrix - A @ B - S).norm() < 0.7 * once


def test_a_trained_start_of_low_rank_alone_is_the_truncated_svd():
    model = nn.Sequential(nn.Linear(20, 15))
    matrix = model[0].weight.detach().clone()
    decompose(model, Design(rank=3, sparse=False, include=("Linear",)))
    torch.testing.assert_close((model[0].weight - matrix).norm().double(), svd_error(matrix, 3), rtol=1e-4, atol=1e-5)


def test_a_start_with_a_sparse_s_leaves_the_mask_open_and_no_growth_is_lost():
    model = decomposable()
    decompose(model, Design(rank=2, density=0.2))
    for layer in decomposed_layers(model).values():
        assert layer.S.count_nonzero() == round(0.2 * layer.S.numel()) and layer.mask.all()
    with torch.no_grad():
        for layer in decomposed_layers(model).values():
            layer.S.add_(0.01)
    grown = copy.deepcopy(model).eval()
    share_budget(model, 0.95)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model.eval()(x), grown(x), rtol=1e-4, atol=1e-5)
    prune(model, params=0.95)
    assert cost(model, (3, 8, 8)).params == int(0.95 * cost(model, (3, 8, 8)).dense_params)


def test_a_weight_that_is_no_number_is_refused_and_the_model_is_untouched():
    model = decomposable()
    with torch.no_grad():
        model[3][0].weight[0, 0, 0, 0] = float("nan")
    before = list(model.modules())
    with pytest.raises(ValueError, match="NaN or infinity in the weight of '3.0'"):
        decompose(model, Design(rank=2))
    assert list(model.modules()) == before


@pytest.mark.parametrize("start", ["trained", "svd"])
def test_bfloat16_weights_are_decomposed_in_their_dtype(start):
    model = nn.Sequential(nn.Linear(40, 30)).to(torch.bfloat16)
    weight = model[0].weight.detach().clone()
    decompose(model, Design(rank=3, start=start, include=("Linear",)))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(model[0].weight, weight, rtol=2e-2, atol=2e-3)
