"""Stage c: which ranks L keeps, by the energy of its singular values and to a budget shared with S."""

import copy

import pytest
import torch
from nets import low_rank_plus_sparse, partly_decomposed
from torch import nn

from splore.design.decompose import Design, decompose
from splore.design.layers import LowRankSparseLinear, decomposed_layers
from splore.postprocess.prune import prune
from splore.postprocess.rank_cut import cut_ranks, share_budget
from splore.postprocess.scores import energy_share, lamp, magnitude, relative

# By energy


def with_spectrum(values, m=9, k=7):
    """A net of one low-rank layer whose A·B has these singular values, with factors that are not orthogonal."""
    U, V = torch.linalg.qr(torch.randn(m, m).double()).Q, torch.linalg.qr(torch.randn(k, k).double()).Q
    mix = torch.randn(len(values), len(values)).double() + 3 * torch.eye(len(values))
    A = U[:, : len(values)] @ torch.diag(torch.tensor(values).double()) @ mix
    B = torch.linalg.inv(mix) @ V[:, : len(values)].T
    layer = LowRankSparseLinear(nn.Linear(k, m).double(), len(values), sparse=False)
    layer.set_parts(A, B)
    return nn.Sequential(layer)


@pytest.mark.parametrize(
    "energy, rank", [(0.01, 1), (0.5, 1), (0.63, 1), (0.65, 2), (0.99, 2), (0.9995, 3), (0.99995, 4)]
)
def test_cut_ranks_keeps_the_fewest_singular_values_that_hold_the_energy(energy, rank):
    model = with_spectrum([8.0, 6.0, 0.3, 0.1])  # shares 0.639, 0.999, 0.9999, 1
    before = model[0].low_rank.detach().clone()
    assert cut_ranks(model, energy) == {"0": rank}
    assert model[0].rank == rank == model[0].B.shape[0]
    U, s, Vh = torch.linalg.svd(before)
    best = U[:, :rank] @ torch.diag(s[:rank]) @ Vh[:rank]
    torch.testing.assert_close(model[0].low_rank, best, rtol=1e-9, atol=1e-9)
    if rank < 4:
        torch.testing.assert_close(model[0].A.norm(dim=0), model[0].B.norm(dim=1))


def test_cut_ranks_leaves_sparse_parts_and_other_layers_alone():
    model = partly_decomposed(rank=3)
    layer = model[2]
    layer.set_parts(layer.A @ torch.diag(torch.tensor([1.0, 1.0, 0.0])), layer.B)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    linear = model[4].A
    ranks = cut_ranks(model, 0.999999)
    assert ranks["2"] == 2 and model[4].A is linear
    changed = {
        name
        for name, value in model.state_dict().items()
        if value.shape != before[name].shape or not torch.equal(value, before[name])
    }
    assert changed == {"2.A", "2.B"}


def test_cut_ranks_takes_layers_without_low_rank_part_and_products_of_zero():
    model = nn.Sequential(LowRankSparseLinear(nn.Linear(5, 5), 0), LowRankSparseLinear(nn.Linear(5, 5), 3))
    assert cut_ranks(model, 0.9) == {"0": 0, "1": 1}
    assert not model[1].low_rank.any() and model[1].A.isfinite().all()


@pytest.mark.parametrize("energy", [0.0, -1.0, 1.5])
def test_cut_ranks_refuses_an_energy_out_of_range(energy):
    with pytest.raises(ValueError, match=f"found {energy}"):
        cut_ranks(partly_decomposed(), energy)


# To a budget shared with S


def planted(rank, entries, strength=1.0, noise=0.01, m=40, k=60):
    """A layer (m, k) of rank 4 and a full S whose W is a matrix of rank `rank`, some large entries, and noise."""
    L = strength * torch.randn(m, rank) @ torch.randn(rank, k)
    S = noise * torch.randn(m, k)
    S.view(-1)[torch.randperm(m * k)[:entries]] += 3 * torch.randn(entries).sign()
    layer = LowRankSparseLinear(nn.Linear(k, m, bias=False), 4)
    U, s, Vh = torch.linalg.svd(L + S, full_matrices=False)
    layer.set_parts(U[:, :4] * s[:4], Vh[:4], L + S - U[:, :4] * s[:4] @ Vh[:4])
    return layer


def error(model, weights):
    """The squared error of a model's weights, each layer's relative to its energy."""
    layers = decomposed_layers(model).values()
    return sum(
        float((x.matrix.detach() - W).square().sum() / W.square().sum()) for x, W in zip(layers, weights, strict=True)
    )


@pytest.mark.parametrize("score", [magnitude, lamp, energy_share, relative])
def test_a_budget_goes_into_directions_where_they_are_worth_their_price(score):
    model = nn.Sequential(planted(2, 0), planted(0, 150), planted(1, 100))
    assert share_budget(model, params=3 * 100 + 250 + 20, score=score) == {"0": 2, "1": 0, "2": 1}


@pytest.mark.parametrize("params", [500, 1200, 3000, 0.1, 0.5, 0.999])
def test_the_shared_budget_leaves_w_alone_and_the_cut_after_it_meets_it(params):
    model = nn.Sequential(planted(3, 50), planted(0, 150), planted(1, 100, strength=0.1))
    weights = [layer.matrix.detach().clone() for layer in model]
    share_budget(model, params)
    for layer, W in zip(model, weights, strict=True):
        torch.testing.assert_close(layer.matrix, W, atol=1e-5, rtol=1e-5)
        assert layer.mask.all()
    prune(model, params=params)
    held = sum(int((p != 0).sum()) for p in model.parameters())
    assert held == (int(params * 3 * 40 * 60) if isinstance(params, float) else params)


@pytest.mark.parametrize("params", [600, 900, 1500, 2500])
def test_sharing_beats_keeping_all_ranks_and_keeping_none(params):
    whole = nn.Sequential(planted(3, 50), planted(0, 150), planted(1, 100, strength=0.3))
    weights = [layer.matrix.detach().clone() for layer in whole]
    models = {name: copy.deepcopy(whole) for name in ("shared", "none", "all")}
    share_budget(models["shared"], params)
    for layer in models["none"]:
        layer.set_parts(layer.A[:, :0], layer.B[:0], layer.matrix)
    errors = {}
    for name, model in models.items():
        if name != "all" or params > 1200:  # what the ranks of all layers take
            prune(model, params=params)
            errors[name] = error(model, weights)
    assert all(errors["shared"] < other for name, other in errors.items() if name != "shared"), errors


def test_one_layer_gets_the_rank_that_leaves_the_least_error():
    for seed in range(12):
        torch.manual_seed(seed)
        layer = planted(seed % 5, 40 * (seed % 3), strength=0.3, noise=0.1)
        W, params = layer.matrix.detach().clone(), 700
        errors = []
        U, s, Vh = torch.linalg.svd(layer.low_rank.detach(), full_matrices=False)
        for rank in range(5):
            model = nn.Sequential(copy.deepcopy(layer))
            A, B = U[:, :rank] * s[:rank], Vh[:rank]
            model[0].set_parts(A, B, W - A @ B)
            prune(model, params=params, score=magnitude)
            errors.append(error(model, [W]))
        model = nn.Sequential(layer)
        rank = share_budget(model, params, score=magnitude)["0"]
        assert errors[rank] <= 1.02 * min(errors), (seed, rank, errors)


@pytest.mark.filterwarnings("ignore:the budget")
def test_within_a_mask_one_layer_gets_about_the_rank_that_leaves_the_least_error():
    best = 0
    for seed in range(12):
        torch.manual_seed(seed)
        layer = planted(seed % 5, 40 * (seed % 3), strength=0.3, noise=0.1)
        U, s, Vh = torch.linalg.svd(layer.low_rank.detach(), full_matrices=False)
        prune(nn.Sequential(layer), params=400 + 600)
        W, S, params = layer.matrix.detach().clone(), layer.S.detach().clone(), 700
        errors = []
        for rank in range(5):
            model = nn.Sequential(copy.deepcopy(layer))
            A, B = U[:, :rank] * s[:rank], Vh[:rank]
            model[0].set_parts(A, B, S + layer.low_rank.detach() - A @ B, layer.mask)
            prune(model, params=params, score=magnitude)
            errors.append(error(model, [W]))
        model = nn.Sequential(layer)
        rank = share_budget(model, params, score=magnitude)["0"]
        best += errors[rank] == min(errors)
        assert errors[rank] <= 1.35 * min(errors), (seed, rank, errors)
    assert best >= 9


def test_directions_that_no_entry_can_take_over_are_kept_as_far_as_the_budget_goes():
    model = nn.Sequential(planted(4, 0), planted(2, 0))
    prune(model, params=8 * 100 + 1)  # one entry is left, so nothing of L can go over into S
    assert share_budget(copy.deepcopy(model), 8 * 100 + 1) == {"0": 4, "1": 4}
    for rank in range(1, 8):
        assert rank - 1 <= sum(share_budget(copy.deepcopy(model), rank * 100 + 1).values()) <= rank


def test_masked_places_stay_masked_and_layers_without_s_alone():
    model = nn.Sequential(planted(1, 20), LowRankSparseLinear(nn.Linear(40, 40), 3, sparse=False))
    prune(model, params=0.5)
    mask, A = model[0].mask.clone(), model[1].A
    share_budget(model, params=0.4)
    assert torch.equal(model[0].mask, mask) and not model[0].S[~mask].any() and model[1].A is A


def test_a_budget_that_holds_no_direction_and_no_entry_leaves_none():
    model = partly_decomposed()
    without = sum(p.numel() for p in model.parameters()) - sum(
        x.S.numel() + x.A.numel() + x.B.numel() for x in decomposed_layers(model).values()
    )
    assert set(share_budget(model, without).values()) == {0}


def test_budgets_that_cannot_be_shared_are_refused():
    model = partly_decomposed()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="100 parameters can't be met by cutting L and S"):
        share_budget(model, params=100)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="found 1.5"):
        share_budget(partly_decomposed(), params=1.5)
    model = nn.Sequential(LowRankSparseLinear(nn.Linear(9, 9), 2, sparse=False))
    with pytest.raises(ValueError, match="no sparse part"):
        share_budget(model, params=0.9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.1, 1e-4])
def test_half_precision_loses_no_ranks(dtype, scale):
    torch.manual_seed(0)
    ranks = {}
    matrices = [scale * low_rank_plus_sparse(*shape, 4, 0.02) for shape in ((128, 64), (64, 128), (40, 64))]
    for kind in (torch.float64, dtype):
        model = nn.Sequential(*(nn.Linear(k, m, bias=False, dtype=kind) for m, k in map(torch.Tensor.size, matrices)))
        for layer, matrix in zip(model, matrices, strict=True):
            layer.weight.data.copy_(matrix)
        decompose(model, Design(rank=6))
        cut = cut_ranks(copy.deepcopy(model), 0.99)
        ranks[kind] = cut, share_budget(model, 0.3)
    assert ranks[dtype] == ranks[torch.float64] and all(ranks[dtype][1].values())
