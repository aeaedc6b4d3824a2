"""Masked fine-tuning: what was cut from S stays exactly zero, whatever steps."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

from splore.design.decompose import Design, decompose
from splore.design.layers import decomposed_layers
from splore.postprocess.prune import prune
from splore.train.masks import hold_masks

OPTIMISERS = {
    "sgd": lambda ps: SGD(ps, lr=0.05, weight_decay=0.1),
    "momentum": lambda ps: SGD(ps, lr=0.05, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda ps: SGD(ps, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda ps: Adam(ps, lr=0.01, weight_decay=0.1),
    "amsgrad": lambda ps: Adam(ps, lr=0.01, amsgrad=True),
    "adamw": lambda ps: AdamW(ps, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda ps: RMSprop(ps, lr=0.01, momentum=0.9, centered=True, weight_decay=0.1),
    "adagrad": lambda ps: Adagrad(ps, lr=0.05, weight_decay=0.1),
}


def decomposed(dtype=torch.float32):
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 6)).to(dtype)
    decompose(model, Design(rank=2))
    return model


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.randn(8, 2, 5, 5)) - 1).square().mean().backward()
        optimizer.step()


def revived(model):
    """How many cut entries are not exactly zero."""
    return sum(int(layer.S[~layer.mask].count_nonzero()) for layer in decomposed_layers(model).values())


def masks(model):
    return [layer.mask.clone() for layer in decomposed_layers(model).values()]


@pytest.mark.parametrize("name", OPTIMISERS)
def test_cut_entries_stay_exactly_zero_after_steps_that_filled_the_running_state(name):
    model = decomposed()
    optimizer = OPTIMISERS[name](model.parameters())
    train(model, optimizer, 4)
    prune(model, energy=0.7)
    before, kept = masks(model), [layer.S[layer.mask].clone() for layer in decomposed_layers(model).values()]
    hold_masks(model, optimizer)
    for _ in range(4):
        train(model, optimizer, 1)
        assert revived(model) == 0
    assert all(torch.equal(mask, old) for mask, old in zip(masks(model), before, strict=True))
    for layer, old in zip(decomposed_layers(model).values(), kept, strict=True):
        assert not torch.equal(layer.S[layer.mask], old), "what was kept must go on learning"
        assert layer.S.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_masks_hold_in_every_precision(dtype):
    model = decomposed(dtype)
    prune(model, energy=0.7)
    hold_masks(model, optimizer := OPTIMISERS["momentum"](model.parameters()))
    for _ in range(3):
        optimizer.zero_grad()
        (model(torch.randn(8, 2, 5, 5, dtype=dtype)) - 1).square().mean().backward()
        assert cut_gradients(model) == 0
        optimizer.step()
    assert revived(model) == 0 and all(layer.S[layer.mask].any() for layer in decomposed_layers(model).values())


def test_without_the_hold_cut_entries_revive():
    model = decomposed()
    optimizer = OPTIMISERS["momentum"](model.parameters())
    prune(model, energy=0.7)
    train(model, optimizer, 1)
    assert revived(model) > 0


@pytest.mark.parametrize("name", ["nesterov", "adam", "rmsprop"])
def test_another_cut_on_the_way_holds_after_refresh(name):
    model = decomposed()
    optimizer = OPTIMISERS[name](model.parameters())
    hold = hold_masks(model, optimizer)
    for energy in (0.95, 0.8, 0.5):
        train(model, optimizer, 2)
        prune(model, energy=energy)
        hold.refresh()
        for layer in decomposed_layers(model).values():
            states = [s for s in optimizer.state[layer.S].values() if s.shape == layer.S.shape]
            assert states and not any(s[~layer.mask].any() for s in states)
        train(model, optimizer, 2)
        assert revived(model) == 0


def test_no_momentum_gathers_where_entries_are_cut():
    model = decomposed()
    optimizer = OPTIMISERS["momentum"](model.parameters())
    prune(model, energy=0.5)
    hold_masks(model, optimizer)
    train(model, optimizer, 3)
    for layer in decomposed_layers(model).values():
        buffer = optimizer.state[layer.S]["momentum_buffer"]
        assert not buffer[~layer.mask].any() and buffer[layer.mask].any()


def test_kept_entries_and_all_else_step_as_if_nothing_was_held():
    model = decomposed()
    prune(model, energy=0.5)
    optimizer = SGD(model.parameters(), lr=0.1)
    model(torch.randn(8, 2, 5, 5)).square().mean().backward()
    expected = {name: p.detach() - 0.1 * p.grad for name, p in model.named_parameters()}
    hold_masks(model, optimizer)
    optimizer.step()
    layers = decomposed_layers(model)
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        wanted = expected[name] * layers[owner].mask if leaf == "S" else expected[name]
        torch.testing.assert_close(parameter.detach(), wanted)


def test_a_step_with_a_closure_is_held_too():
    model = decomposed()
    prune(model, energy=0.5)
    optimizer = OPTIMISERS["momentum"](model.parameters())
    hold_masks(model, optimizer)

    def closure():
        optimizer.zero_grad()
        loss = (model(torch.randn(8, 2, 5, 5)) - 1).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
        assert not any(layer.S.grad[~layer.mask].any() for layer in decomposed_layers(model).values())
        assert revived(model) == 0


def test_a_cut_on_the_way_holds_even_without_refresh():
    model = decomposed()
    optimizer = OPTIMISERS["momentum"](model.parameters())
    hold_masks(model, optimizer)
    train(model, optimizer, 3)
    prune(model, energy=0.5)
    for _ in range(3):
        train(model, optimizer, 1)
        assert revived(model) == 0


def test_parameters_without_a_gradient_are_held():
    model = decomposed()
    optimizer = OPTIMISERS["sgd"](model.parameters())
    prune(model, energy=0.5)
    hold_masks(model, optimizer)
    optimizer.step()
    assert revived(model) == 0


def test_a_low_rank_model_is_held_without_effect():
    model = nn.Sequential(nn.Linear(20, 20))
    decompose(model, Design(rank=2, sparse=False, include=("Linear",)))
    optimizer = OPTIMISERS["momentum"](model.parameters())
    hold_masks(model, optimizer)
    before = model[0].A.detach().clone()
    model(torch.randn(4, 20)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model[0].A, before)


def test_the_hold_clears_at_once_what_lies_outside_the_masks():
    model = decomposed()
    prune(model, energy=0.5)
    with torch.no_grad():
        for layer in decomposed_layers(model).values():
            layer.S.add_(1)
    hold_masks(model, OPTIMISERS["sgd"](model.parameters()))
    assert revived(model) == 0


def test_remove_lets_cut_entries_step_again():
    model = decomposed()
    optimizer = OPTIMISERS["sgd"](model.parameters())
    prune(model, energy=0.5)
    hold = hold_masks(model, optimizer)
    train(model, optimizer, 1)
    hold.remove()
    train(model, optimizer, 1)
    assert revived(model) > 0


def cut_gradients(model):
    """How many gradients of cut entries are not exactly zero."""
    return sum(int(layer.S.grad[~layer.mask].count_nonzero()) for layer in decomposed_layers(model).values())


def test_nobody_sees_a_gradient_of_a_cut_entry_after_the_backward_pass():
    model = decomposed()
    prune(model, energy=0.5)
    hold_masks(model, OPTIMISERS["momentum"](model.parameters()))
    for _ in range(3):  # accumulated
        model(torch.randn(8, 2, 5, 5)).square().mean().backward()
        assert cut_gradients(model) == 0
    assert all(layer.S.grad[layer.mask].all() for layer in decomposed_layers(model).values())
    torch._dynamo.reset()
    model.zero_grad()
    torch.compile(model)(torch.randn(8, 2, 5, 5)).square().mean().backward()
    assert cut_gradients(model) == 0


def test_clipping_is_that_of_the_entries_that_are_left():
    model = decomposed()
    prune(model, energy=0.5)
    model(torch.ones(8, 2, 5, 5)).square().mean().backward()
    masks_of = {id(layer.S): layer.mask for layer in decomposed_layers(model).values()}
    wanted = sum((p.grad * masks_of.get(id(p), 1)).square().sum() for p in model.parameters()).sqrt()
    model.zero_grad()
    hold_masks(model, OPTIMISERS["sgd"](model.parameters()))
    model(torch.ones(8, 2, 5, 5)).square().mean().backward()
    torch.testing.assert_close(nn.utils.clip_grad_norm_(model.parameters(), 1.0), wanted)


def test_gradients_that_overflow_at_cut_entries_alone_do_no_harm():
    model = decomposed()
    prune(model, energy=0.5)
    hold = hold_masks(model, OPTIMISERS["adam"](model.parameters()))
    for layer in decomposed_layers(model).values():
        layer.S.register_hook(lambda g, mask=layer.mask: g.masked_fill(~mask, float("inf")))
    train(model, hold.optimizer, 2)
    assert cut_gradients(model) == 0 and all(p.isfinite().all() for p in model.parameters())


def test_a_cut_is_seen_at_the_next_gradient_without_a_refresh():
    model = decomposed()
    optimizer = OPTIMISERS["adam"](model.parameters())
    hold_masks(model, optimizer)
    train(model, optimizer, 2)
    prune(model, energy=0.5)
    model(torch.randn(8, 2, 5, 5)).square().mean().backward()
    assert cut_gradients(model) == 0
    for layer in decomposed_layers(model).values():
        assert not any(s[~layer.mask].any() for s in optimizer.state[layer.S].values() if s.shape == layer.S.shape)


def test_a_frozen_layer_that_is_thawed_is_held_from_then_on():
    model = decomposed()
    prune(model, energy=0.5)
    optimizer = OPTIMISERS["momentum"](model.parameters())
    model[0].S.requires_grad_(False)
    hold_masks(model, optimizer)
    assert not model[0].S.requires_grad
    train(model, optimizer, 1)
    model[0].S.requires_grad_(True)
    train(model, optimizer, 2)
    assert revived(model) == 0 and cut_gradients(model) == 0
