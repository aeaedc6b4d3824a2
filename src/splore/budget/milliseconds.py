"""Budgets of time: what the engine takes on this machine, for a batch and a number of threads.

The prices are timings. The network is compiled as it stands, once more with every second entry of S, and once more with
higher ranks; what a layer's kernels gain or lose by that is what its entries and its directions cost here.
"""

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import nn

from splore.budget.account import check_amount, tangent
from splore.capture.compile import in_bytes
from splore.capture.export import capture
from splore.design.layers import LowRankSparse, decomposed_layers
from splore.design.prices import Prices
from splore.engine.engine import Engine
from splore.engine.program_segment import median_ms
from splore.measure.macs import Work, multiply_adds
from splore.modelfile.values import values_of
from splore.postprocess.quantize import quantize

SPREAD = 4.0
"""A price may be so many times the net's usual one for its multiply-adds, or as small a part of it: one timing of one
layer is noisy, and where two kernels cross it can even be negative."""

FILLED, HIGHER = 0.05, 8
"""The share of S that is filled to price the entries of an empty one, and the part of min(m, k) that ranks are raised
by to price directions."""

SPELLS, AGREE = 12, 0.01
"""How many short spells a network is timed for at most, and how far the two shortest of them may be apart."""

PLANNINGS, FEWEST, PATIENCE = 8, 3, 20.0
"""How often a network is planned to learn what its steps take, and how often at the least: where that takes more than
so many seconds."""

SMALL = 1e-3
"""What is filled in there: no zero, and nothing that makes activations overflow."""


@dataclass(frozen=True)
class Milliseconds:
    """A budget of milliseconds for a batch of images of `input_shape` (C, H, W), with `threads` (default: all cores).

    The engine is timed, not the dense network in torch, even where that is the faster one; in eight bits with `values`
    int8, and by default where the net is quantised already, even where float32 is faster.

    Raises ValueError for an amount that is no time, and for other values.
    """

    amount: float
    input_shape: tuple[int, ...]
    batch: int = 1
    threads: int | None = None
    tolerance: float = 0.03
    values: Literal["int8"] | None = None

    def __post_init__(self) -> None:
        check_amount(self.amount, "milliseconds", shares=False)
        if self.values not in (None, "int8"):
            raise ValueError(f"expected the engine's values to be int8 or None, found {self.values!r}")

    def prices(self, model: nn.Module) -> Prices:
        """The account of a network in milliseconds, from timings; ValueError where the engine can't take it."""
        model = copy.deepcopy(model).cpu().float().eval()
        layers = {name: layer for name, layer in decomposed_layers(model).items() if layer.S is not None}
        found = multiply_adds(model, self.input_shape)
        work = {name: found.get(id(layer), Work(0, 0)) for name, layer in layers.items()}
        entries, thinned = _change(layers, model, _thin)
        ranks, raised = _change(layers, model, _raise)
        plans = [self._planner(each) for each in (model, thinned, raised)]
        total = self._total(plans[0]())
        now, thin, high = undisturbed_steps(plans, self.batch)
        usual = total / max(sum(w.macs for w in found.values()), 1)
        pixels = {name: work[name].dense_macs / layer.S.numel() or 1.0 for name, layer in layers.items()}
        macs = {name: pixels[name] * sum(layer.S.shape) for name, layer in layers.items()}
        entry = _slopes(now, thin, entries, pixels, usual)
        direction = _slopes(now, high, ranks, macs, usual)
        return tangent("ms", total, model, entry, direction)

    def allowed(self, model: nn.Module) -> float:
        """How many milliseconds a batch may take."""
        return self.amount

    def measure(self, model: nn.Module) -> float:
        """The time of a batch through the engine where nothing else runs, in ms: see `undisturbed_ms`."""
        return self._total(self._planner(copy.deepcopy(model).cpu().float().eval())())

    def _planner(self, model: nn.Module) -> Callable[[], Engine]:
        """What gives an engine of a model, planned for the batch anew at each call."""
        x, ranges = torch.zeros(self.batch, *self.input_shape), None
        if self.values or values_of(model):
            model = copy.deepcopy(model)
            noise = torch.randn(1, *self.input_shape, generator=torch.Generator().manual_seed(0))
            ranges = quantize(model, [noise], images=1)  # any will do: the time is the same
        captured = capture(model, x)
        segments = tuple(in_bytes(segment, ranges) for segment in captured.segments)

        def planned() -> Engine:
            engine = Engine(segments, captured.input, captured.output, self.threads, captured.flow)
            engine.plan(self.batch)
            return engine

        return planned

    def _total(self, engine: Engine) -> float:
        """The time of a batch."""
        x = torch.zeros(self.batch, *self.input_shape)
        return undisturbed_ms(lambda: engine(x))


def undisturbed_steps(plans: Sequence[Callable[[], Engine]], batch: int) -> list[dict[str, float]]:
    """What the steps of some engines take for a batch, by name in ms: the second shortest of several plannings of each.

    What else the processor does makes some of them longer; the shortest may be a fluke, since a step that is fused is
    timed by what fusion gains. The engines take turns, so that what lasts for a while lies in all of them.
    """
    rounds: list[list[dict[str, float]]] = []
    began = time.monotonic()
    while len(rounds) < FEWEST or (len(rounds) < PLANNINGS and time.monotonic() - began < PATIENCE):
        rounds.append([_steps(plan(), batch) for plan in plans])
    return [_second_shortest(planned) for planned in zip(*rounds, strict=True)]


def _steps(engine: Engine, batch: int) -> dict[str, float]:
    """The times of the steps for a batch by name, the best of several tries when the engine was planned."""
    steps: dict[str, float] = {}
    for step in engine.steps():
        slices = max(batch / step["images"], 1)  # a step is that of a slice, of which each thread may take its own
        turns = slices if step["threads"] > 1 else slices / min(engine.threads, ceil(slices))
        steps[step["name"]] = steps.get(step["name"], 0.0) + turns * step["ms"]
    return steps


def _second_shortest(plannings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    times = defaultdict(list)
    for steps in plannings:
        for name, ms in steps.items():
            times[name].append(ms)
    return {name: sorted(found)[:2][-1] for name, found in times.items()}


def undisturbed_ms(run: Callable[[], object]) -> float:
    """The shortest of the medians of some spells of runs, in ms; there are more of them until the two shortest agree.

    What else the processor does makes a run longer, for seconds on end and by a third on a shared machine; never
    shorter.
    """
    spells = sorted(median_ms(run, run, run))
    while spells[1] > (1 + AGREE) * spells[0] and len(spells) < SPELLS:
        spells = sorted([*spells, *median_ms(run)])
    return spells[0]


def _change(
    layers: Mapping[str, LowRankSparse], model: nn.Module, change: Callable[[LowRankSparse], int]
) -> tuple[dict[str, int], nn.Module]:
    """A copy of a model with other parts in its layers, and by how many entries or ranks each has changed."""
    other = copy.deepcopy(model)
    twins = decomposed_layers(other)
    return {name: change(twins[name]) for name in layers}, other


@torch.no_grad()
def _thin(layer: LowRankSparse) -> int:
    """Takes every second block of S away, or fills some where there is nothing to take; says how many entries more."""
    before, blocks = int(layer.nnz), layer.blocks.any(layer.S)
    kept = blocks.flatten().clone()
    if before < 2:
        kept[:: round(1 / FILLED)] = True
        new = SMALL * layer.blocks.spread(kept.view_as(blocks)).to(layer.S)
    else:
        kept[kept.nonzero().flatten()[::2]] = False
        new = layer.S * layer.blocks.spread(kept.view_as(blocks))
    layer.set_parts(layer.A, layer.B, new, torch.ones_like(layer.mask))
    return int(layer.nnz) - before


@torch.no_grad()
def _raise(layer: LowRankSparse) -> int:
    """Raises the rank; says by how much."""
    m, k = layer.S.shape
    more = min(max(min(m, k) // HIGHER, 1), min(m, k) - layer.rank)
    if more:
        like = layer.S
        A, B = layer.factors or (like.new_empty(m, 0), like.new_empty(0, k))
        left, right = torch.full_like(like[:, :more], SMALL), torch.full_like(like[:more], SMALL)
        layer.set_parts(torch.cat([A, left], 1), torch.cat([B, right]))
    return more


def _slopes(
    now: Mapping[str, float],
    then: Mapping[str, float],
    change: Mapping[str, int],
    macs: Mapping[str, float],
    usual: float,
) -> dict[str, float]:
    """What one more costs in each layer, in ms, not too far from what its `macs` cost in all layers together.

    `usual` is the time of a multiply-add where the timings give none.
    """
    timed = [name for name in change if name in now and name in then]
    gained = {name: (then[name] - now[name]) * (1 if change[name] > 0 else -1) for name in timed}
    done = sum(abs(change[name]) * macs[name] for name in gained)
    whole = sum(gained.values())
    each = whole / done if whole > 0 else usual
    slopes = {}
    for name, work in macs.items():
        slope = gained[name] / abs(change[name]) if name in gained and change[name] else each * work
        slopes[name] = min(max(slope, each * work / SPREAD), each * work * SPREAD)
    return slopes
