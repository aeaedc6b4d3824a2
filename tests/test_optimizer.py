"""An optimiser must hold the parameters that the model has now, and its steps must run hooks, whatever wraps it."""

import copy
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from nets import decomposable
from torch import nn
from torch.optim import SGD, AdamW

from splore.design.decompose import Design, decompose, materialise
from splore.design.layers import decomposed_layers
from splore.postprocess.prune import prune
from splore.postprocess.rank_cut import cut_ranks
from splore.train.attach import attach
from splore.train.masks import hold_masks


def decomposed(rank=3):
    model = decomposable()
    decompose(model, Design(rank=rank))
    return model


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()


HANGERS = {"the masks": hold_masks, "the method": lambda model, optimizer: attach(model, optimizer, l1=1e-3)}
hangers = pytest.mark.parametrize("hang", HANGERS.values(), ids=HANGERS)


def load_others(model):
    model.load_state_dict(decomposed(2).state_dict())


@hangers
@pytest.mark.parametrize("change", [lambda m: cut_ranks(m, 0.4), load_others], ids=["cut", "loaded"])
def test_an_optimiser_of_the_ranks_before_is_refused_first_and_on_the_way(hang, change):
    model = decomposed()
    optimizer = SGD(model.parameters(), 0.1)
    hang(model, optimizer)
    step(model, optimizer)
    change(model)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="lacks A of '"):
        step(model, optimizer)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)), "nothing may have moved"
    with pytest.raises(ValueError, match="build the optimiser after cuts"):
        hang(model, optimizer)
    hang(model, SGD(model.parameters(), 0.1))


CHANGES = {
    "materialised": materialise,
    "anew": lambda model: decompose(materialise(model), Design(rank=3)),
    "one more": lambda model: decompose(model, Design(rank=1, include=("late",))),
}


@hangers
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_layers_that_are_decomposed_or_replaced_later_are_told_before_the_next_step(hang, change):
    model = decomposed()
    model.add_module("late", nn.Linear(10, 10))
    optimizer = SGD(model.parameters(), 0.1)
    hang(model, optimizer)
    step(model, optimizer)
    change(model)
    with pytest.raises(ValueError, match="decomposed or replaced after"):
        optimizer.step()


@hangers
def test_a_module_that_holds_decomposed_layers_may_be_wrapped_on_the_way(hang):
    model = nn.Sequential(decomposed(), nn.Identity())
    optimizer = SGD(model.parameters(), 0.1)
    hang(model, optimizer)
    model[0] = nn.DataParallel(model[0])
    step(model, optimizer)


@pytest.mark.parametrize("proximal", [True, False])
def test_penalties_fall_where_the_optimiser_climbs(proximal):
    model = decomposed()
    optimizer = SGD(model.parameters(), 0.1, maximize=True)
    attached = attach(model, optimizer, l1=0.1, frobenius=0.1, nuclear=0.1, proximal=proximal)
    found = [(attached.l1.penalty().item(), attached.frobenius.penalty().item())]
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        found.append((attached.l1.penalty().item(), attached.frobenius.penalty().item()))
    assert all(a > b for before, after in pairwise(found) for a, b in zip(before, after, strict=True))


@hangers
def test_new_parameters_that_were_given_to_the_optimiser_are_taken(hang):
    model = decomposed()
    optimizer = SGD(model.parameters(), 0.1)
    hang(model, optimizer)
    cut_ranks(model, 0.4)
    optimizer.add_param_group({"params": [p for layer in decomposed_layers(model).values() for p in layer.factors]})
    step(model, optimizer)


def test_what_is_frozen_may_be_left_out_and_dense_layers_too():
    model = decomposed()
    factors = [p for layer in decomposed_layers(model).values() for p in layer.factors]
    optimizer = SGD([layer.S for layer in decomposed_layers(model).values()], 0.1)
    with pytest.raises(ValueError, match="requires_grad_"):
        hold_masks(model, optimizer)
    for parameter in factors:
        parameter.requires_grad_(False)
    hold_masks(model, optimizer)


class Thin:
    """A wrapper as there are many."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.step()

    def zero_grad(self):
        self.optimizer.zero_grad()


WRAPPERS = {
    "Accelerate's": lambda o: Accelerator(cpu=True).prepare(o),
    "a thin one": Thin,
    "two": lambda o: Thin(Thin(o)),
}


@hangers
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_optimiser_is_looked_through(hang, wrap):
    model = decomposed()
    prune(model, energy=0.7)
    optimizer = wrap(AdamW(model.parameters(), 0.01))
    hang(model, optimizer)
    for _ in range(3):
        step(model, optimizer)
    assert not any(layer.S[~layer.mask].any() for layer in decomposed_layers(model).values())
    cut_ranks(model, 0.3)
    with pytest.raises(ValueError, match="lacks"):
        step(model, optimizer)


class Mute(torch.optim.Optimizer):
    """An optimiser that skips its class's constructor, as some wrappers do, and so never runs a hook."""

    def __init__(self, base):
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}
        self.base, self.param_groups, self.state = base, base.param_groups, base.state

    def step(self, closure=None):
        self.base.step()


@hangers
@pytest.mark.parametrize("wrap", [Mute, lambda o: "an optimiser", lambda o: None])
def test_what_runs_no_hooks_is_refused(hang, wrap):
    model = decomposed()
    with pytest.raises(ValueError, match="give the optimiser within"):
        hang(model, wrap(SGD(model.parameters(), 0.1)))


@hangers
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda m: nn.Sequential(m)])
def test_a_wrapped_model_is_looked_through(hang, wrap):
    torch._dynamo.reset()
    model = decomposed()
    prune(model, energy=0.7)
    wrapped = wrap(model)
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    hang(wrapped, optimizer)
    for _ in range(2):
        step(wrapped, optimizer)
    assert not any(layer.S[~layer.mask].any() for layer in decomposed_layers(model).values())


def test_a_checkpoint_across_a_cut_of_ranks_goes_on_exactly_in_the_one_order_and_is_refused_in_the_other():
    torch.manual_seed(0)
    model, x = decomposed(), torch.randn(4, 3, 8, 8)
    cut_ranks(model, 0.5)
    prune(model, energy=0.6)
    optimizer = AdamW(model.parameters(), 0.01)
    hold_masks(model, optimizer)

    def train(model, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    saved = train(model, optimizer)
    wanted = train(model, optimizer)[0]
    again = decomposed()
    early = AdamW(again.parameters(), 0.01)
    again.load_state_dict(saved[0])
    early.load_state_dict(saved[1])
    with pytest.raises(ValueError, match="lacks"):
        hold_masks(again, early)
    late = AdamW(again.parameters(), 0.01)
    hold_masks(again, late)
    late.load_state_dict(saved[1])
    found = train(again, late)[0]
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("penalty", ["l1", "frobenius", "nuclear"])
def test_a_strength_is_a_finite_number_from_0_up(penalty, strength):
    model = decomposed()
    with pytest.raises(ValueError, match="must be finite and can't be negative"):
        attach(model, torch.optim.SGD(model.parameters(), 0.1), **{penalty: strength})


def test_a_penalty_is_attached_once_and_again_when_that_is_removed():
    model, other = decomposed(), decomposed()
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], 0.1)
    first = attach(model, optimizer, l1=1e-3)
    attach(other, optimizer, l1=1e-3)
    attach(model, optimizer, frobenius=1e-3)
    with pytest.raises(ValueError, match="the l1 on this optimiser already"):
        attach(model, optimizer, l1=1e-3)
    first.remove()
    attach(model, optimizer, l1=1e-3)
