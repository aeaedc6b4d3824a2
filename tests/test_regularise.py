"""Stage b: the l1 on S as a penalty and as a proximal step, the decay of A·B, and what an optimiser is given."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from splore.design.decompose import Design, decompose
from splore.design.layers import LowRankSparseLinear, decomposed_layers
from splore.train.penalties import L1, FrobeniusDecay, Scaling, parameter_groups


def decomposed(rank=2, sparse=True, dtype=torch.float32):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, bias=False), nn.Flatten(), nn.Linear(12, 9)
    ).to(dtype)
    decompose(model, Design(rank=rank, sparse=sparse, exclude=("0",)))
    return model


def sparse_parts(model):
    return [layer.S for layer in decomposed_layers(model).values()]


def only_sparse(m, k):
    """A net of one linear layer that is its S alone, at zero."""
    layer = LowRankSparseLinear(nn.Linear(k, m, bias=False), 0)
    return nn.Sequential(layer)


@pytest.mark.parametrize("scaling", [*Scaling])
def test_the_penalty_is_the_scaled_sum_of_magnitudes(scaling):
    model = decomposed()
    expected = 0.0
    for S in sparse_parts(model):
        scale = 1 / math.sqrt(max(S.shape)) if scaling is Scaling.PCA else 1.0
        expected += 0.3 * scale * S.abs().sum().item()
    assert L1(model, 0.3, scaling).penalty().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_over_many_entries_in_half_precision_are_right_and_finite(dtype):
    model = nn.Sequential(nn.Linear(2048, 512).to(dtype))
    decompose(model, Design(rank=4))
    layer = model[0]
    with torch.no_grad():
        for part in (layer.A, layer.B, layer.S):
            part.fill_(0.5)
    l1, decay = L1(model, 1.0, Scaling.NONE).penalty(), FrobeniusDecay(model, 1e-4).penalty()
    assert l1.item() == pytest.approx(0.5 * 2048 * 512, rel=1e-5)
    assert decay.item() == pytest.approx(0.5e-4 * 2048 * 512, rel=1e-5)  # each entry of A·B is 1
    (l1 + decay).backward()
    assert (layer.S.grad == 1).all() and layer.A.grad.dtype == dtype and layer.A.grad.isfinite().all()


@pytest.mark.parametrize("scaling", [*Scaling])
def test_the_gradient_of_the_penalty_is_the_scaled_sign(scaling):
    model = decomposed()
    with torch.no_grad():
        for S in sparse_parts(model):
            S[:, 0] = 0
    L1(model, 0.3, scaling).penalty().backward()
    for S in sparse_parts(model):
        scale = 1 / math.sqrt(max(S.shape)) if scaling is Scaling.PCA else 1.0
        torch.testing.assert_close(S.grad, 0.3 * scale * S.detach().sign())
    assert all(p.grad is None for name, p in model.named_parameters() if not name.endswith("S"))


@pytest.mark.parametrize("scaling", [*Scaling])
def test_the_gradient_can_be_added_to_that_of_the_loss(scaling):
    model = decomposed()
    l1 = L1(model, 0.3, scaling)
    torch.manual_seed(0)
    (model(torch.randn(2, 3, 5, 5)).square().sum() + l1.penalty()).backward()
    expected = [S.grad for S in sparse_parts(model)]
    model.zero_grad()
    torch.manual_seed(0)
    model(torch.randn(2, 3, 5, 5)).square().sum().backward()
    l1.add_gradients()
    for S, gradient in zip(sparse_parts(model), expected, strict=True):
        torch.testing.assert_close(S.grad, gradient)


def test_the_penalty_and_the_step_follow_the_values_of_the_moment():
    model = decomposed()
    l1 = L1(model, 1.0)
    first = l1.penalty().item()
    with torch.no_grad():
        for S in sparse_parts(model):
            S.mul_(2)
    assert l1.penalty().item() == pytest.approx(2 * first, rel=1e-5)


@settings(max_examples=50)
@given(
    values=st.lists(st.floats(-2, 2, width=32), min_size=6, max_size=6),
    threshold=st.floats(0, 2, width=32),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_shrink_is_the_soft_threshold_with_exact_zeros(values, threshold, dtype):
    model = only_sparse(2, 3).to(dtype)
    before = torch.tensor(values, dtype=dtype).view(2, 3)
    model[0].S.data.copy_(before)
    L1(model, 1.0, Scaling.NONE).shrink(threshold)
    S = model[0].S.detach()
    torch.testing.assert_close(S, before.sign() * (before.abs() - threshold).clamp_min(0), rtol=1e-6, atol=1e-6)
    assert not S[before.abs() <= threshold].any()


@pytest.mark.parametrize("scaling", [*Scaling])
def test_shrink_scales_its_threshold_by_layer(scaling):
    model = decomposed()
    before = [S.detach().clone() for S in sparse_parts(model)]
    L1(model, 0.5, scaling).shrink(0.2)
    for S, old in zip(sparse_parts(model), before, strict=True):
        threshold = 0.2 * 0.5 * (1 / math.sqrt(max(S.shape)) if scaling is Scaling.PCA else 1.0)
        torch.testing.assert_close(S, nn.functional.softshrink(old, threshold))


def test_shrink_in_bfloat16_gives_exact_zeros():
    model = decomposed(dtype=torch.bfloat16)
    L1(model, 1.0, Scaling.NONE).shrink(0.02)
    for S in sparse_parts(model):
        assert 0 < (S == 0).float().mean() < 1


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
def test_proximal_steps_solve_a_lasso_with_an_orthogonal_design(momentum, nesterov):
    torch.manual_seed(1)
    X = torch.linalg.qr(torch.randn(20, 6)).Q
    Y = torch.randn(20, 4) * 0.7
    strength = 0.4
    model = only_sparse(4, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, nesterov=nesterov)
    l1 = L1(model, strength, Scaling.NONE)
    for _ in range(400):
        optimizer.zero_grad()
        (0.5 * (model(X) - Y).square().sum()).backward()
        optimizer.step()
        l1.shrink(0.1 / (1 - momentum))
    solution = nn.functional.softshrink(Y.T @ X, strength)
    assert 3 < (solution == 0).sum() < 21, "the problem must have zeros and non-zeros"
    torch.testing.assert_close(model[0].S.detach(), solution, rtol=1e-3, atol=1e-4)
    assert torch.equal(model[0].S == 0, solution == 0)


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_without_sparse_parts_the_l1_is_zero_and_does_nothing(strength):
    l1 = L1(decomposed(sparse=False), strength)
    assert l1.penalty().item() == 0
    l1.shrink(0.1)


def test_a_strength_of_zero_leaves_the_sparse_part_as_it_is():
    model = decomposed()
    before = [S.detach().clone() for S in sparse_parts(model)]
    L1(model, 0.0).shrink(0.1)
    assert all(torch.equal(S, old) for S, old in zip(sparse_parts(model), before, strict=True))


@pytest.mark.parametrize("kind", [L1, FrobeniusDecay])
def test_a_negative_strength_is_refused(kind):
    with pytest.raises(ValueError, match="can't be negative, found -1"):
        kind(decomposed(), -1)


def test_the_frobenius_penalty_is_half_the_squared_norm_of_the_products():
    model = decomposed()
    expected = sum((layer.A @ layer.B).square().sum().item() for layer in decomposed_layers(model).values())
    assert FrobeniusDecay(model, 0.3).penalty().item() == pytest.approx(0.15 * expected, rel=1e-5)


def test_the_added_gradients_are_those_of_the_frobenius_penalty():
    model = decomposed(dtype=torch.float64)
    decay = FrobeniusDecay(model, 0.3)
    factors = [p for layer in decomposed_layers(model).values() for p in (layer.A, layer.B)]
    expected = torch.autograd.grad(decay.penalty(), factors)
    model(torch.randn(2, 3, 5, 5, dtype=torch.float64)).square().sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    decay.add_gradients()
    names = {id(p): name for name, p in model.named_parameters()}
    for parameter, gradient in zip(factors, expected, strict=True):
        torch.testing.assert_close(parameter.grad - before[names[id(parameter)]], gradient)
    others = {name: p for name, p in model.named_parameters() if not any(p is f for f in factors)}
    assert all(torch.equal(p.grad, before[name]) for name, p in others.items())


@pytest.mark.parametrize("rank, strength", [(0, 0.3), (2, 0.0)])
def test_without_factors_or_strength_the_frobenius_decay_is_zero(rank, strength):
    model = decomposed(rank=rank)
    decay = FrobeniusDecay(model, strength)
    assert decay.penalty().item() == 0
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    decay.add_gradients()
    assert not any(p.grad.any() for p in model.parameters())


def test_gradients_that_are_not_there_are_not_made():
    model = decomposed()
    FrobeniusDecay(model, 0.3).add_gradients()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("sparse", [True, False])
def test_parameter_groups_hold_every_parameter_once_and_decay_dense_weights_only(sparse):
    model = decomposed(sparse=sparse)
    groups = parameter_groups(model, 0.01)
    listed = [p for group in groups for p in group["params"]]
    assert {id(p) for p in listed} == {id(p) for p in model.parameters()} and len(listed) == len({*map(id, listed)})
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = [names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]]
    assert decayed == ["0.weight"] and {group["weight_decay"] for group in groups} == {0.01, 0.0}


def test_without_an_l1_the_sparse_parts_can_decay_as_dense_weights_do():
    model = decomposed()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 0.01, nuclear=0.1, decay_sparse=True)
    listed = {group["weight_decay"]: [names[id(p)] for p in group["params"]] for group in groups}
    sparse = [name for name in names.values() if name.endswith(".S")]
    assert sparse and set(listed[0.01]) == {"0.weight", *sparse}
    assert {name[-2:] for name in listed[0.1]} == {".A", ".B"}
    assert sum(map(len, listed.values())) == len(names)


def test_a_step_with_weight_decay_leaves_the_parts_alone_where_there_is_no_gradient():
    model = decomposed()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.SGD(parameter_groups(model, 0.1), lr=1.0).step()
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert moved == ["0.weight"]


def test_a_decay_of_both_factors_is_the_nuclear_norm_of_their_product():
    model = decomposed()
    groups = parameter_groups(model, 0.01, nuclear=0.25)
    factors = [p for x in decomposed_layers(model).values() for p in (x.A, x.B)]
    assert {id(p) for p in groups[-1]["params"]} == {id(p) for p in factors} and groups[-1]["weight_decay"] == 0.25
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    layer = nn.Sequential(LowRankSparseLinear(nn.Linear(30, 20, bias=False).double(), 3))
    target = torch.randn(20, 30).double()
    optimizer = torch.optim.SGD(parameter_groups(layer, 0.0, nuclear=4.0), lr=0.02)
    layer[0].S.requires_grad_(False).zero_()
    layer[0].set_parts(torch.randn(20, 3).double(), torch.randn(3, 30).double())
    for _ in range(4000):
        optimizer.zero_grad()
        (0.5 * (layer[0].matrix - target).square().sum()).backward()
        optimizer.step()
    U, s, Vh = torch.linalg.svd(target, full_matrices=False)
    shrunk = (U * (s - 4.0).clamp_min(0))[:, :3] @ Vh[:3]  # the proximal operator of the nuclear norm
    torch.testing.assert_close(layer[0].low_rank, shrunk, atol=1e-3, rtol=0)


def test_parameter_groups_of_a_fully_decomposed_net_leave_out_the_empty_group():
    model = nn.Sequential(nn.Linear(20, 20, bias=False))
    decompose(model, Design(rank=2, include=("Linear",)))
    assert [group["weight_decay"] for group in parameter_groups(model, 0.01)] == [0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_l1_is_that_of_single_in_expectation_and_zeros_stay(dtype):
    model = nn.Sequential(LowRankSparseLinear(nn.Linear(4096, 8), 0)).to(dtype)
    S = model[0].S
    with torch.no_grad():
        S.copy_(torch.randn(8, 4096))
        S[:, :64] = 0
    before = S.detach().float().clone()
    threshold = 1e-4  # far below the spacing of most entries
    l1 = L1(model, 1.0, Scaling.NONE)
    for _ in range(20):
        l1.shrink(threshold)
    lost = (before.abs() - S.detach().float().abs())[before != 0]
    assert lost.mean() == pytest.approx(20 * threshold, rel=0.05)
    assert not S[:, :64].any() and (S.detach().sign() * before.sign() >= 0).all()
