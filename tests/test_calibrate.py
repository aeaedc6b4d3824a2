"""Stage a: what a trained start keeps within a budget, and by the data."""

import copy

import pytest
import torch
from nets import decomposable, low_rank_plus_sparse
from torch import nn

from splore.design import calibrate, trial
from splore.design.allocate import CAUTION, share, split_at
from splore.design.calibrate import Moments, fitted, moments
from splore.design.decompose import Design, decompose
from splore.design.layers import decomposed_layers
from splore.design.matrix import Scheme, unfold
from splore.design.trained import CAUTIONS, _clearly_less
from splore.measure.cost import cost
from splore.postprocess.prune import prune
from splore.postprocess.recalibrate import recalibrate
from splore.postprocess.scores import magnitude


def images(batches=4, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 3, 8, 8, generator=draw).relu() for _ in range(batches)]


def trained():
    """A net whose weights are low-rank plus sparse, as the method hopes."""
    model = decomposable().eval()
    with torch.no_grad():
        for layer in (model[0], model[3][0], model[3][2], model[6]):
            W = layer.weight.flatten(1)
            layer.weight.copy_((0.1 * low_rank_plus_sparse(*W.shape, 1, 0.1)).view_as(layer.weight))
    return model


def error(model, dense, loader):
    with torch.no_grad():
        return sum((model(x) - dense(x)).square().sum().item() for x in loader)


# The budget


@pytest.mark.parametrize("calibrate", [None, images()])
@pytest.mark.parametrize("scheme", [*Scheme])
@pytest.mark.parametrize("params", [0.3, 0.5, 0.9, 1.0, 1500])
def test_a_trained_start_holds_exactly_the_parameters_that_it_may(params, scheme, calibrate):
    model = trained()
    decompose(model, Design(params=params, scheme=scheme), calibrate)
    found = cost(model, (3, 8, 8))
    assert found.params == (params if isinstance(params, int) else int(params * found.dense_params))
    for layer in decomposed_layers(model).values():
        assert torch.equal(layer.S != 0, layer.mask)


def test_all_parameters_are_the_very_function():
    model, dense = trained(), trained()
    dense.load_state_dict(model.state_dict())
    decompose(model, Design(params=1.0), images())
    assert error(model, dense, images()) < 1e-8


@pytest.mark.parametrize("cost_of_one", [0.002, 0.01, 0.1])
def test_a_split_is_no_worse_than_s_alone_and_than_the_best_l_with_an_s(cost_of_one):
    for seed in range(5):
        torch.manual_seed(seed)
        W = low_rank_plus_sparse(12, 18, 2, 0.1, noise=0.1).double()
        split = split_at(W, cost_of_one, most=12)

        def total(A, B, mask):
            rest = (W - A @ B).masked_fill(mask, 0)  # noqa: B023
            return rest.square().sum().item() + cost_of_one * (CAUTION * (A.numel() + B.numel()) + int(mask.sum()))

        found = total(split.A, split.B, split.mask)
        U, s, Vh = torch.linalg.svd(W, full_matrices=False)
        for rank in (0, int((s.square() > CAUTION * cost_of_one * 30).sum())):
            A, B = U[:, :rank] * s[:rank], Vh[:rank]
            assert found <= total(A, B, (W - A @ B).square() > cost_of_one) + 1e-9


def test_ranks_go_where_the_weights_have_directions_and_entries_where_they_have_spikes():
    spikes = 3 * torch.randn(30, 40) * (torch.rand(30, 40) < 0.05) + 0.01 * torch.randn(30, 40)
    directions = torch.randn(30, 2) @ torch.randn(2, 40) + 0.01 * torch.randn(30, 40)
    count = int((spikes.abs() > 0.1).sum())
    found = share({"spikes": spikes, "directions": directions}, 140 + count, {"spikes": 9, "directions": 9})
    assert found["directions"].A.shape[1] == 2 and found["spikes"].A.shape[1] == 0
    assert int(found["spikes"].mask.sum()) > 0.9 * count


def test_a_rank_given_beside_the_budget_is_the_most():
    model = trained()
    assert set(decompose(model, Design(params=0.5, rank=0), images()).ranks.values()) == {0}
    model = trained()
    assert max(decompose(model, Design(params=0.5, rank=1)).ranks.values()) == 1


@pytest.mark.parametrize(
    "design, message",
    [
        ({"params": 0.5, "start": "svd"}, "params chooses what a trained start keeps"),
        ({"params": 0.5, "density": 0.1}, "params chooses what a trained start keeps"),
        ({"params": 0.5, "sparse": False, "rank": 2}, r"rank=Budget\(share\)"),
        ({"params": 0.0}, "a budget is .* above 0, found 0.0"),
        ({"params": 1.5}, "at most 1, found 1.5"),
        ({"params": True}, "found True"),
    ],
)
def test_designs_that_contradict_themselves_are_refused(design, message):
    with pytest.raises(ValueError, match=message):
        Design(**design)


def test_what_cannot_be_met_or_calibrated_is_refused_and_the_model_is_untouched():
    for design, loader, message in (
        (Design(params=10), None, "what is not decomposed holds [0-9]+ parameters more"),
        (Design(params=0.5), [], "at least one batch"),
        (Design(params=0.5), [torch.full((2, 3, 8, 8), float("nan"))], "NaN or infinity in those of '0'"),
        (Design(start="svd", rank=2), images(), "nothing to calibrate"),
    ):
        model = trained()
        before, state = list(model.modules()), copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=message):
            decompose(model, design, loader)
        assert list(model.modules()) == before
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# By the data


@pytest.mark.parametrize("scheme", [*Scheme])
def test_the_moments_are_those_of_the_columns_that_the_matrix_multiplies(scheme):
    layer = nn.Conv2d(3, 4, (3, 1), stride=(2, 1), padding=(1, 0), dilation=2)
    x = torch.randn(5, 3, 9, 9)
    seen = moments(nn.Sequential(layer), {"0": layer}, scheme, [x[:2], x[2:]])["0"]
    W = unfold(layer.weight.detach(), scheme).double()
    outputs = (
        nn.functional.conv2d(x, layer.weight, None, (2, 1), (1, 0), 2).double().transpose(0, 1).flatten(1).detach()
    )
    assert seen.count == outputs.shape[1]
    expected = (outputs - outputs.mean(1, keepdim=True)).square().sum() / seen.count
    ridge = seen.C.diagonal().mean() * 0.01 / 1.01 * W.square().sum()
    assert seen.error(W) == pytest.approx((expected + ridge).item(), rel=1e-5)


def test_the_fit_is_the_least_squares_solution_of_each_row():
    torch.manual_seed(0)
    W, X, r = torch.randn(6, 10).double(), torch.randn(300, 10).double() @ torch.randn(10, 10).double(), 2
    B, mask = torch.randn(r, 10).double(), torch.rand(6, 10) < 0.4
    seen = Moments(300, X.sum(0), X.T @ X, has_bias=False)
    A, B2, S = fitted(W, torch.randn(6, r).double(), B, mask, seen)
    assert not S[~mask].any()
    C = seen.C
    for i in range(6):
        T = torch.cat([B, torch.eye(10).double()[mask[i]]])
        best = torch.linalg.solve(T @ C @ T.T, T @ C @ W[i]) @ T
        torch.testing.assert_close(A[i] @ B2 + S[i], best, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(A.norm(dim=0), B2.norm(dim=1))


@pytest.mark.parametrize("design", [{"params": 0.4}, {"params": 0.4, "rank": 0}, {"rank": 1, "density": 0.3}])
def test_a_calibrated_start_is_nearer_on_inputs_that_it_has_not_seen(design):
    dense = trained()
    recalibrate(dense, images(16, seed=3))
    plain, by_data = copy.deepcopy(dense), copy.deepcopy(dense)
    decompose(plain, Design(**design))
    decompose(by_data, Design(**design), images(8))
    fresh = images(seed=2)
    assert error(by_data, dense, fresh) < 0.8 * error(plain, dense, fresh)


def test_a_calibrated_start_is_nearer_than_the_cut_by_magnitude():
    dense = trained()
    cut, by_data = copy.deepcopy(dense), copy.deepcopy(dense)
    decompose(cut, Design(rank=0))
    prune(cut, params=0.4, score=magnitude)
    decompose(by_data, Design(params=0.4), images())
    fresh = images(seed=2)
    assert error(by_data, dense, fresh) < 0.8 * error(cut, dense, fresh)


@pytest.mark.parametrize("sparse", [True, False])
def test_the_low_rank_part_is_the_best_for_the_inputs_and_an_open_s_takes_the_rest(sparse):
    dense = trained()
    model = copy.deepcopy(dense)
    decompose(model, Design(rank=1, sparse=sparse), images())
    for layer in decomposed_layers(model).values():
        assert layer.rank == 1 and (not sparse or layer.mask.all())
    if sparse:
        assert error(model, dense, images()) < 1e-8
    else:
        plain = copy.deepcopy(dense)
        decompose(plain, Design(rank=1, sparse=False))
        assert error(model, dense, images()) < error(plain, dense, images())


def test_layers_that_no_input_reaches_are_split_without_data():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10))
    model.unused = nn.Linear(30, 20)
    model.forward = lambda x: model[2](model[1](model[0](x)))
    decompose(model, Design(params=0.5), images())
    assert list(decomposed_layers(model)) == ["0", "2", "unused"]


def test_the_loader_may_give_dicts_and_the_model_too_and_modes_are_restored():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = trained()

        def forward(self, pixel_values):
            return {"logits": self.net(pixel_values)}

    model = Named().train()
    model.net[1].eval()
    decompose(model, Design(params=0.5), [{"pixel_values": x, "labels": torch.zeros(16)} for x in images()])
    assert {module.training for module in (*model.net[3], model.net[6], model)} == {True} and not model.net[1].training
    assert cost(model.net, (3, 8, 8)).params_kept == pytest.approx(0.5, abs=1e-3)


def test_a_wide_layer_is_weighed_by_the_squares_of_its_inputs_alone(monkeypatch):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 4)), torch.randn(400, 30) * torch.linspace(0.1, 3, 30)
    full = calibrate.moments(model, {"0": model[0]}, Scheme.CHANNEL, [x])["0"]
    monkeypatch.setattr(calibrate, "WIDEST", 25)
    wide = calibrate.moments(model, {"0": model[0]}, Scheme.CHANNEL, [x])["0"]
    assert wide.products.shape == (30,)
    torch.testing.assert_close(wide.squares, full.squares, rtol=1e-5, atol=1e-5)
    D = torch.randn(20, 30)
    assert wide.error(D) == pytest.approx((D.double().square() * full.squares).sum().item(), rel=1e-4)
    wanted, blind = model(x), copy.deepcopy(model)
    decompose(blind, Design(params=0.5))
    decompose(model, Design(params=0.5), calibrate=[x])
    assert (model(x) - wanted).square().mean() < (blind(x) - wanted).square().mean()


def test_inputs_that_mislead_do_no_harm(monkeypatch):
    """Of a wide layer the squares alone are seen: not that strong inputs come in pairs, and cancel each other."""
    monkeypatch.setattr(calibrate, "WIDEST", 10)
    torch.manual_seed(0)
    weak, strong = torch.randn(512, 40), 30 * torch.randn(512, 20)
    layer = nn.Linear(80, 30)
    with torch.no_grad():
        layer.weight[:, 40:60] = 0.3 * torch.randn(30, 20)
        layer.weight[:, 60:] = -layer.weight[:, 40:60]
        layer.weight[:, :40] = torch.randn(30, 40)
    dense = nn.Sequential(layer, nn.Tanh(), nn.Linear(30, 5))
    batches = list(torch.cat([weak, strong, strong], 1).split(64))
    by_data, cut = copy.deepcopy(dense), copy.deepcopy(dense)
    decompose(by_data, Design(params=0.5, include=("0",)), batches)
    decompose(cut, Design(rank=0, include=("0",)))
    prune(cut, params=0.5, score=magnitude)
    assert error(by_data, dense, batches) < 1.01 * error(cut, dense, batches)


def test_a_calibrated_budget_is_divided_as_inputs_held_back_say_is_best(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10))
    batches = [torch.randn(64, 40) for _ in range(4)]
    found = []
    kept = trial.Trial.divergence

    def divergence(self, parts, held):
        assert len(held) == 1 and held[0] is batches[3]
        found.append(kept(self, parts, held))
        return found[-1]

    monkeypatch.setattr(trial.Trial, "divergence", divergence)
    logits = model(batches[3]).log_softmax(1)
    decompose(model, Design(params=0.4), calibrate=batches)
    assert len(found) == 2 + len(CAUTIONS)
    moved = model(batches[3]).log_softmax(1)
    ours = (logits.exp() * (logits - moved)).sum(1).mean().item()
    means = [each.mean().item() for each in found]
    assert ours <= min(means[:2]) * 1.001 and any(ours == pytest.approx(mean, rel=1e-3) for mean in means)


def test_more_of_L_is_taken_only_where_it_is_clearly_better():
    draw = torch.Generator().manual_seed(0)
    base = torch.rand(200, generator=draw)
    noise = torch.randn(200, generator=draw)
    assert _clearly_less(base - 0.1 + 0.1 * noise, base)
    assert not _clearly_less(base - 0.001 + 0.1 * noise, base) and not _clearly_less(base, base)
    assert not _clearly_less(base[:1] - 1, base[:1])
