"""Eight bits for a whole model: rounded weights, measured ranges, and what becomes of its outputs."""

import copy

import numpy as np
import pytest
import torch
from blocks import dense, in_blocks
from torch import nn

import splore
from splore.design.eight_bits import integers, real, scales, weights
from splore.design.layers import decomposed_layers
from splore.engine import reference
from splore.engine.quantise import quantise
from splore.postprocess.quantize import captured, measure, quantize, range_of

RULES = ["mse", "percentile", "max"]


def images(count=24):
    return [torch.randn(8, 3, 9, 9) for _ in range(count // 8)]


def steps(low, high):
    """What 256 steps from low to high, zero among them, make of any number."""
    step = (high - low) / 255

    def nearest(x):
        zero = np.rint(-low / step)
        return (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step

    return nearest


@pytest.mark.parametrize("rule", RULES)
def test_a_model_becomes_its_rounded_self_with_a_range_for_every_value(rule):
    model = in_blocks().train()
    splore.prune(model, params=0.5)
    masks = [layer.mask.clone() for layer in decomposed_layers(model).values()]
    found = splore.quantize(model, images(), ranges=rule)
    assert model.training and model.activation_ranges is found
    for _, module, part, rows in weights(model):
        weight = getattr(module, part).detach()
        scale = scales(weight, rows)
        assert torch.equal(real(integers(weight, scale), scale), weight)
    assert all(torch.equal(x.mask, mask) for x, mask in zip(decomposed_layers(model).values(), masks, strict=True))
    assert {"input", "0", "0.t", "3", "3.t", "6", "6.t"} <= set(found)
    assert all(low <= 0 <= high for low, high in found.values())
    assert all(low == -high for name, (low, high) in found.items() if name.endswith(".t"))
    assert found["0"][0] == 0  # after its ReLU


@pytest.mark.parametrize("rule", RULES)
def test_the_program_in_eight_bits_computes_nearly_what_the_model_does(rule):
    model = in_blocks().eval()
    loader = images(64)
    quantize(model, loader, ranges=rule)
    net = captured(model, loader[0])
    (program,) = net.segments
    x = torch.cat(loader)
    exact = model(x).detach().numpy()
    found = reference.run(quantise(program, model.activation_ranges), x.numpy()).reshape(exact.shape)
    assert np.abs(found - exact).max() < 0.06 * np.abs(exact).max()


def test_the_largest_values_are_kept_by_max_and_left_out_by_the_other_rules():
    values = np.concatenate([np.random.default_rng(0).normal(size=200_000), [80.0, -40.0]]).astype(np.float32)
    assert range_of(values, "max") == (-40.0, 80.0)
    for rule in ("percentile", "mse"):
        low, high = range_of(values, rule)
        assert -40 < low < 0 < high < 80


@pytest.mark.parametrize("kind", ["normal", "relu", "laplace", "symmetric", "negative", "zero"])
def test_mse_is_never_worse_than_the_other_rules(kind):
    draw = np.random.default_rng(1)
    values = draw.laplace(size=50_000) if kind == "laplace" else draw.normal(size=50_000)
    values = {"relu": np.maximum(values, 0), "negative": -np.abs(values), "zero": 0 * values}.get(kind, values)

    def error(pair):
        return 0.0 if pair[0] == pair[1] else float(np.square(values - steps(*pair)(values)).mean())

    pairs = {rule: range_of(values, rule, symmetric=kind == "symmetric") for rule in RULES}
    assert error(pairs["mse"]) <= 1.02 * min(error(pairs["max"]), error(pairs["percentile"])) + 1e-12
    assert kind != "symmetric" or pairs["mse"][0] == -pairs["mse"][1]
    assert kind not in ("relu", "zero") or pairs["mse"][0] == 0


def test_so_many_images_are_looked_at_and_no_more():
    model = dense().eval()
    given = []

    def loader():
        for batch in images(800):
            given.append(len(batch))
            yield batch, torch.zeros(8)

    splore.quantize(model, loader(), images=20, ranges="max")
    assert sum(given) == 24
    seen = torch.cat([model[:3](x) for x in images()])
    assert model.activation_ranges["0"][1] > 0.3 * float(seen.max())


def test_a_model_of_several_programs_has_ranges_for_all_of_them():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)

        def forward(self, x):
            x = torch.fft.fft2(self.first(x)).real  # which no engine knows
            return self.last(x).relu()

    model = Halves().eval()
    found = splore.quantize(model, images(8), ranges="max")
    assert {"input", "first", "last"} <= set(found) and found["last"][0] == 0


def test_what_can_not_be_quantised_is_said():
    with pytest.raises(ValueError, match="at least one batch"):
        splore.quantize(dense(), [])
    with pytest.raises(ValueError, match="expected finite activations, found .* at 'input'"):
        splore.quantize(dense(), [torch.full((1, 3, 9, 9), torch.inf)])
    with pytest.raises(ValueError, match="at least one image"):
        splore.quantize(dense(), images(), images=0)
    with pytest.raises(ValueError, match="one tensor of inputs"):
        splore.quantize(dense(), [((torch.zeros(1, 3, 9, 9), torch.zeros(1)), torch.zeros(1))])
    with pytest.raises(ValueError, match="takes none of"):
        splore.quantize(dense(), [{"sound": torch.zeros(1, 3, 9, 9), "rate": torch.zeros(1)}])


BATCHES = {
    "tuples": lambda x: (x, torch.zeros(len(x))),
    "lists": lambda x: [x],
    "tuples of tuples": lambda x: ((x,), torch.zeros(len(x))),
    "dicts": lambda x: {"pixel_values": x, "labels": torch.zeros(len(x))},
    "dicts by the parameter": lambda x: {"input": x, "other": torch.zeros(len(x))},
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_batches_may_be_tuples_lists_or_dicts(batch):
    model, given = dense().eval(), images(16)
    wanted = splore.quantize(copy.deepcopy(model), given)
    assert splore.quantize(model, [batch(x) for x in given]) == wanted


def test_ranges_are_measured_on_values_of_the_whole_net():
    model = dense().eval()
    x = images(16)
    found = measure(captured(model, x[0]), x, "max")
    whole = torch.cat(x)
    assert found["input"] == pytest.approx((float(whole.min()), float(whole.max())), rel=1e-5)
    after = model[:3](whole)
    assert found["0"] == pytest.approx((0.0, float(after.max())), rel=1e-4)
