"""The l1 of blocks: a group norm, its subgradient, and proximal steps that empty whole blocks."""

import pytest
import torch
from blocks import block_numbers
from small_layers import SCHEMES
from torch import nn

from splore.design.layers import LowRankSparseLinear
from splore.train.penalties import L1, Scaling


def penalised(shape=(3, 10), block=4, dtype=torch.float64, zero=(0,)):
    layer = LowRankSparseLinear(nn.Linear(*reversed(shape), bias=False), 0, block=block).to(dtype)
    numbers = block_numbers(shape, SCHEMES[0], block)
    layer.S.data.copy_(torch.randn(shape, dtype=dtype))
    for b in zero:
        layer.S.data[numbers == b] = 0
    return nn.Sequential(layer), [numbers == b for b in numbers.unique()]


def test_the_group_norm_weighs_a_block_by_the_root_of_its_size():
    model, blocks = penalised()
    S = model[0].S
    expected = sum(len(S[b]) ** 0.5 * float(S[b].detach().norm()) for b in blocks)
    l1 = L1(model, 0.3, Scaling.NONE)
    assert l1.penalty().item() == pytest.approx(0.3 * expected)
    l1.penalty().backward()
    for b in blocks:
        norm = float(S[b].detach().norm())
        torch.testing.assert_close(S.grad[b], 0.3 * len(S[b]) ** 0.5 * S[b].detach() / max(norm, 1e-9))
    gradient, S.grad = S.grad, torch.zeros_like(S)
    l1.add_gradients()
    torch.testing.assert_close(S.grad, gradient)


def test_the_proximal_step_shrinks_blocks_by_their_norm_and_leaves_exact_zeros():
    model, blocks = penalised()
    before = model[0].S.detach().clone()
    L1(model, 1.0, Scaling.NONE).shrink(0.6)
    found = model[0].S.detach()
    emptied = 0
    for b in blocks:
        norm, least = float(before[b].norm()), 0.6 * len(before[b]) ** 0.5
        torch.testing.assert_close(found[b], before[b] * max(1 - least / max(norm, 1e-9), 0.0))
        emptied += norm <= least
        assert bool(found[b].any()) == (norm > least)
    assert 0 < emptied < len(blocks)


@pytest.mark.parametrize("seed", range(5))
def test_the_proximal_step_with_rates_of_their_own_is_a_minimum(seed):
    torch.manual_seed(seed)
    model, blocks = penalised(zero=(0, 3))
    before = model[0].S.detach().clone()
    rates = torch.rand(3, 10).double() * torch.tensor([1e-3, 0.3, 1.0]).double()[torch.randint(0, 3, (3, 10))] + 1e-6
    L1(model, 1.0, Scaling.NONE).shrink([rates])
    found = model[0].S.detach()
    for b in blocks:
        x, s, t, weight = found[b], before[b], rates[b], len(before[b]) ** 0.5
        if x.any():  # the gradient of ||x|| √n + sum of (x - s)^2 / 2 t is zero
            torch.testing.assert_close(weight * x / x.norm() + (x - s) / t, torch.zeros_like(x), atol=1e-6, rtol=0)
        else:
            assert (s / t).norm() <= weight * (1 + 1e-9)


def test_a_rate_of_nothing_moves_nothing():
    model, _ = penalised(dtype=torch.float32)
    before = model[0].S.detach().clone()
    L1(model, 1.0, Scaling.NONE).shrink([torch.zeros(3, 10)])
    torch.testing.assert_close(model[0].S.detach(), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_blocks_become_exactly_zero_too(dtype):
    model, blocks = penalised((40, 24), dtype=dtype)
    L1(model, 1.0, Scaling.NONE).shrink(0.9)
    empty = [not model[0].S[b].any() for b in blocks]
    assert 0 < sum(empty) < len(blocks) and model[0].S.isfinite().all()
