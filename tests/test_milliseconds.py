"""Budgets of time: what is measured on a machine that others use too."""

from itertools import cycle, islice
from types import SimpleNamespace

import pytest
import torch

import splore
from splore.budget.milliseconds import SPELLS, Milliseconds, undisturbed_ms, undisturbed_steps
from splore.design.layers import decomposed_layers
from splore.engine.engine import Engine
from splore.postprocess.prune import prune
from splore.postprocess.rank_cut import share_budget

IMAGE = (3, 16, 16)


def net():
    torch.manual_seed(0)
    model = splore.build("resnet20", 10)
    splore.decompose(model, splore.Design(rank=2, start="svd"))
    return model.eval()


def test_a_budget_of_time_is_found_by_timing_the_engine():
    model = net()
    budget = Milliseconds(1000.0, IMAGE, batch=2, threads=1, tolerance=0.9)
    prices = budget.prices(model)
    assert set(prices.entry) == set(decomposed_layers(model))
    assert all(price > 0 for price in (*prices.entry.values(), *prices.direction.values()))
    whole = budget.measure(model)
    share_budget(model, budget=Milliseconds(0.6 * whole, IMAGE, batch=2, threads=1, tolerance=0.9))
    prune(model, budget=Milliseconds(0.6 * whole, IMAGE, batch=2, threads=1, tolerance=0.9))
    entries = sum(layer.S.numel() for layer in decomposed_layers(model).values())
    assert 0 < sum(int(layer.mask.sum()) for layer in decomposed_layers(model).values()) < entries


@pytest.mark.parametrize(
    ("spells", "found", "taken"),
    [
        ([7.0, 7.05, 7.3], 7.0, 3),
        ([9.5, 7.3, 9.6, 7.0, 9.5, 7.05, 8.0], 7.0, 6),
        (cycle([8.0, 7.0, 7.5, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0]), 7.0, SPELLS),
    ],
)
def test_the_time_of_a_net_is_that_of_two_spells_that_agree(spells, found, taken, monkeypatch):
    spells, seen = iter(spells), []

    def median_ms(*runs):
        seen.extend(islice(spells, len(runs)))
        return tuple(seen[-len(runs) :])

    monkeypatch.setattr("splore.budget.milliseconds.median_ms", median_ms)
    assert undisturbed_ms(lambda: None) == found
    assert len(seen) == taken


def planned(ms, images=1, team=1, threads=1):
    """What stands for an engine: one step of a slice of so many images, by so many threads of those there are."""
    step = {"name": "conv", "ms": ms, "images": images, "threads": team}
    return SimpleNamespace(threads=threads, steps=lambda: [step])


@pytest.mark.parametrize(
    ("batch", "engine", "ms"),
    [
        (1, planned(3.0), 3.0),
        (1, planned(3.0, team=2, threads=2), 3.0),
        (1, planned(3.0, threads=2), 3.0),
        (32, planned(3.0, images=16), 6.0),
        (32, planned(3.0, images=16, threads=2), 3.0),
        (32, planned(3.0, images=16, threads=4), 3.0),
        (64, planned(3.0, images=16, threads=2), 6.0),
        (32, planned(3.0, images=16, team=2, threads=2), 6.0),
        (3, planned(3.0, images=16), 3.0),
    ],
)
def test_what_a_step_takes_is_counted_for_the_whole_batch(batch, engine, ms):
    assert undisturbed_steps([lambda: engine], batch) == [{"conv": ms}]


@pytest.mark.parametrize(("patience", "found"), [(float("inf"), 2.0), (0.0, 3.1)])
def test_a_step_takes_the_second_shortest_of_several_plannings_in_turns(patience, found, monkeypatch):
    monkeypatch.setattr("splore.budget.milliseconds.PATIENCE", patience)
    order = []

    def planner(name, times):
        times = iter(times)
        return lambda: order.append(name) or planned(next(times))

    plans = [planner("quiet", [1.0] * 8), planner("busy", [3.0, 3.1, 3.2, 2.0, 2.9, 0.5, 2.1, 3.0])]
    assert undisturbed_steps(plans, 1) == [{"conv": 1.0}, {"conv": found}]
    assert order == ["quiet", "busy"] * (8 if patience else 3)


def test_a_budget_of_time_in_eight_bits_times_the_engine_in_eight_bits(monkeypatch):
    model, programs = net(), []

    class Seen(Engine):
        def __init__(self, segments, *more):
            programs.extend(segments)
            super().__init__(segments, *more)

    monkeypatch.setattr("splore.budget.milliseconds.Engine", Seen)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prices = Milliseconds(1.0, IMAGE, batch=2, threads=1, values="int8").prices(model)
    assert set(prices.entry) == set(decomposed_layers(model))
    assert all(price > 0 for price in (*prices.entry.values(), *prices.direction.values()))
    assert len({id(program) for program in programs}) == 3 and all(
        any(op.quant for op in program.ops) for program in programs
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    splore.quantize(model, [torch.randn(2, *IMAGE)], images=2)
    Milliseconds(1.0, IMAGE, threads=1).measure(model)
    assert any(op.quant for op in programs[-1].ops)
