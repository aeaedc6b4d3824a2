"""Eight bits: weights rounded, and the ranges of activations measured on images.

Weights are signed bytes, symmetric, with a scale for each output channel of S and of A and for each direction of B (see
`splore.design.eight_bits`). An activation is an unsigned byte, with one range for each value of the engine's program,
in which batch norm is folded and additions and ReLUs are joined to the convolution before them.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from splore.capture.export import Captured, capture
from splore.design.eight_bits import round_weights
from splore.design.layers import check_finite
from splore.engine.engine import run_torch
from splore.engine.program import Conv, Program
from splore.engine.quantise import Ranges, observe
from splore.forward import Epochs, batches_of, evaluating, one_input, split

RangeRule = Literal["mse", "percentile", "max"]
PERCENTILE = 99.99
"""Of the values of an activation, on either side, that `percentile` keeps."""

SAMPLE = 1 << 16
"""Values of one activation that are looked at in a batch."""

STEPS = 255
BINS, SHARES = 4096, np.linspace(0.15, 1.0, 60)
"""Bins of the histogram, and the shares of the extremes that `mse` tries."""


def quantize(
    model: nn.Module, loader: Iterable | Epochs, *, images: int = 256, ranges: RangeRule | Ranges = "mse"
) -> Ranges:
    """Makes a model one in eight bits, in place: what is saved then is int8, and what is compiled runs in it.

    The weights of convolutions and linear layers are rounded, and stay float32 tensors: the model can be evaluated,
    and trained further, as any other. The ranges become the model's attribute `activation_ranges`. Masks stay.

    Args:
        model: a network that `splore.compile` takes, decomposed or not, trained and on any device.
        loader: batches of float32 inputs, as `recalibrate` takes them, preprocessed as for inference.
        images: how many of them to measure ranges by; a few hundred do.
        ranges: `mse` makes least of the mean squared error of rounding and clipping, for each activation; `percentile`
            keeps 99.99 % of its values on either side; `max` all of them. Or the ranges themselves.

    Returns:
        (low, high) by the name of each activation.

    Raises:
        ValueError: a model that can't be compiled; a loader that gives no inputs, or others than one tensor each.
    """
    found = measured(model, loader, images, ranges) if isinstance(ranges, str) else ranges
    round_weights(model)
    model.activation_ranges = found  # type: ignore[assignment]
    return found


def measured(model: nn.Module, loader: Iterable | Epochs, images: int, rule: RangeRule) -> Ranges:
    """The ranges that `quantize` gives a model, which stays as it is: those of its rounded weights."""
    if images < 1:
        raise ValueError(f"expected at least one image to measure ranges by, found {images}")
    check_finite(model)
    batches = list(_inputs(model, loader, images))
    if not batches:
        raise ValueError("quantize needs at least one batch, and the loader gave none")
    net = copy.deepcopy(model)
    round_weights(net)
    return measure(captured(net, batches[0]), batches, rule)


def input_ranges(model: nn.Module, loader: Iterable | Epochs, ranges: Ranges) -> Ranges:
    """The range of what each convolution and linear layer reads, by the layer's name, for `splore.train.rounding`."""
    modules, found = dict(model.named_modules()), Ranges()
    segments = captured(model, next(_inputs(model, loader, 1))).segments
    for program in (segment for segment in segments if isinstance(segment, Program)):
        for op in program.ops:
            layer = op.name if op.name in modules else op.name.removesuffix(".B").removesuffix(".S")
            source = program.ops[op.inputs[0] - 1].name if op.inputs[0] else "input"
            span = ranges.get(f"{op.name}.pre", ranges.get(source))
            if isinstance(op, Conv) and layer in modules and span is not None:
                found.setdefault(layer, span)
    return found


def captured(model: nn.Module, example: Tensor) -> Captured:
    """The programs of a model in any mode and on any device."""
    net = copy.deepcopy(model).cpu().float()
    with evaluating(net):
        return capture(net, example[:1])


def measure(net: Captured, batches: Iterable[Tensor], rule: RangeRule) -> Ranges:
    """The ranges of all activations over some batches."""
    samples: dict[str, list[NDArray]] = {}
    draw = np.random.default_rng(0)

    def include(name: str, values: NDArray) -> None:
        flat = values.ravel()
        extremes = np.array([flat.min(), flat.max()])
        if not np.isfinite(extremes).all():
            raise ValueError(f"expected finite activations, found {extremes} at {name!r}: check the images and weights")
        kept = flat if flat.size <= SAMPLE else flat[draw.integers(0, flat.size, SAMPLE)]
        samples.setdefault(name, []).append(np.concatenate([extremes, kept]))

    def call(segment: Any, values: list) -> list:  # noqa: ANN401 - a program, or a piece of the model in torch
        if isinstance(segment, Program):
            y = observe(segment, np.ascontiguousarray(values[0]).reshape(-1, *segment.input), include)
            return [y.reshape(len(y), *segment.caller_shapes[1])]
        return run_torch(segment, values)

    for batch in batches:
        net.flow.run(net.segments, [batch.numpy()], call)
    found = {name: range_of(np.concatenate(each), rule, name.endswith(".t")) for name, each in samples.items()}
    return {name: (float(f"{low:.7g}"), float(f"{high:.7g}")) for name, (low, high) in found.items()}


def range_of(values: NDArray, rule: RangeRule, symmetric: bool = False) -> tuple[float, float]:
    """The range (low, high) of some values by a rule, low <= 0 <= high; -low = high where it is to be symmetric."""
    values = values.astype(np.float64)
    if symmetric:
        values = np.concatenate([values, -values])
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if rule == "percentile":
        low, high = (float(np.percentile(values, q)) for q in (100 - PERCENTILE, PERCENTILE))
        low, high = min(low, 0.0), max(high, 0.0)
    if rule != "mse" or low == high:
        return low, high
    counts, edges = np.histogram(values, BINS, (low, high))
    centres = (edges[1:] + edges[:-1]) / 2

    def error(a: float, b: float) -> float:
        step = (b - a) / STEPS
        nearest = np.clip(np.rint(centres / step), np.rint(a / step), np.rint(a / step) + STEPS) * step
        return float(counts @ np.square(centres - nearest))

    tried = [(low * share, high * share) for share in SHARES]
    if low < 0 < high and not symmetric:
        best = min(tried, key=lambda pair: error(*pair))
        tried = [(low * share, best[1]) for share in SHARES] + [(best[0], high * share) for share in SHARES]
    return min(tried, key=lambda pair: error(*pair))


def _inputs(model: nn.Module, loader: Iterable | Epochs, images: int) -> Iterator[Tensor]:
    """The inputs of a loader, on the CPU and in float32, so many of them."""
    for batch in batches_of(loader):
        x = one_input(model, split(batch)[0])
        yield x[:images].detach().to("cpu", torch.float32).contiguous()
        images -= len(x)
        if images <= 0:
            return
