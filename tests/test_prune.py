"""Stage c: which entries of S are cut, by energy and to a budget."""

import copy
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import held, partly_decomposed, sparse
from torch import nn

from splore.design.decompose import Design, decompose
from splore.design.layers import decomposed_layers
from splore.design.prices import Params
from splore.postprocess.prune import prune
from splore.postprocess.rank_cut import cut_ranks, share_budget
from splore.postprocess.scores import energy_share, lamp, magnitude, relative

SCORES = [magnitude, lamp, energy_share, relative]
INTEGERS = st.lists(st.integers(-4, 4), min_size=1, max_size=9)


def parts(model):
    return [layer.S.detach().flatten().tolist() for layer in decomposed_layers(model).values()]


def entries(model):
    return sum(layer.S.numel() for layer in decomposed_layers(model).values())


def zeros_of(model):
    return [(layer.S == 0) & ~layer.mask for layer in decomposed_layers(model).values()]


# By energy


def smallest_sets(values, energy):
    """All smallest sets of positions whose squares sum to at least `energy` of the whole, by trying every one."""
    whole = sum(v * v for v in values)
    positions = [i for i, v in enumerate(values) if v]
    for size in range(len(positions) + 1):
        sets = [
            set(chosen)
            for chosen in combinations(positions, size)
            if sum(values[i] ** 2 for i in chosen) >= energy * whole
        ]
        if sets:
            return sets
    raise AssertionError("the whole set holds all of the energy")


@settings(max_examples=80)
@given(values=INTEGERS, energy=st.sampled_from([1e-6, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0]))
def test_the_cut_by_energy_keeps_a_smallest_set(values, energy):
    model = sparse(values)
    density = prune(model, energy=energy)["0"]
    kept = {i for i, v in enumerate(parts(model)[0]) if v}
    assert kept in smallest_sets(values, energy)
    assert all(parts(model)[0][i] == values[i] for i in kept)
    mask = model[0].mask.flatten().tolist()
    assert {i for i, m in enumerate(mask) if m} == kept
    assert density == pytest.approx(len(kept) / len(values))


def test_the_cut_by_energy_is_made_in_each_layer_alone():
    model = sparse([10.0, 1.0, 0.0], [0.1, 0.01, 0.001])
    assert prune(model, energy=0.9) == pytest.approx({"0": 1 / 3, "1": 1 / 3})
    assert parts(model) == [[10.0, 0.0, 0.0], [pytest.approx(0.1), 0.0, 0.0]]


def test_all_of_the_energy_keeps_every_non_zero():
    model = partly_decomposed()
    before = copy.deepcopy(model)
    prune(model, energy=1.0)
    for layer, old in zip(decomposed_layers(model).values(), decomposed_layers(before).values(), strict=True):
        assert torch.equal(layer.S, old.S) and layer.mask.all()


def test_a_sparse_part_of_zeros_is_cut_to_nothing():
    assert prune(sparse([0.0, 0.0], [1.0, 0.0]), energy=0.9) == {"0": 0.0, "1": 0.5}


def test_of_equal_entries_those_that_come_first_are_kept():
    model = sparse([1.0, -1.0, 1.0, -1.0])
    prune(model, energy=0.5)
    assert parts(model) == [[1.0, -1.0, 0.0, 0.0]]
    model = sparse([1.0, -1.0], [1.0, -1.0])
    prune(model, params=3, score=magnitude)
    assert parts(model) == [[1.0, -1.0], [1.0, 0.0]]


# To a budget


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("extra", [0, 1, 137, 900])
def test_a_budget_in_numbers_is_met_exactly(score, extra):
    model = partly_decomposed()
    without = held(model) - entries(model)
    density = prune(model, params=without + extra, score=score)
    assert held(model) == without + extra
    assert sum(int(layer.mask.sum()) for layer in decomposed_layers(model).values()) == extra
    for name, layer in decomposed_layers(model).items():
        assert density[name] == pytest.approx(layer.mask.float().mean().item())
        assert not layer.S[~layer.mask].any() and layer.S[layer.mask].all()


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
def test_a_budget_as_a_share_is_one_of_the_dense_net(score, share):
    model = partly_decomposed()
    dense = 3 * 8 * 9 + 8 + 2 * 8 + 8 * 12 * 9 + 12 * 9 + 9
    prune(model, params=share, score=score)
    assert held(model) == int(share * dense)


def test_prices_in_parameters_tell_the_allowance_and_what_is_held_without_entries():
    model = partly_decomposed()
    without = held(model) - entries(model)
    factors = sum(layer.A.numel() + layer.B.numel() for layer in decomposed_layers(model).values())
    prices = Params(0.5).prices(model)
    assert prices.of_ranks(model) == without
    assert prices.of(model) == held(model)
    assert Params(1000).allowed(model) == 1000
    assert Params(0.5).allowed(model) == int(0.5 * (without - factors + entries(model)))


@settings(max_examples=60)
@given(rows=st.lists(INTEGERS, min_size=1, max_size=4), count=st.integers(1, 36), score=st.sampled_from(SCORES))
@pytest.mark.filterwarnings("ignore:the budget")
def test_the_entries_of_the_highest_scores_are_kept(rows, count, score):
    model = sparse(*rows)
    scores = [score(layer).flatten().tolist() for layer in decomposed_layers(model).values()]
    alive = [(s, v) for found, row in zip(scores, rows, strict=True) for s, v in zip(found, row, strict=True) if v]
    prune(model, params=count, score=score)
    kept = []
    for found, row, after in zip(scores, rows, parts(model), strict=True):
        assert all(new in (0, old) for new, old in zip(after, row, strict=True))
        kept += [s for s, new in zip(found, after, strict=True) if new]
    assert sorted(kept, reverse=True) == sorted((s for s, _ in alive), reverse=True)[:count]


@pytest.mark.parametrize("score", SCORES)
def test_fewer_non_zeros_than_the_budget_allows_are_all_kept_and_that_is_said(score):
    model = sparse([3.0, 0.0, 1.0], [0.0, 2.0, 0.0])
    said = "budget of 5 parameters leaves room for more entries of S than the 3 that are left, .*: the net holds 3"
    with pytest.warns(UserWarning, match=said):
        assert prune(model, params=5, score=score) == pytest.approx({"0": 2 / 3, "1": 1 / 3})
    assert parts(model) == [[3.0, 0.0, 1.0], [0.0, 2.0, 0.0]]


@pytest.mark.filterwarnings("ignore:the budget")
@pytest.mark.parametrize("how", [{"energy": 1.0}, {"params": 1.0}, {"params": 1.0, "score": magnitude}])
def test_what_was_cut_never_comes_back(how):
    model = partly_decomposed()
    prune(model, energy=0.5)
    cut = zeros_of(model)
    with torch.no_grad():
        for layer in decomposed_layers(model).values():
            layer.S.add_(1)
    prune(model, **how)
    for layer, zeros in zip(decomposed_layers(model).values(), cut, strict=True):
        assert not layer.S[zeros].any() and not layer.mask[zeros].any()
        assert layer.mask.any()


@pytest.mark.parametrize("score", SCORES)
def test_values_outside_the_mask_take_nothing_of_the_budget(score):
    model = sparse([5.0, 4.0, 3.0, 2.0], [4.5, 3.5, 2.5, 1.5])
    prune(model, params=4, score=magnitude)
    with torch.no_grad():
        for layer in decomposed_layers(model).values():
            layer.S.masked_fill_(~layer.mask, 100.0)
    prune(model, params=3, score=score)
    assert held(model) == 3 and sorted(parts(model)[0] + parts(model)[1])[-2:] == [4.5, 5.0]


@pytest.mark.parametrize("first, second", [({"energy": 0.9}, {"params": 0.6}), ({"params": 0.8}, {"energy": 0.5})])
def test_a_second_cut_keeps_a_part_of_the_first(first, second):
    model = partly_decomposed()
    prune(model, **first)
    before = [layer.mask.clone() for layer in decomposed_layers(model).values()]
    prune(model, **second)
    masks = [layer.mask for layer in decomposed_layers(model).values()]
    assert all((mask <= old).all() for mask, old in zip(masks, before, strict=True))
    assert sum(mask.sum() for mask in masks) < sum(mask.sum() for mask in before)


def test_a_cut_touches_nothing_but_the_sparse_parts():
    model = partly_decomposed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prune(model, params=0.6)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{i}.{part}" for i in (2, 4) for part in ("S", "mask")}


def test_low_rank_layers_beside_sparse_ones_are_left_out():
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    decompose(model, Design(rank=2, sparse=False, include=("0",)))
    decompose(model, Design(rank=2, include=("1",)))
    assert list(prune(model, energy=0.5)) == ["1"]
    prune(model, params=2 * (80 + 20) + 7)
    assert int(model[1].mask.sum()) == 7


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "exactly one of energy= .* and params="),
        ({"energy": 0.5, "params": 0.5}, "exactly one"),
        ({"energy": 0.0}, "above 0 and at most 1, found 0.0"),
        ({"energy": 1.1}, "found 1.1"),
        ({"energy": float("nan")}, "found nan"),
        ({"params": 0}, "above 0, found 0"),
        ({"params": -0.1}, "found -0.1"),
        ({"params": True}, "found True"),
        ({"params": "5"}, "found '5'"),
        ({"params": 1.5}, "at most 1, found 1.5; give a number as an int"),
        ({"params": 100}, "a budget of 100 parameters can't be met .* without any S the net holds [0-9]+"),
        ({"params": 0.01}, "can't be met"),
    ],
)
def test_what_cannot_be_cut_is_refused_and_nothing_is_changed(arguments, message):
    model = partly_decomposed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        prune(model, **arguments)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["A", "B", "S"])
@pytest.mark.parametrize(
    "cut",
    [
        lambda m: prune(m, params=0.6),
        lambda m: prune(m, energy=0.6),
        lambda m: share_budget(m, 0.6),
        lambda m: cut_ranks(m, 0.6),
    ],
)
def test_weights_that_are_no_numbers_are_refused_by_every_cut(cut, part, bad):
    model = partly_decomposed()
    with torch.no_grad():
        getattr(model[4], part)[0, 0] = bad
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"NaN or infinity in 1 of [0-9]+ entries of {part} in '4'"):
        cut(model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("cut", [prune, share_budget])
@pytest.mark.parametrize(
    "score, message",
    [
        (lambda layer: magnitude(layer) * float("nan"), "found NaN for '2'"),
        (lambda layer: magnitude(layer).flatten(), r"a score for each entry of S, of shape \(12, 72\), found \(864,\)"),
        (lambda layer: magnitude(layer).sum(), r"found \(\) for '2'"),
    ],
)
def test_scores_that_are_none_are_refused_and_nothing_is_changed(cut, score, message):
    model = partly_decomposed()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        cut(model, params=0.7, score=score)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("low_rank", [True, False])
def test_a_model_without_a_sparse_part_is_refused(low_rank):
    model = nn.Sequential(nn.Linear(30, 40))
    if low_rank:
        decompose(model, Design(rank=2, sparse=False, include=("Linear",)))
    with pytest.raises(ValueError, match="no sparse part to cut"):
        prune(model, energy=0.5)
