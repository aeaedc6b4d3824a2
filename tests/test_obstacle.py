"""Layers that are used otherwise than by being called: followed, or named with the reason."""

import types
from collections import deque
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from splore.design.decompose import Design, decompose


class Keeper(nn.Module):
    """Has a layer `a` as others do, and a second hold of it that a replacement would miss."""

    def __init__(self, keep):
        super().__init__()
        self.a, self.b = nn.Linear(20, 20), nn.Linear(20, 20)
        keep(self)

    def forward(self, x):
        return self.b(self.a(x))


KEEPERS = {
    "a list": lambda m: setattr(m, "layers", [m.a]),
    "a dict of tuples": lambda m: setattr(m, "layers", {"first": (m.a, 1)}),
    "a bare attribute": lambda m: object.__setattr__(m, "again", m.a),
    "a bound method": lambda m: setattr(m, "call", m.a.forward),
    "its weight in a list": lambda m: setattr(m, "weights", [m.a.weight]),
    "a partial call": lambda m: setattr(m, "call", partial(m.a)),
    "a closure": lambda m: setattr(m, "call", (lambda layer: lambda x: layer(x))(m.a)),
    "a default of a function": lambda m: setattr(m, "call", lambda x, layer=m.a: layer(x)),
    "a deque": lambda m: setattr(m, "layers", deque([m.a])),
    "an object": lambda m: setattr(m, "keeper", SimpleNamespace(layer=m.a)),
    "a detached weight": lambda m: setattr(m, "weight", m.a.weight.detach()),
    "a buffer in its memory": lambda m: m.register_buffer("weight", m.a.weight.data),
}


@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS)
def test_a_layer_that_is_kept_elsewhere_stays_dense_and_is_named(keep):
    model = Keeper(keep)
    summary = decompose(model, Design(rank=2))
    assert list(summary.ranks) == ["b"] and "in a list or an attribute too" in summary.dense["a"]
    assert type(model.a) is nn.Linear


def test_an_optimiser_a_compilation_and_a_cycle_of_objects_keep_no_layer_from_being_decomposed():
    model = torch.compile(nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20)), backend="eager")
    model(torch.randn(2, 20))
    cycle = SimpleNamespace(optimizer=torch.optim.SGD(model.parameters(), 0.1))
    cycle.again, model.cycle = cycle, cycle
    summary = decompose(model, Design(rank=2))
    assert len(summary.ranks) == 2 and not summary.dense


def shared_memory(model):
    model[0].weight.data = model[1].weight.data


def hook_on_the_weight(model):
    model[0].weight.register_hook(lambda gradient: 2 * gradient)


def late_hook_on_the_weight(model):
    model[0].weight.register_post_accumulate_grad_hook(lambda p: None)


def state_hook(model):
    model[0].register_state_dict_post_hook(lambda module, state, prefix, metadata: None)


def forward_of_the_instance(model):
    model[0].forward = types.MethodType(lambda self, x: F.linear(x, self.weight).relu(), model[0])


SPECIAL = {
    "tied": (shared_memory, {"0", "1"}),
    "weight carries hooks": (hook_on_the_weight, {"0"}),
    "weight carries hooks ": (late_hook_on_the_weight, {"0"}),
    "it carries hooks": (state_hook, {"0"}),
    "a forward of its own": (forward_of_the_instance, {"0"}),
    "parametrised": (lambda m: weight_norm(m[0]), {"0"}),
    "parametrised ": (lambda m: spectral_norm(m[0]), {"0"}),
    " parametrised": (lambda m: parametrizations.spectral_norm(m[0]), {"0"}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reason", SPECIAL)
def test_what_is_special_about_a_layer_is_said_and_it_stays_dense(reason):
    make, names = SPECIAL[reason]
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 20))
    make(model)
    x = torch.randn(3, 20)
    wanted = model.eval()(x)
    summary = decompose(model, Design(rank=2))
    assert set(summary.dense) == names and all(reason.strip() in text for text in summary.dense.values())
    assert "2" in summary.ranks
    torch.testing.assert_close(model(x), wanted)


OTHERS = {
    "LSTM": nn.LSTM(4, 8),
    "GRUCell": nn.GRUCell(4, 8),
    "Embedding": nn.Embedding(4, 8),
    "Bilinear": nn.Bilinear(4, 4, 8),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_layers_of_other_kinds_are_named_unless_left_out_by_the_user(kind):
    def net():
        return nn.ModuleDict({"odd": OTHERS[kind], "fc": nn.Linear(20, 20)})

    summary = decompose(net(), Design(rank=2))
    assert list(summary.dense) == ["odd"] and summary.dense["odd"].startswith(f"a {kind}: only convolutions")
    assert not decompose(net(), Design(rank=2, exclude=("odd",))).dense
    assert not decompose(net(), Design(rank=2, include=("fc",))).dense
    with pytest.raises(ValueError, match=f"every selected layer stays dense .odd: a {kind}"):
        decompose(net(), Design(rank=2, include=(kind,)))
