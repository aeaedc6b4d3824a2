"""S behind a threshold while it is trained: what is let through, what comes back, and what a checkpoint holds of it."""

import copy

import pytest
import torch
from command import TINY, splore
from nets import decomposable
from tests_support import tiny
from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam, RMSprop

from splore.design.blocks import ENTRIES, Blocks
from splore.design.decompose import Design, decompose
from splore.design.layers import LowRankSparseLinear, decomposed_layers
from splore.modelfile.file import load
from splore.postprocess.prune import prune
from splore.train.attach import attach
from splore.train.straight_through import LATENT, above

OPTIMISERS = {
    "sgd": lambda ps: SGD(ps, 0.1),
    "momentum": lambda ps: SGD(ps, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda ps: Adam(ps, 0.01),
    "nadam": lambda ps: NAdam(ps, 0.01),
    "rmsprop": lambda ps: RMSprop(ps, 0.01),
    "foreach": lambda ps: AdamW(ps, 0.01, foreach=True),
    "fused": lambda ps: AdamW(ps, 0.01, fused=True),
}


def decomposed(dtype=torch.float32, block=1):
    torch.manual_seed(0)
    model = decomposable().to(dtype)
    decompose(model, Design(rank=2, block=block))
    return model


def step(model, optimizer, seed):
    optimizer.zero_grad()
    torch.manual_seed(seed)
    model(torch.randn(4, 3, 8, 8, dtype=next(model.parameters()).dtype)).square().mean().backward()
    optimizer.step()


def sparse_parts(model):
    return [layer.S for layer in decomposed_layers(model).values()]


def let_through(model):
    parts = sparse_parts(model)
    return sum(int(S.count_nonzero()) for S in parts) / sum(S.numel() for S in parts)


def test_what_is_above_the_threshold_is_drawn_in_by_it_and_the_rest_is_zero():
    latent = torch.tensor([[0.0, 0.5, -1.0, 1.5, -3.0, 100.0]])
    wanted = torch.tensor([[0.0, 0.0, 0.0, 2.375 ** (1 / 3), -(26 ** (1 / 3)), (1e6 - 1) ** (1 / 3)]])
    torch.testing.assert_close(above(latent, ENTRIES, 1.0), wanted)


def test_a_block_goes_as_a_whole_by_its_root_mean_square():
    latent = torch.tensor([[3.0, 4.0, 0.1, 0.2, 8.0]])  # blocks of 2, 2 and 1
    found = above(latent, Blocks(2, 5), 1.0)
    share = lambda size: (1 - size**-3) ** (1 / 3)  # noqa: E731
    torch.testing.assert_close(found[:, :2], latent[:, :2] * share(12.5**0.5))
    assert not found[:, 2:4].any()
    torch.testing.assert_close(found[:, 4:], latent[:, 4:] * share(8.0))


@pytest.mark.parametrize("block", [1, 4])
def test_the_share_that_is_let_through_falls_along_a_cubic(block):
    model = decomposed(block=block)
    optimizer = SGD(model.parameters(), 1e-3)
    attach(model, optimizer, density=0.2, steps=100)
    shares = []
    for t in range(100):
        step(model, optimizer, t)
        shares.append(let_through(model))
    for taken in (10, 40, 79, 80, 100):
        assert shares[taken - 1] == pytest.approx(0.2 + 0.8 * max(1 - taken / 80, 0) ** 3, abs=0.02), taken
    if block > 1:
        for layer in decomposed_layers(model).values():
            assert layer.blocks.whole(layer.S != 0)


def test_a_step_is_the_optimisers_on_the_latent_values_by_the_gradient_at_what_they_stand_for():
    torch.manual_seed(0)
    model = nn.Sequential(LowRankSparseLinear(nn.Linear(8, 6, bias=False), 0))
    S = model[0].S
    latent, momentum, threshold = S.detach().clone(), torch.zeros_like(S), 0.0
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    attach(model, optimizer, density=0.5, steps=10)
    for t in range(10):
        torch.manual_seed(t)
        x, y = torch.randn(20, 8), torch.randn(20, 6)
        seen = above(latent, ENTRIES, threshold) if threshold else latent
        torch.testing.assert_close(S.detach(), seen, rtol=1e-4, atol=1e-3)  # next to the threshold it is steep
        momentum = 0.9 * momentum + (x @ seen.T - y).T @ x / 20
        latent = latent - 0.1 * momentum
        share = 0.5 + 0.5 * max(1 - (t + 1) / 8, 0) ** 3
        below = int((1 - share) * 48)
        threshold = float(latent.abs().flatten().sort().values[below - 1]) if below else 0.0
        optimizer.zero_grad()
        (0.5 * (model(x) - y).square().sum() / 20).backward()
        optimizer.step()
    assert (S == 0).sum() == 24


def test_an_entry_at_zero_comes_back():
    model = nn.Sequential(LowRankSparseLinear(nn.Linear(4, 4, bias=False), 0))
    S = model[0].S
    with torch.no_grad():
        S.copy_(torch.eye(4) * 2 + 0.1)
    optimizer = SGD(model.parameters(), 0.1)
    attach(model, optimizer, density=0.25, steps=1000)
    optimizer.state[S] |= {LATENT: S.detach().clone(), "straight_through_steps": 900, "threshold": 1.0}
    away = []
    for _ in range(30):
        away.append(bool(S[0, 1] == 0))
        optimizer.zero_grad()
        (-S[0, 1]).backward()
        optimizer.step()
    assert away[1] and S[0, 1] != 0


@pytest.mark.parametrize("name", OPTIMISERS)
def test_with_every_optimiser_also_where_a_layer_gets_no_gradient_at_first(name):
    model = decomposed()
    optimizer = OPTIMISERS[name](model.parameters())
    attach(model, optimizer, density=0.3, steps=30)
    model[0](torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    for t in range(29):
        step(model, optimizer, t)
    assert let_through(model) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_resumed_from_the_optimisers_state_it_goes_on_exactly(name, dtype):
    model, again = decomposed(dtype), decomposed(dtype)
    optimizer, other = (OPTIMISERS[name](m.parameters()) for m in (model, again))
    attach(model, optimizer, density=0.3, steps=400)
    for t in range(301):  # between two thresholds
        step(model, optimizer, t)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    attach(again, other, density=0.3, steps=400)
    for t in range(301, 306):
        step(model, optimizer, t)
        step(again, other, t)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert let_through(model) < 0.4


def test_a_closure_gives_the_same_as_a_backward_pass_before_the_step():
    one, two = decomposed(), decomposed()
    first, second = (SGD(m.parameters(), 0.1, momentum=0.9) for m in (one, two))
    for model, optimizer in ((one, first), (two, second)):
        attach(model, optimizer, l1=0.01, density=0.3, steps=10)

    def closure():
        first.zero_grad()
        one(torch.randn(4, 3, 8, 8)).square().mean().backward()
        return 0.0

    for t in range(10):
        torch.manual_seed(t)
        first.step(closure)
        step(two, second, t)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_gradient_scaler_skips_leaves_what_is_behind_s(fused):
    model = decomposed()
    optimizer = AdamW(model.parameters(), 0.01, fused=fused)
    attach(model, optimizer, density=0.3, steps=10)
    for t in range(7):
        step(model, optimizer, t)
    S = sparse_parts(model)[0]
    before, latent = S.detach().clone(), optimizer.state[S][LATENT].clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer.zero_grad()
    scaler.scale(model(torch.full((1, 3, 8, 8), torch.inf)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(optimizer.state[S][LATENT], latent)
    assert fused or torch.equal(S, before)  # a fused step is taken, with nothing in it: the threshold may rise


def test_the_l1_draws_in_the_latent_values():
    model = nn.Sequential(LowRankSparseLinear(nn.Linear(8, 6, bias=False), 0))
    optimizer = SGD(model.parameters(), 0.1)
    attach(model, optimizer, l1=0.5, density=0.5, steps=1)
    latent = model[0].S.detach().clone()
    model[0].S.grad = torch.zeros(6, 8)
    optimizer.step()
    drawn = optimizer.state[model[0].S][LATENT]
    torch.testing.assert_close(drawn, nn.functional.softshrink(latent, 0.1 * 0.5 / 8**0.5))


def test_what_is_cut_stays_zero_and_has_nothing_behind_it():
    model = decomposed()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    attach(model, optimizer, density=0.8, steps=20)
    for t in range(5):
        step(model, optimizer, t)
    prune(model, energy=0.6)
    for t in range(5, 20):
        step(model, optimizer, t)
    for layer in decomposed_layers(model).values():
        assert not layer.S[~layer.mask].any() and not optimizer.state[layer.S][LATENT][~layer.mask].any()


def test_taken_down_it_leaves_s_as_it_stands_and_the_state_as_the_optimiser_has_it():
    model = decomposed()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    attached = attach(model, optimizer, density=0.3, steps=10)
    for t in range(10):
        step(model, optimizer, t)
    parts = [S.detach().clone() for S in sparse_parts(model)]
    attached.remove()
    assert all(torch.equal(S, old) for S, old in zip(sparse_parts(model), parts, strict=True))
    assert all(set(state) == {"momentum_buffer"} for state in optimizer.state.values())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"density": 0.0, "steps": 10}, "above 0 and at most 1, found 0"),
        ({"density": 1.5, "steps": 10}, "above 0 and at most 1, found 1.5"),
        ({"density": 0.3}, "give steps="),
        ({"density": 0.3, "steps": 0}, "found 0"),
    ],
)
def test_what_can_not_be_is_refused_and_nothing_hangs(options, message):
    model = decomposed()
    optimizer = SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=message):
        attach(model, optimizer, **options)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_two_thresholds_on_one_optimiser_are_refused():
    model = decomposed()
    optimizer = SGD(model.parameters(), 0.1)
    attach(model, optimizer, density=0.3, steps=10)
    with pytest.raises(ValueError, match="has a threshold on this optimiser already"):
        attach(model, optimizer, density=0.5, steps=10)


def test_a_run_trains_behind_it_and_then_cuts(tmp_path):
    words = ["run", *TINY, "--out=out", "--baseline=false", "--train.l1=0", "--train.density=0.4"]
    done = splore(*words, folder=tmp_path)
    assert done.code == 0, done
    assert let_through(load(tmp_path / "out/trained.safetensors", tiny(4))) == pytest.approx(0.4, abs=0.05)
