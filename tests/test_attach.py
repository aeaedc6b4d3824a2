"""The method in somebody's own loop by one line: the threshold fits the optimiser, and the loop may be any."""

import copy

import pytest
import torch
from nets import decomposable
from torch import nn
from torch.nn.functional import softshrink
from torch.optim import LBFGS, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop

from splore.design.decompose import Design, decompose
from splore.design.layers import LowRankSparseLinear, decomposed_layers
from splore.postprocess.prune import prune
from splore.train.attach import attach
from splore.train.penalties import L1, FrobeniusDecay, Scaling

OPTIMISERS = {
    "sgd": lambda ps: SGD(ps, 0.1),
    "momentum": lambda ps: SGD(ps, 0.05, momentum=0.9),
    "dampening": lambda ps: SGD(ps, 0.1, momentum=0.8, dampening=0.5),
    "nesterov": lambda ps: SGD(ps, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda ps: Adam(ps, 0.01),
    "amsgrad": lambda ps: Adam(ps, 0.02, amsgrad=True),
    "adamw": lambda ps: AdamW(ps, 0.01, weight_decay=0.0),
    "nadam": lambda ps: NAdam(ps, 0.01),
    "radam": lambda ps: RAdam(ps, 0.05),
    "adamax": lambda ps: Adamax(ps, 0.01),
    "rmsprop": lambda ps: RMSprop(ps, 0.01),
    "rmsprop with momentum": lambda ps: RMSprop(ps, 0.001, momentum=0.9),
    "adagrad": lambda ps: Adagrad(ps, 0.3),
    "a rate in a tensor": lambda ps: Adam(ps, torch.tensor(0.01)),
    "foreach": lambda ps: Adam(ps, 0.01, foreach=True),
    "fused": lambda ps: AdamW(ps, 0.01, weight_decay=0.0, fused=True),
}


def lasso():
    """A net that is its S alone, inputs and targets, and the strength and solution of the lasso that they make."""
    torch.manual_seed(1)
    X = torch.linalg.qr(torch.randn(20, 6)).Q
    Y = torch.randn(20, 4) * 0.7
    model = nn.Sequential(LowRankSparseLinear(nn.Linear(6, 4, bias=False), 0))
    solution = softshrink(Y.T @ X, 0.4)
    assert 3 < (solution == 0).sum() < 21, "the problem must have zeros and non-zeros"
    return model, X, Y, 0.4, solution


@pytest.mark.parametrize("name", OPTIMISERS)
def test_whatever_steps_the_lasso_is_solved_with_its_exact_zeros(name):
    model, X, Y, strength, solution = lasso()
    optimizer = OPTIMISERS[name](model.parameters())
    attach(model, optimizer, l1=strength, scaling=Scaling.NONE)
    for t in range(1500):
        if t % 300 == 299:  # a schedule: the threshold follows
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * 0.5
        optimizer.zero_grad()
        (0.5 * (model(X) - Y).square().sum()).backward()
        optimizer.step()
    torch.testing.assert_close(model[0].S.detach(), solution, rtol=2e-3, atol=2e-3)
    assert torch.equal(model[0].S == 0, solution == 0)


def decomposed(rank=2, dtype=torch.float32):
    torch.manual_seed(0)
    model = decomposable().to(dtype)
    decompose(model, Design(rank=rank))
    return model


def backward(model, seed, share=1.0):
    torch.manual_seed(seed)
    (share * model(torch.randn(4, 3, 8, 8)).square().mean()).backward()


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_it_is_what_the_single_pieces_do_with_two_groups_and_a_schedule():
    one, two = decomposed(), decomposed()

    def groups(model):
        parts = list(model.parameters())
        return [{"params": parts[:6], "lr": 0.1}, {"params": parts[6:], "lr": 0.03, "momentum": 0.5}]

    first, second = SGD(groups(one), momentum=0.9), SGD(groups(two), momentum=0.9)
    attach(one, first, l1=0.1, frobenius=0.2, nuclear=0.3)
    l1, decay = L1(two, 0.1), FrobeniusDecay(two, 0.2)
    rate_of = {id(p): (i, g) for i, g in enumerate(second.param_groups) for p in g["params"]}
    for t in range(3):
        for optimizer in (first, second):
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + t)
        backward(one, t)
        first.step()
        backward(two, t)
        decay.add_gradients()
        for layer in decomposed_layers(two).values():
            for part in layer.factors:
                part.grad.add_(part.detach(), alpha=0.3)
        second.step()
        l1.shrink([rate_of[id(S)][1]["lr"] / (1 - rate_of[id(S)][1]["momentum"]) for S in l1.parts])
    assert {rate_of[id(S)][0] for S in l1.parts} == {0, 1}
    for name, value in two.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], value)


@pytest.mark.parametrize("name", ["nesterov", "adam"])
def test_a_closure_gives_the_same_as_a_backward_pass_before_the_step(name):
    one, two = decomposed(), decomposed()
    for model, closed in ((one, True), (two, False)):
        optimizer = OPTIMISERS[name](model.parameters())
        attach(model, optimizer, l1=0.1, frobenius=0.2, nuclear=0.1)
        for t in range(3):

            def closure(model=model, optimizer=optimizer, t=t):
                optimizer.zero_grad()
                backward(model, t)
                return 0.0

            if closed:
                optimizer.step(closure) if t % 2 else optimizer.step(closure=closure)
            else:
                closure()
                optimizer.step()
    assert same(state(one), state(two))


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_gradient_scaler_skips_changes_nothing_and_one_that_it_takes_is_unscaled(fused):
    one, two = decomposed(), decomposed()
    optimizer, plain = (AdamW(m.parameters(), 0.01, fused=fused) for m in (one, two))
    for model, each in ((one, optimizer), (two, plain)):
        attach(model, each, l1=0.5, frobenius=0.2, nuclear=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
    before = [p.detach().clone() for p in one.parameters()]
    for t in range(4):
        optimizer.zero_grad()
        torch.manual_seed(t)
        scaler.scale(one(torch.randn(4, 3, 8, 8)).square().mean()).backward()
        if t == 0:
            next(one.parameters()).grad.fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()
        if t == 0:
            assert all(torch.equal(p, old) for p, old in zip(one.parameters(), before, strict=True))
            continue
        plain.zero_grad()
        backward(two, t)
        plain.step()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_gradient_accumulation_shrinks_and_decays_once_a_step():
    one, two = decomposed().eval(), decomposed().eval()
    for model, parts in ((one, 4), (two, 1)):
        optimizer = SGD(model.parameters(), 0.1)
        attach(model, optimizer, l1=0.5, frobenius=0.2)
        for _ in range(parts):
            backward(model, 0, 1 / parts)
        optimizer.step()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q)


class Twice(SGD):
    """A subclass whose step goes on to that of its class, so that hooks are run twice."""

    def step(self, closure=None):
        return super().step(closure)


def test_a_step_within_a_step_shrinks_once():
    model = decomposed()
    SGD([nn.Parameter(torch.zeros(1))])  # from then on its class's step runs hooks
    optimizer = Twice(model.parameters(), 0.1)
    attach(model, optimizer, l1=0.5)
    backward(model, 0)
    wanted = {n: (p.S - 0.1 * p.S.grad).detach() for n, p in decomposed_layers(model).items()}
    optimizer.step()
    for name, layer in decomposed_layers(model).items():
        threshold = 0.1 * 0.5 / max(layer.S.shape) ** 0.5
        torch.testing.assert_close(layer.S.detach(), softshrink(wanted[name], threshold))


def test_parts_that_got_no_gradient_are_left_as_they_are():
    model = decomposed()
    optimizer = Adam(model.parameters(), 0.1)
    attach(model, optimizer, l1=0.5)
    model[0](torch.randn(1, 3, 8, 8)).sum().backward()
    before = state(model)
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.A", "0.B", "0.S", "0.bias"}


def test_masks_hold_and_need_not():
    for masks in (True, False):
        model = decomposed()
        prune(model, energy=0.6)
        optimizer = Adam(model.parameters(), 0.01)
        attach(model, optimizer, l1=1e-4, masks=masks)
        for t in range(2):
            backward(model, t)
            optimizer.step()
        assert masks != any(layer.S[~layer.mask].any() for layer in decomposed_layers(model).values())


def test_taken_down_it_leaves_the_optimiser_alone():
    one, two = decomposed(), decomposed()
    for model in (one, two):
        prune(model, energy=0.6)
    first, second = (SGD(model.parameters(), 0.1) for model in (one, two))
    attach(one, first, l1=0.5, frobenius=0.2, nuclear=0.1).remove()
    for model, optimizer in ((one, first), (two, second)):
        backward(model, 0)
        optimizer.step()
    assert same(state(one), state(two))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_it_goes_on_exactly(dtype):
    def run(model, optimizer, steps):
        for t in steps:
            optimizer.zero_grad()
            torch.manual_seed(t)
            model(torch.randn(4, 3, 8, 8, dtype=dtype)).square().mean().backward()
            optimizer.step()

    model = decomposed(dtype=dtype)
    optimizer = AdamW(model.parameters(), 0.01)
    attached = attach(model, optimizer, l1=0.01, frobenius=0.1)
    run(model, optimizer, range(2))
    attached.l1.strength = 0.02
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), attached.state_dict()))
    run(model, optimizer, range(2, 5))
    again = decomposed(dtype=dtype)
    other = AdamW(again.parameters(), 0.01)
    fresh = attach(again, other)
    for piece, part in zip((again, other, fresh), saved, strict=True):
        piece.load_state_dict(part)
    run(again, other, range(2, 5))
    assert same(state(model), state(again))


@pytest.mark.parametrize("make", [Adadelta, torch.optim.Adafactor])
def test_an_optimiser_whose_threshold_is_not_known_is_refused_unless_the_gradients_take_the_l1(make):
    model = decomposed()
    optimizer = make(model.parameters())
    with pytest.raises(ValueError, match="proximal=False"):
        attach(model, optimizer, l1=0.1)
    attach(model, optimizer, frobenius=0.1)
    attach(model, optimizer, l1=0.1, proximal=False)
    backward(model, 0)
    optimizer.step()


def test_the_l1_in_the_gradients_is_that_of_the_loss_term():
    one, two = decomposed(), decomposed()
    first, second = (SGD(model.parameters(), 0.1) for model in (one, two))
    attach(one, first, l1=0.5, proximal=False)
    penalty = L1(two, 0.5)
    backward(one, 0)
    backward(two, 0)
    penalty.penalty().backward()
    first.step()
    second.step()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize(
    "make, options, message",
    [
        (lambda m: LBFGS(m.parameters()), {}, "LBFGS"),
        (lambda m: SGD(m.parameters(), 0.1), {"l1": -1.0}, "negative"),
        (lambda m: SGD(m.parameters(), 0.1), {"nuclear": -1.0}, "negative"),
        (lambda m: SGD([*m.parameters()][:2], 0.1), {}, "lacks"),
    ],
)
def test_what_can_not_be_attached_is_refused_and_nothing_hangs(make, options, message):
    model = decomposed()
    optimizer = make(model)
    with pytest.raises(ValueError, match=message):
        attach(model, optimizer, **options)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_a_dense_model_is_refused():
    model = decomposable()
    with pytest.raises(ValueError, match="decompose it first"):
        attach(model, SGD(model.parameters(), 0.1), l1=0.1)
