"""A layer of rank 0 has no A and B, and old states in which these are empty still load."""

import copy

import pytest
import torch
from nets import decomposable
from small_layers import conv, linear
from torch import nn
from torch.optim import Adafactor, Adam, Adamax, RMSprop

from splore.design.decompose import Design, decompose, materialise
from splore.design.layers import decomposed_layers, parameter_counts
from splore.measure.cost import cost
from splore.modelfile.file import load, save
from splore.postprocess.prune import prune
from splore.postprocess.rank_cut import cut_ranks, share_budget
from splore.train.penalties import L1, FrobeniusDecay, parameter_groups


def rankless():
    model = decomposable()
    decompose(model, Design(rank=0))
    return model


@pytest.mark.parametrize("make", [conv, linear])
def test_there_are_no_empty_parameters_in_the_model_or_its_state(make):
    layer = make(0)
    assert layer.A is None and layer.B is None and layer.rank == 0 and layer.factors == ()
    assert set(layer.state_dict()) == {"S", "mask", "bias"}
    assert not layer.low_rank.any() and torch.equal(layer.matrix, layer.S)


def test_a_budget_without_room_for_L_leaves_no_empty_parameters():
    model = decomposable()
    decompose(model, Design(rank=2))
    ranks = share_budget(model, 0.3)
    assert 0 in ranks.values()
    assert all(p.numel() for p in model.parameters())
    assert cut_ranks(model, 0.9)["0"] <= ranks["0"]
    share_budget(model, 0.3)


@pytest.mark.parametrize("optimiser", [Adafactor, Adam, Adamax, RMSprop])
def test_norms_and_optimisers_meet_nothing_empty(optimiser):
    model = rankless()
    groups = parameter_groups(model, 0.01, nuclear=0.1)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.parameters()}
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0, norm_type=float("inf"))
    assert norm > 0 and all(p.grad.abs().max().isfinite() for p in model.parameters())
    FrobeniusDecay(model, 0.1).add_gradients()
    optimiser(groups).step()
    L1(model, 0.1).shrink(0.1)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("rank", [0, 2])
def test_a_state_with_empty_factors_loads_into_any_rank(rank):
    model = rankless()
    state = copy.deepcopy(model.state_dict())
    for name, layer in decomposed_layers(model).items():
        m, k = layer.S.shape
        state[f"{name}.A"], state[f"{name}.B"] = torch.empty(m, 0), torch.empty(0, k)
    other = decomposable()
    decompose(other, Design(rank=rank))
    other.load_state_dict(state)
    assert {layer.rank for layer in decomposed_layers(other).values()} == {0}
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(other.eval()(x), model.eval()(x))


@pytest.mark.parametrize("lacking", [("A",), ("B",), ("A", "B", "S")])
def test_a_state_that_lacks_some_of_the_parts_is_refused(lacking):
    state = {name: value for name, value in linear(2).state_dict().items() if name not in lacking}
    with pytest.raises(RuntimeError, match="Missing key"):
        linear(2).load_state_dict(state)


def test_a_layer_without_a_sparse_part_does_not_take_rank_zero():
    layer = linear(2, sparse=False)
    with pytest.raises(ValueError, match="no weight"):
        layer.set_parts(None, None)
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict(layer.state_dict() | {"A": torch.empty(5, 0), "B": torch.empty(0, 6)})


def test_files_costs_and_dense_twins_are_those_of_a_net_without_L(tmp_path):
    model = rankless()
    prune(model, params=0.3)
    assert parameter_counts(model)[1] == sum(p.numel() for p in decomposable().parameters())
    assert cost(model, (3, 8, 8)).params_kept == pytest.approx(0.3, abs=0.01)
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", decomposable())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(materialise(copy.deepcopy(model))(x), model(x))
