"""Fake quantisation: layers that compute as they will be rounded, in training and in evaluation, by hooks alone."""

import copy

import numpy as np
import pytest
import torch
from blocks import dense, in_blocks
from small_layers import SCHEMES
from torch import nn

import splore
from splore.design.eight_bits import integers, real, round_weights, scales
from splore.design.layers import decomposed_layers
from splore.engine import reference
from splore.engine.quantise import quant_of, quantise
from splore.postprocess.quantize import captured, input_ranges, measured, quantize
from splore.train.attach import attach
from splore.train.rounding import in_bytes, rounding


def images(count=32):
    return [torch.randn(8, 3, 9, 9) for _ in range(count // 8)]


@pytest.mark.parametrize("span", [(0.0, 3.0), (-1.3, 2.9), (-4.0, 0.0), (-1e-4, 1e-4)])
def test_an_input_is_rounded_to_the_bytes_that_the_engine_stores(span):
    x = torch.randn(500) * 2 * max(abs(span[0]), span[1])
    quant = quant_of(*span)
    q = np.clip(np.rint(x.numpy() / np.float32(quant.scale)) + quant.zero, 0, 255)
    expected = (q - quant.zero) * np.float32(quant.scale)
    np.testing.assert_allclose(in_bytes(x, *span).numpy(), expected, rtol=1e-5, atol=1e-3 * quant.scale)


def test_gradients_pass_within_the_range_and_stop_outside():
    x = torch.tensor([-3.0, -0.5, 0.2, 1.9, 2.5], requires_grad=True)
    in_bytes(x, -1.0, 2.0).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_computes_with_rounded_parts_and_a_rounded_input(scheme):
    model = in_blocks(scheme).eval()
    layer = model[3]
    x = torch.randn(2, 6, 5, 5)
    by_hand = copy.deepcopy(layer)
    round_weights(nn.Sequential(by_hand))
    with rounding(model, {"3": (-2.0, 2.5)}):
        found, untouched = layer(x), model[0](torch.ones(1, 3, 4, 4))
    torch.testing.assert_close(found, by_hand(in_bytes(x, -2.0, 2.5)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(untouched, model[0](torch.ones(1, 3, 4, 4)))


def test_afterwards_and_after_an_error_every_parameter_is_the_one_it_was():
    model = in_blocks()
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    with rounding(model, {"0": (-1.0, 1.0), "3": (0.0, 1.0), "6": (0.0, 1.0)}):
        model(torch.randn(4, 3, 9, 9))
        with pytest.raises(RuntimeError):
            model[0](torch.randn(4, 5, 9, 9))
        assert {name: id(p) for name, p in model.named_parameters()} == {name: i for name, (i, _) in before.items()}
    for name, p in model.named_parameters():
        assert id(p) == before[name][0] and torch.equal(p, before[name][1])
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks


def test_each_layer_has_the_range_of_what_it_reads():
    model = dense().eval()
    loader = images()
    ranges = measured(model, loader, 32, "max")
    assert input_ranges(model, loader, ranges) == {"0": ranges["input"], "3": ranges["0"], "6": ranges[pooled(model)]}
    before = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))).eval()
    names = input_ranges(before, loader, measured(before, loader, 32, "max"))
    assert set(names) == {"0", "1.2"} and names["1.2"][0] == 0


def pooled(model):
    (program,) = captured(model, torch.zeros(1, 3, 9, 9)).segments
    return program.ops[program.ops[-1].inputs[0] - 1].name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_rounded_forward_is_near_the_program_in_eight_bits(scheme):
    model = in_blocks(scheme).eval()
    loader = images(64)
    ranges = quantize(model, loader)
    x = torch.cat(loader)
    (program,) = captured(model, x).segments
    engine = reference.run(quantise(program, ranges), x.numpy()).reshape(len(x), -1)
    with rounding(model, input_ranges(model, loader, ranges)), torch.no_grad():
        found = model(x).numpy()
    exact = model(x).detach().numpy()
    assert np.abs(found - engine).mean() < 1.0 * np.abs(exact - engine).mean() + 1e-3
    assert np.abs(found - engine).max() < 0.05 * np.abs(exact).max()


def test_fine_tuning_so_holds_the_masks_and_lowers_the_loss_of_the_rounded_net():
    torch.manual_seed(0)
    model = in_blocks()
    splore.prune(model, params=0.5)
    masks = [layer.mask.clone() for layer in decomposed_layers(model).values()]
    x, y = torch.randn(64, 3, 9, 9), torch.randint(0, 10, (64,))
    ranges = measured(model.eval(), [x], 64, "mse")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    attach(model, optimizer)
    losses = []
    with rounding(model, input_ranges(model, [x], ranges)):
        for _ in range(60):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.03
    for layer, mask in zip(decomposed_layers(model).values(), masks, strict=True):
        assert torch.equal(layer.mask, mask) and not layer.S[~mask].any()
        scale = scales(layer.S, layer.weight_shape[0])
        assert not torch.equal(real(integers(layer.S, scale), scale), layer.S)  # what is trained is not rounded
