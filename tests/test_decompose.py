"""Stage a: which layers are decomposed, and what becomes of the model."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import decomposable
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import splore
from splore.design.decompose import Design, decompose, materialise
from splore.design.layers import LowRankSparseLinear, decomposed_layers
from splore.design.matrix import Scheme
from splore.design.ranks import Budget, Energy, largest_useful_rank

# Which layers


NAMES = ["0", "3.0", "3.2", "6"]


@pytest.mark.parametrize(
    "include, exclude, expected",
    [
        (("Conv2d", "Linear"), (), NAMES),
        ((nn.Conv2d,), (), ["0", "3.0", "3.2"]),
        (("Linear",), (), ["6"]),
        (("3.0",), (), ["3.0"]),
        (("3.*",), (), ["3.0", "3.2"]),
        (("*",), ("3.?",), ["0", "6"]),
        ((r"re:\d",), (), ["0", "6"]),
        ((r"re:3\..*", "6"), ("re:.*2",), ["3.0", "6"]),
        (("Conv2d", "Linear"), ("0", "Linear"), ["3.0", "3.2"]),
        ((nn.Module,), (nn.Linear,), ["0", "3.0", "3.2"]),
    ],
)
def test_layers_are_chosen_by_name_glob_expression_class_name_and_class(include, exclude, expected):
    model = decomposable()
    summary = decompose(model, Design(rank=1, include=include, exclude=exclude))
    assert list(summary.ranks) == expected == list(decomposed_layers(model))
    assert summary.idle == () and summary.dense == {}


@pytest.mark.parametrize("pattern", ["layer9", "conv*", "re:3", "Conv3d", nn.Conv1d, "3", nn.Sequential])
@pytest.mark.parametrize("side", ["include", "exclude"])
def test_a_pattern_that_means_no_layer_is_reported(pattern, side):
    patterns = {"include": ("Linear",), "exclude": ()}
    patterns[side] += (pattern,)
    summary = decompose(decomposable(), Design(rank=1, **patterns))
    assert summary.idle == (pattern,) and list(summary.ranks) == ["6"]
    assert f"matched nothing: {pattern!r}" in str(summary)


def test_a_pattern_that_is_no_regular_expression_is_refused():
    with pytest.raises(ValueError, match=r"'re:\(' is no regular expression"):
        decompose(decomposable(), Design(include=("re:(",)))


def test_a_string_in_place_of_a_tuple_of_patterns_is_refused():
    with pytest.raises(ValueError, match="tuples of patterns"):
        Design(exclude="fc")


class Scaled(nn.Conv2d):
    def forward(self, x):
        return super().forward(2 * x)


class Renamed(nn.Conv2d):
    pass


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def obstacles():
    """Layers that can't be replaced, by a word of the reason."""
    tied, hooked, watched, biased = nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 20)
    tied.weight = (other := nn.Linear(20, 20)).weight
    hooked.register_forward_pre_hook(lambda module, args: None)
    watched.register_full_backward_hook(lambda module, inputs, outputs: None)
    parametrize.register_parametrization(biased, "bias", Doubled())
    return {
        "depthwise": nn.Conv2d(20, 20, 3, groups=20),
        "Scaled has a forward of its own": Scaled(20, 20, 3),
        "weight or bias is parametrised": parametrizations.weight_norm(nn.Conv2d(20, 20, 3)),
        "bias is parametrised": biased,
        "tied": tied,
        "tied to another": other,
        "hooks": hooked,
        "carries hooks": watched,
        "lazy": nn.LazyLinear(20),
        "larger": nn.Conv2d(1, 1, 3),
    }


@pytest.mark.parametrize("include", [(nn.Conv2d, nn.Linear), ("Conv2d", "Linear")])
@pytest.mark.parametrize("reason", obstacles())
def test_what_cannot_be_decomposed_stays_dense_and_the_summary_says_why(reason, include):
    model = nn.ModuleDict({"good": nn.Linear(20, 20), "renamed": Renamed(20, 20, 3)})
    for i, layer in enumerate(obstacles().values()):
        model[f"layer{i}"] = layer
    before = dict(model.named_modules())
    summary = decompose(model, Design(rank=2, include=include))
    name = f"layer{list(obstacles()).index(reason)}"
    assert list(summary.ranks) == ["good", "renamed"]
    assert reason in summary.dense[name] and f"stays dense: {name}: " in str(summary)
    assert model[name] is before[name]
    assert len(summary.dense) == len(obstacles())


def test_layers_that_would_grow_stay_dense_with_the_largest_useful_rank():
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 10))
    summary = decompose(model, Design(rank=8, include=("Linear",)))
    assert summary.ranks == {"0": 8} and type(model[1]) is nn.Linear
    assert summary.dense == {"1": "rank 8 would make its 10 x 30 matrix larger (at most 7)"}


@given(m=st.integers(1, 40), k=st.integers(1, 40))
def test_the_largest_useful_rank_saves_parameters_and_the_next_one_does_not(m, k):
    r = largest_useful_rank((m, k))
    assert r * (m + k) < m * k <= (r + 1) * (m + k)


def test_a_shared_module_is_replaced_everywhere_by_one_layer():
    shared = nn.Linear(20, 20)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU()), "c": nn.Linear(20, 5)})
    summary = decompose(model, Design(rank=2, include=("Linear",)))
    assert list(summary.ranks) == ["a", "c"]
    assert isinstance(model["a"], LowRankSparseLinear) and model["b"][0] is model["a"]
    materialise(model)
    assert type(model["a"]) is nn.Linear and model["b"][0] is model["a"]


def test_a_shared_module_answers_to_each_of_its_names():
    shared = nn.Linear(20, 20)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(20, 20)})
    summary = decompose(model, Design(rank=2, include=("Linear",), exclude=("b",)))
    assert list(summary.ranks) == ["c"] and summary.idle == () and model["a"] is model["b"] is shared


def test_the_bias_and_the_training_mode_are_kept():
    model = decomposable()
    model[3].eval()
    biases = {name: m.bias for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    decompose(model, Design(rank=1))
    for name, layer in decomposed_layers(model).items():
        assert layer.bias is biases[name]
        assert layer.training == (not name.startswith("3"))


def test_a_frozen_layer_stays_frozen_whatever_is_done_to_it():
    model = decomposable()
    model[3].requires_grad_(False)
    decompose(model, Design(rank=2))
    frozen = copy.deepcopy(model[3].state_dict())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    splore.FrobeniusDecay(model, 0.1).add_gradients()
    torch.optim.SGD(splore.parameter_groups(model, 0.1), lr=0.1).step()
    splore.L1(model, 1.0).shrink(0.1)
    assert all(torch.equal(value, frozen[name]) for name, value in model[3].state_dict().items())
    splore.cut_ranks(model, 0.5)
    assert model[3][0].rank == 1 and not any(p.requires_grad for p in model[3].parameters())
    assert all(p.requires_grad for p in model[0].parameters())
    materialise(model)
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, True, False, False, False, True, True]


def test_hooks_of_a_decomposed_layer_go_on_with_its_dense_one_and_with_a_compiled_program():
    model, x = decomposable().eval(), torch.randn(2, 3, 8, 8)
    decompose(model, Design(rank=2))
    handle = model[0].register_forward_hook(lambda layer, given, out: 2 * out)
    model[6].register_forward_pre_hook(lambda layer, args, kwargs: ((args[0] + 1,), kwargs), with_kwargs=True)
    wanted = model(x)
    torch.testing.assert_close(splore.compile(model, x)(x), wanted, rtol=1e-4, atol=1e-5)
    materialise(model)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
    handle.remove()
    assert not torch.allclose(model(x), wanted, atol=1e-3)


# What can't be


@pytest.mark.parametrize(
    "rank, message",
    [
        (-1, "can't be negative"),
        (1.0, "whole ranks are integers"),
        (0.0, "between 0 and 1"),
        (1.5, "between 0 and 1"),
        (float("nan"), "between 0 and 1"),
        (True, "a rank is a number"),
        ("4", "a rank is a number"),
    ],
)
def test_impossible_ranks_are_refused(rank, message):
    with pytest.raises(ValueError, match=message):
        Design(rank=rank)


@pytest.mark.parametrize("kind, value", [(Energy, 0.0), (Energy, 1.01), (Budget, 0.0), (Budget, 1.0), (Budget, -0.1)])
def test_impossible_energies_and_budgets_are_refused(kind, value):
    with pytest.raises(ValueError, match=f"found {value}"):
        kind(value)


@pytest.mark.parametrize("density", [-0.1, 1.1])
def test_impossible_densities_are_refused(density):
    with pytest.raises(ValueError, match="density"):
        Design(density=density)


def test_a_scheme_may_be_given_by_its_name():
    assert Design(scheme="spatial").scheme is Scheme.SPATIAL
    with pytest.raises(ValueError, match="a scheme is one of channel, spatial, found 'rows'"):
        Design(scheme="rows")


def test_a_design_without_any_weight_is_refused():
    with pytest.raises(ValueError, match="leaves no weight"):
        Design(rank=0, sparse=False)


@pytest.mark.parametrize(
    "model, design, message",
    [
        (decomposable(), Design(rank=100), r"every selected layer stays dense \(0: rank 100 .*at most 8"),
        (decomposable(), Design(include=("conv1",)), r"no layer matches \['conv1'\]"),
        (nn.ReLU(), Design(), "no layer matches"),
        (nn.Linear(20, 20), Design(rank=2, include=("Linear",)), "wrap it"),
        (decomposable(), Design(rank=Budget(0.01)), "already holds [0-9]+ parameters more"),
        (
            decomposable(),
            Design(rank=Budget(0.06), sparse=False),
            "rank 1 in every layer takes [0-9]+: raise",
        ),
    ],
)
def test_what_leaves_nothing_to_decompose_is_refused_and_the_model_is_untouched(model, design, message):
    before = list(model.modules())
    with pytest.raises(ValueError, match=message):
        decompose(model, design)
    assert list(model.modules()) == before
