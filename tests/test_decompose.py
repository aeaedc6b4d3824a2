"""Stage a: which layers are decomposed, with which ranks, and from which starting values."""

import copy

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import splore
from splore.design.decompose import Design, decompose, materialise
from splore.design.layers import LowRankSparseConv2d, LowRankSparseLinear, decomposed_layers
from splore.design.matrix import Scheme, unfold
from splore.design.ranks import Budget, Energy, choose_rank, largest_useful_rank, ranks_within
from splore.design.start import from_scratch, from_trained, low_rank_factors, singular_energies


def net():
    """Names: 0, 3.0, 3.2, 6 are convolutions or linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Sequential(nn.Conv2d(12, 16, 3, stride=2, bias=False), nn.ReLU(), nn.Conv2d(16, 16, (1, 3))),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def params(model):
    return sum(p.numel() for p in model.parameters())


def low_rank_plus_sparse(m, k, rank, density, noise=0.01):
    """A matrix that is what the method hopes for, as a trained weight might be."""
    spikes = torch.randn(m, k) * 3 * (torch.rand(m, k) < density)
    return torch.randn(m, rank) @ torch.randn(rank, k) / rank**0.5 + spikes + noise * torch.randn(m, k)


def svd_error(matrix, rank):
    return torch.linalg.svdvals(matrix.double())[rank:].square().sum().sqrt()


# Starting values


@pytest.mark.parametrize("scheme", [*Scheme])
@pytest.mark.parametrize("rank", [1, 0.3, Energy(0.5), Budget(0.9), 0])
def test_a_start_from_scratch_is_the_very_function_of_the_dense_net(scheme, rank):
    model = net().eval()
    dense = copy.deepcopy(model)
    summary = decompose(model, Design(rank=rank, scheme=scheme, include=(nn.Conv2d,)))
    assert summary.ranks
    for name, layer in decomposed_layers(model).items():
        weight = dense.get_submodule(name).weight
        torch.testing.assert_close(layer.weight, weight, rtol=1e-5, atol=1e-6 * weight.abs().max().item())
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
    model = net()
    norms = {name: m.weight.norm().item() for name, m in model.named_modules() if hasattr(m, "weight")}
    decompose(model, Design(rank=2, sparse=False))
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
    with pytest.raises(ValueError, match="a start is one of svd, random, found 'xavier'"):
        Design(start="xavier")


@pytest.mark.parametrize("start", ["svd", "random"])
@pytest.mark.parametrize("sparse", [True, False])
def test_a_start_from_a_weight_of_zeros_is_finite(sparse, start):
    A, B, S = from_scratch(torch.zeros(6, 8), 2, sparse, start)
    assert all(part.isfinite().all() for part in (A, B, S) if part is not None)


@pytest.mark.parametrize("density", [0.0, 0.05, 0.3, 1.0])
def test_a_trained_start_keeps_exactly_its_density_and_the_exact_weight_there(density):
    matrix = low_rank_plus_sparse(13, 21, 3, 0.1)
    A, B, S, mask = from_trained(matrix, 3, True, density)
    assert mask.sum() == round(density * 13 * 21)
    assert not S[~mask].any()
    torch.testing.assert_close((A @ B + S)[mask], matrix[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_trained_start_is_nearer_than_svd_alone_and_than_one_round_of_svd_and_threshold(seed):
    torch.manual_seed(seed)
    matrix = low_rank_plus_sparse(24, 30, 4, 0.08)
    A, B, S, _ = from_trained(matrix, 4, True, 0.1)
    error = (matrix - A @ B - S).norm()
    A1, B1 = low_rank_factors(matrix, 4)
    rest = (matrix - A1 @ B1).flatten().abs().sort(descending=True).values
    once = rest[round(0.1 * matrix.numel()) :].norm()
    assert error < 0.5 * svd_error(matrix, 4)
    assert error < 0.7 * once
    A, B, S, _ = from_trained(matrix, 4, True, 0.1, rounds=1)
    assert error < 0.7 * (matrix - A @ B - S).norm() < 0.7 * once


def test_a_trained_start_of_low_rank_alone_is_the_truncated_svd():
    model = nn.Sequential(nn.Linear(20, 15))
    matrix = model[0].weight.detach().clone()
    decompose(model, Design(rank=3, sparse=False, trained=True, include=("Linear",)))
    torch.testing.assert_close((model[0].weight - matrix).norm().double(), svd_error(matrix, 3), rtol=1e-4, atol=1e-5)


def test_a_trained_start_of_a_net_fills_the_masks():
    model = net()
    decompose(model, Design(rank=2, trained=True, density=0.2))
    for layer in decomposed_layers(model).values():
        assert layer.mask.sum() == round(0.2 * layer.S.numel()) and not layer.S[~layer.mask].any()


@pytest.mark.parametrize("trained", [True, False])
def test_bfloat16_weights_are_decomposed_in_their_dtype(trained):
    model = nn.Sequential(nn.Linear(40, 30)).to(torch.bfloat16)
    weight = model[0].weight.detach().clone()
    decompose(model, Design(rank=3, trained=trained, density=1.0, include=("Linear",)))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(model[0].weight, weight, rtol=2e-2, atol=2e-3)


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
    model = net()
    summary = decompose(model, Design(rank=1, include=include, exclude=exclude))
    assert list(summary.ranks) == expected == list(decomposed_layers(model))
    assert summary.idle == () and summary.dense == {}


@pytest.mark.parametrize("pattern", ["layer9", "conv*", "re:3", "Conv3d", nn.Conv1d, "3", nn.Sequential])
@pytest.mark.parametrize("side", ["include", "exclude"])
def test_a_pattern_that_means_no_layer_is_reported(pattern, side):
    patterns = {"include": ("Linear",), "exclude": ()}
    patterns[side] += (pattern,)
    summary = decompose(net(), Design(rank=1, **patterns))
    assert summary.idle == (pattern,) and list(summary.ranks) == ["6"]
    assert f"matched nothing: {pattern!r}" in str(summary)


def test_a_pattern_that_is_no_regular_expression_is_refused():
    with pytest.raises(ValueError, match=r"'re:\(' is no regular expression"):
        decompose(net(), Design(include=("re:(",)))


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
        "groups=2": nn.Conv2d(20, 20, 3, groups=2),
        "groups=20": nn.Conv2d(20, 20, 3, groups=20),
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
    model = net()
    model[3].eval()
    biases = {name: m.bias for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    decompose(model, Design(rank=1))
    for name, layer in decomposed_layers(model).items():
        assert layer.bias is biases[name]
        assert layer.training == (not name.startswith("3"))


def test_a_frozen_layer_stays_frozen_whatever_is_done_to_it():
    model = net()
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


# Ranks


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
    model = net()
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
        (None, "a rank is a number"),
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


def test_a_design_without_any_weight_is_refused():
    with pytest.raises(ValueError, match="leaves no weight"):
        Design(rank=0, sparse=False)


@pytest.mark.parametrize(
    "model, design, message",
    [
        (net(), Design(rank=100), r"every selected layer stays dense \(0: rank 100 .*at most 8"),
        (net(), Design(include=("conv1",)), r"no layer matches \['conv1'\]"),
        (nn.ReLU(), Design(), "no layer matches"),
        (nn.Linear(20, 20), Design(rank=2, include=("Linear",)), "wrap it"),
        (net(), Design(rank=Budget(0.01)), "already holds [0-9]+ parameters more"),
        (net(), Design(rank=Budget(0.06), sparse=False), "rank 1 in every layer takes [0-9]+: raise the budget"),
    ],
)
def test_what_leaves_nothing_to_decompose_is_refused_and_the_model_is_untouched(model, design, message):
    before = list(model.modules())
    with pytest.raises(ValueError, match=message):
        decompose(model, design)
    assert list(model.modules()) == before


# Whole networks


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 8)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("include", [("Linear",), (nn.Linear,)])
def test_attention_still_runs_and_computes_the_same(training, include):
    model = Attentive().train(training)
    x = torch.randn(2, 5, 16)
    expected = model(x)
    decompose(model, Design(rank=1, include=include))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    model(x).square().sum().backward()
    assert all(layer.A.grad.any() for layer in decomposed_layers(model).values())


WHOLE = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), Scheme.CHANNEL),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10), Scheme.SPATIAL),
    "timm test_resnet": (lambda: timm.create_model("test_resnet", num_classes=10), Scheme.SPATIAL),
    "timm test_vit": (lambda: timm.create_model("test_vit", num_classes=10, img_size=32), Scheme.CHANNEL),
}


@pytest.mark.parametrize("make, scheme", WHOLE.values(), ids=WHOLE)
def test_networks_of_other_libraries_are_decomposed_trained_saved_and_loaded_bit_for_bit(make, scheme, tmp_path):
    model = make()
    summary = decompose(model, Design(rank=2, scheme=scheme))
    assert len(summary.ranks) > 5
    assert all("groups=" in reason or "larger" in reason for reason in summary.dense.values())
    layers = decomposed_layers(model)
    before = {name: layer.S.detach().clone() for name, layer in layers.items()}
    optimizer = torch.optim.SGD(splore.parameter_groups(model, 1e-4), lr=0.01, momentum=0.9)
    loss = nn.functional.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.tensor([1, 2]))
    loss.backward()
    optimizer.step()
    assert all(p.grad is not None for layer in layers.values() for p in (layer.A, layer.B, layer.S))
    assert sum(not torch.equal(layer.S, before[name]) for name, layer in layers.items()) > len(layers) / 3
    splore.prune(model, energy=0.9)
    splore.save(model, tmp_path / "model.safetensors")
    loaded = splore.load(tmp_path / "model.safetensors", make())
    state = model.state_dict()
    assert list(state) == list(loaded.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_materialise_gives_back_plain_layers_and_the_same_outputs():
    model = net().eval()
    decompose(model, Design(rank=2, scheme=Scheme.SPATIAL))
    splore.prune(model, energy=0.8)
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    assert materialise(model) is model
    assert [type(m) for m in model.modules()] == [type(m) for m in net().modules()]
    assert list(model.state_dict()) == list(net().state_dict())
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_materialise_of_a_single_layer_returns_the_dense_one():
    layer = LowRankSparseConv2d(nn.Conv2d(3, 4, 3), 1)
    assert type(materialise(layer)) is nn.Conv2d


def test_a_decomposed_model_is_decomposed_no_further():
    model = net()
    decompose(model, Design(rank=1, include=("Linear",)))
    layer = model[6]
    assert list(decompose(model, Design(rank=1)).ranks) == ["0", "3.0", "3.2"]
    assert model[6] is layer
    assert unfold(model[0].weight, Scheme.CHANNEL).shape == model[0].matrix.shape
