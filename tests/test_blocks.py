"""Blocks of S: kept or cut as wholes, in the start and in the cuts, and ranks beside them, against brute force."""

import copy
from itertools import combinations, product

import pytest
import torch
from blocks import block_numbers, in_blocks, layers_and_numbers, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from small_layers import SCHEMES, by_definition
from torch import nn

from splore.design.allocate import share
from splore.design.blocks import Blocks
from splore.design.decompose import Design, decompose
from splore.design.layers import LowRankSparseLinear, decomposed_layers
from splore.design.matrix import matrix_shape, unfold
from splore.design.start import from_trained
from splore.measure.sparsity import kept_share
from splore.postprocess.prune import prune
from splore.postprocess.rank_cut import _cheapest, _spectrum, share_budget
from splore.postprocess.scores import energy_share, lamp, magnitude, relative
from splore.train.masks import hold_masks

SHAPES = [(3, 8, 3, 2), (4, 6, 1, 3), (2, 3, 2, 2), (5, 1, 1, 1), (6, 9), (4, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_a_block_is_one_output_one_tap_and_neighbouring_inputs(shape, scheme, size):
    m, k = matrix_shape(shape, scheme)
    numbers = block_numbers(shape, scheme, size)
    blocks = Blocks.of(size, shape)
    entries = torch.randint(-2, 3, (m, k)).double()
    spread = {b: entries[numbers == b] for b in numbers.unique().tolist()}
    for place in product(range(m), range(k)):
        block = spread[int(numbers[place])]
        assert blocks.spread(blocks.sums(entries))[place] == block.sum()
        assert blocks.spread(blocks.sizes(entries))[place] == len(block)
        assert blocks.spread(blocks.any(entries))[place] == bool(block.any())
        assert blocks.spread(blocks.norms(entries))[place] == pytest.approx(float(block.norm()))
        assert blocks.spread(blocks.means(entries))[place] == pytest.approx(float(block.mean()))
    mask = torch.rand(m, k) < 0.5
    assert blocks.whole(mask) == whole(mask, numbers)
    assert blocks.whole(blocks.spread(blocks.any(mask)))
    kernel = by_definition(blocks.spread(blocks.sums(entries)), shape, scheme)
    for first in range(0, shape[1], min(size, shape[1])):  # and so in the kernel itself
        part = kernel[:, first : first + size]
        assert torch.equal(part, part[:, :1].expand_as(part))


def test_blocks_are_counted_by_row_channels_and_tap():
    blocks = Blocks(2, 3)
    marked = torch.arange(2 * 4).view(2, 4)  # (m, b): two blocks of channels, two taps
    assert blocks.spread(marked).tolist() == [[0, 1, 0, 1, 2, 3], [4, 5, 4, 5, 6, 7]]


# The cut


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("score", [magnitude, lamp, energy_share, relative])
@pytest.mark.parametrize("params", [0.3, 0.5])
def test_a_cut_to_a_budget_keeps_whole_blocks_and_misses_it_by_less_than_one(scheme, score, params):
    model = in_blocks(scheme)
    before = copy.deepcopy(model)
    prune(model, params=params, score=score)
    dense = 3 * 6 * 9 + 6 + 12 + 6 * 8 * 3 + 8 * 10 + 10
    held = sum(p.numel() for p in model.parameters()) - sum(
        int((~x.mask).sum()) for x in decomposed_layers(model).values()
    )
    assert int(params * dense) - 4 < held <= int(params * dense)
    for (layer, numbers), old in zip(layers_and_numbers(model), decomposed_layers(before).values(), strict=True):
        assert whole(layer.mask, numbers) and torch.equal(layer.S, old.S * layer.mask)
    assert kept_share(model) == pytest.approx(held / dense)


@pytest.mark.parametrize("score", [magnitude, lamp, energy_share, relative])
def test_blocks_are_kept_in_the_order_of_their_energy_an_entry(score):
    model = nn.Sequential(LowRankSparseLinear(nn.Linear(10, 3, bias=False), 0, block=4))
    S = model[0].S.data.copy_(torch.randn(3, 10))
    numbers = block_numbers((3, 10), SCHEMES[0], 4)
    prune(model, params=14, score=score)
    mean = {b: float(S.square()[numbers == b].mean()) for b in range(9)}
    kept = {int(b) for b in numbers[model[0].mask]}
    assert min(mean[b] for b in kept) > max(mean[b] for b in set(mean) - kept)


@settings(max_examples=30)
@given(
    values=st.lists(st.integers(-3, 3), min_size=16, max_size=16), energy=st.sampled_from([1e-6, 0.25, 0.5, 0.9, 1.0])
)
def test_the_cut_by_energy_keeps_a_smallest_set_of_blocks(values, energy):
    model = nn.Sequential(LowRankSparseLinear(nn.Linear(16, 1, bias=False), 0, block=4))
    model[0].S.data.copy_(torch.tensor([values], dtype=torch.float32))
    energies = [sum(v * v for v in values[4 * j : 4 * j + 4]) for j in range(4)]
    prune(model, energy=energy)
    kept = [j for j in range(4) if model[0].mask[0, 4 * j]]
    assert whole(model[0].mask, block_numbers((1, 16), SCHEMES[0], 4))
    sizes = [
        size
        for size in range(5)
        for chosen in combinations([e for e in energies if e], size)
        if sum(chosen) >= energy * sum(energies)
    ]
    assert len(kept) == min(sizes) and sum(energies[j] for j in kept) >= energy * sum(energies)


def test_lamp_of_a_block_is_its_share_of_the_energy_that_is_left_an_entry():
    layer = LowRankSparseLinear(nn.Linear(10, 2, bias=False), 0, block=4)
    layer.S.data.copy_(torch.randn(2, 10))
    numbers = block_numbers((2, 10), SCHEMES[0], 4)
    squares = layer.S.detach().double().square()
    parts = {b: squares[numbers == b] for b in range(6)}
    for place in product(range(2), range(10)):
        own = parts[int(numbers[place])]
        left = sum(float(each.sum()) for each in parts.values() if each.mean() >= own.mean())
        assert float(lamp(layer)[place]) == pytest.approx(float(own.mean()) / left, rel=1e-5)


def test_a_gradual_cut_ends_where_the_budget_says_and_each_step_keeps_whole_blocks():
    model = in_blocks()
    for params in (0.8, 0.5, 0.3):
        prune(model, params=params)
        assert all(whole(layer.mask, numbers) for layer, numbers in layers_and_numbers(model))
    assert 0.29 < kept_share(model) <= 0.3


# Ranks beside blocks


def planted(rows=24, taps=4):
    """A kernel that is a direction and a few strong blocks."""
    weight = 3 * torch.randn(rows, 1, 1) * torch.randn(1, 8, taps)
    for n, j, t in ((0, 0, 0), (5, 1, 3), (9, 1, 1), (17, 0, 2)):
        weight[n, 4 * j : 4 * j + 4, t] += 20.0
    return weight.view(rows, 8, 2, 2)


def test_ranks_compete_with_blocks_in_a_start_from_a_trained_in_blocks():
    matrix = unfold(planted(), SCHEMES[0])
    found = share({"a": matrix}, 24 + 32 + 16, {"a": 8}, {"a": Blocks(4, 8)})["a"]
    assert found.A.shape[1] == 1 and int(found.mask.sum()) == 16
    assert sorted({int(b) for b in block_numbers((24, 8, 2, 2), SCHEMES[0], 4)[found.mask]}) == sorted(
        {n * 8 + j * 4 + t for n, j, t in ((0, 0, 0), (5, 1, 3), (9, 1, 1), (17, 0, 2))}
    )


@pytest.mark.parametrize("calibrate", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_trained_start_within_a_budget_masks_whole_blocks(scheme, calibrate):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.Flatten(), nn.Linear(40, 10))
    inputs = [torch.randn(8, 3, 6, 6)]
    decompose(model, Design(params=0.5, block=4, scheme=scheme), inputs if calibrate else None)
    for layer, numbers in layers_and_numbers(model):
        assert whole(layer.mask, numbers) and not layer.S[~layer.mask].any()
    assert 0.49 < kept_share(model) <= 0.5


def test_a_trained_start_of_some_density_fills_whole_blocks_with_the_weight_itself():
    matrix = torch.randn(6, 16)
    A, B, S = from_trained(matrix, 2, True, 0.5, Blocks(4, 8))
    numbers = block_numbers((6, 8, 2, 1), SCHEMES[0], 4)
    assert whole(S != 0, numbers) and int((S != 0).sum()) == 48
    torch.testing.assert_close((A @ B + S)[S != 0], matrix[S != 0])


@pytest.mark.parametrize("cost", [0.01, 0.3, 3.0, 100.0])
@pytest.mark.parametrize("masked", [False, True])
def test_a_rank_is_the_one_for_which_what_blocks_lose_and_cost_is_least(cost, masked):
    model = nn.Sequential(nn.Conv2d(6, 12, 2, bias=False))
    model[0].weight.data.add_(torch.randn(12, 1, 1, 1) * torch.randn(1, 6, 2, 2))
    decompose(model, Design(rank=5, block=4))
    (layer, numbers) = layers_and_numbers(model)[0]
    if masked:
        layer.set_parts(layer.A, layer.B, layer.S, layer.blocks.spread(torch.rand(12, 8) < 0.6))
    W, spectrum = layer.matrix.detach(), _spectrum(layer)
    A, B, _ = spectrum

    def lost_and_paid(r):
        squares = (W.double() - A[:, :r] @ B[:r]).square()
        blocks = [(squares[numbers == b], layer.mask[numbers == b]) for b in numbers.unique()]
        lost = sum(min(float(s.sum()), cost * len(s)) if m.all() else float(s.sum()) for s, m in blocks)
        return lost + cost * r * sum(W.shape)

    found = _cheapest(W, layer.mask, layer.blocks, spectrum, cost, cost * sum(W.shape))
    assert lost_and_paid(found) == pytest.approx(min(lost_and_paid(r) for r in range(6)), rel=1e-5)


@pytest.mark.parametrize("params", [0.3, 0.6])
def test_a_budget_shared_after_training_is_met_by_ranks_and_whole_blocks(params):
    model = nn.Sequential(nn.Conv2d(8, 24, 2, bias=False), nn.Flatten(), nn.Linear(96, 10, bias=False))
    model[0].weight.data.copy_(planted())
    decompose(model, Design(rank=4, block=4))
    weights = [layer.matrix.detach().clone() for layer in decomposed_layers(model).values()]
    assert share_budget(model, params)["0"] > 0
    for layer, weight in zip(decomposed_layers(model).values(), weights, strict=True):
        torch.testing.assert_close(layer.matrix.detach(), weight, rtol=1e-4, atol=1e-4)
    prune(model, params=params)
    assert all(whole(layer.mask, numbers) for layer, numbers in layers_and_numbers(model))
    assert params - 4 / (24 * 32 + 960) <= kept_share(model) <= params


def test_what_was_cut_stays_zero_through_steps():
    model = in_blocks()
    prune(model, params=0.4)
    masks = [layer.mask.clone() for layer in decomposed_layers(model).values()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    hold_masks(model, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    for layer, mask in zip(decomposed_layers(model).values(), masks, strict=True):
        assert torch.equal(layer.mask, mask) and not layer.S[~mask].any()


@pytest.mark.parametrize("block", [0, -4, 2.0, True, "4"])
def test_a_design_of_no_block_is_refused(block):
    with pytest.raises(ValueError, match="whole number of input channels"):
        Design(block=block)
