"""The energy distribution of S: what share of it the largest entries hold, and where the cut fell."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from splore.design.layers import LowRankSparse, decomposed_layers
from splore.report.chart import AUTOSIZE, Chart
from splore.report.run_folder import LeftOut, RunFolder

POINTS = 60
"""Points of a curve, spread evenly over the logarithm of the share of entries."""

DECADES = [10.0**power for power in range(-6, 3)]
"""Where the axis of entries has its lines, in %."""


@dataclass(frozen=True)
class Curve:
    """The energy (sum of squares) of one layer's S as training left it. All figures are shares, from 0 to 1.

    Attributes:
        layer: the layer's name.
        points: (share of all entries, the largest first; share of the energy that they hold), rising.
        cut: (share of all entries that the cut kept; share of the energy that they hold).
    """

    layer: str
    points: tuple[tuple[float, float], ...]
    cut: tuple[float, float]


def energy_curves(run: RunFolder) -> list[Curve]:
    """The curves of all layers with a sparse part. Raises LeftOut where the run has none, or its files are gone."""
    if run.recipe["method"] in ("dense", "low-rank"):
        raise LeftOut("This method has no sparse part.")
    return curves_between(run.net("after training"), run.net("after the cut"))


@torch.no_grad()
def curves_between(trained: nn.Module, cut: nn.Module) -> list[Curve]:
    """The curves of `trained`, with the entries that are left in the same layers of `cut`."""
    after = decomposed_layers(cut)
    curves = []
    for name, layer in decomposed_layers(trained).items():
        if layer.S is not None and layer.S.any():
            curves.append(_curve(name, layer, after[name]))
    return curves


def _curve(name: str, before: LowRankSparse, after: LowRankSparse) -> Curve:
    squares = before.S.double().square()
    total = float(squares.sum())
    ordered = squares.flatten().sort(descending=True).values
    reached = ordered.cumsum(0) / total
    counts = np.unique(np.geomspace(1, int((ordered > 0).sum()), POINTS).astype(int))
    points = [(int(count) / ordered.numel(), min(float(reached[count - 1]), 1.0)) for count in counts]
    if counts[-1] < ordered.numel():
        points.append((1.0, 1.0))  # zeros hold nothing
    kept = after.S != 0
    return Curve(name, tuple(points), (float(kept.double().mean()), float(squares[kept].sum()) / total))


def energy_chart(curves: Sequence[Curve]) -> Chart:
    """The energy that the largest entries of each S hold, over their share; a ring where the cut fell."""
    lines = [
        {"layer": curve.layer, "entries": 100 * entries, "energy": 100 * energy}
        for curve in curves
        for entries, energy in curve.points
    ]
    cuts = [{"layer": c.layer, "entries": 100 * c.cut[0], "energy": 100 * c.cut[1]} for c in curves if c.cut[0] > 0]
    x: Chart = {"field": "entries", "type": "quantitative", "title": "largest entries of S, % of all"}
    x |= {"scale": {"type": "log", "nice": False}, "axis": {"format": "~g", "values": DECADES, "labelFlush": True}}
    y: Chart = {"field": "energy", "type": "quantitative", "title": None, "scale": {"domain": [0, 100]}}
    y["axis"] = {"format": "~f", "tickCount": 5}
    tooltip = [
        {"field": "layer", "type": "nominal"},
        {"field": "entries", "type": "quantitative", "format": ".3~g", "title": "entries, %"},
        {"field": "energy", "type": "quantitative", "format": ".2f", "title": "energy, %"},
    ]
    place = {"x": x, "y": y, "tooltip": tooltip}
    hover = {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout", "fields": ["layer"]}
    near = {"param": "near", "empty": False}
    line = {
        "detail": {"field": "layer"},
        "color": {"condition": near | {"value": "var(--sparse)"}, "value": "var(--dense)"},
        "opacity": {"condition": near | {"value": 1}, "value": 0.55},
        "strokeWidth": {"condition": near | {"value": 2.5}, "value": 1.25},
    }
    name = {"text": {"field": "layer"}, "opacity": {"condition": near | {"value": 1}, "value": 0}}
    return {
        "description": "share of the energy of each layer's S that its largest entries hold, %",
        "height": 300,
        "autosize": AUTOSIZE,
        "layer": [
            {
                "data": {"values": lines},
                "mark": {"type": "line", "interpolate": "monotone"},
                "encoding": {"x": x, "y": y} | line,
            },
            {
                "data": {"values": lines},
                "params": [{"name": "near", "select": hover}],
                "mark": {"type": "point", "filled": True, "size": 40, "opacity": 0},
                "encoding": place,
            },
            {
                "data": {"values": cuts},
                "mark": {"type": "point", "size": 70, "strokeWidth": 2, "color": "var(--sparse)", "filled": False},
                "encoding": place | {"opacity": {"condition": {"param": "near", "value": 1}, "value": 0.3}},
            },
            {
                "data": {"values": cuts},
                "mark": {"type": "text", "align": "right", "dx": -10, "dy": -8, "color": "var(--text)"},
                "encoding": {"x": x, "y": y} | name,
            },
        ],
    }
