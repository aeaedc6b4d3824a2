"""Accuracy against cost, over the nets of several runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from splore.measure.tables import count, size
from splore.report.chart import AUTOSIZE, LEGEND, METHODS, Chart, coloured, milliseconds
from splore.report.run_folder import RunFolder
from splore.report.timing import Times

_SHAPES = {"dense": "square", "A·B + S": "circle", "S alone": "triangle-up", "A·B alone": "diamond"}


LOG_FROM = 8
"""The largest cost over the smallest, from which on a logarithmic axis reads better."""


@dataclass(frozen=True)
class Point:
    """A net of a run: its accuracy in %, and each of its costs by its key; a cost that isn't known is missing."""

    run: str
    method: str
    accuracy: float
    costs: dict[str, Any]


_COSTS = {
    "parameters": ("params", "parameters", count),
    "bytes": ("bytes", "bytes on disk", size),
    "multiply-adds": ("macs", "multiply-adds of one image", count),
    "time": ("ms", "milliseconds of one image", milliseconds),
}


def points_of(run: RunFolder, times: Times | None) -> list[Point]:
    """The run's compressed net, and the dense one where it was trained."""
    nets = [(run.recipe["method"], run.summary.get("compressed"), times and times.ms)]
    nets.append(("dense", run.summary["dense"], times and times.dense_ms))
    return [
        Point(
            run.name,
            METHODS[method],
            net["accuracy"],
            {key: net[key] for key in ("params", "bytes", "macs")} | ({} if ms is None else {"ms": ms}),
        )
        for method, net, ms in nets
        if net and net["accuracy"] is not None
    ]


def front_charts(points: Sequence[Point]) -> dict[str, Chart]:
    """A chart for each cost that is known of at least two nets, by its name."""
    known = {name: [point for point in points if key in point.costs] for name, (key, _, _) in _COSTS.items()}
    return {name: _chart(name, some) for name, some in known.items() if len(some) > 1}


def front(points: Sequence[Point], key: str) -> list[Point]:
    """The points that no other one beats, cheapest first: each is more accurate than all that cost no more."""
    best, kept = -math.inf, []
    for point in sorted(points, key=lambda point: (point.costs[key], -point.accuracy)):
        if point.accuracy > best:
            best = point.accuracy
            kept.append(point)
    return kept


def _chart(name: str, points: list[Point]) -> Chart:
    key, title, said = _COSTS[name]

    def rows(some: Sequence[Point]) -> list[dict]:
        return [
            {"run": p.run, "net": p.method, "accuracy": p.accuracy, "cost": p.costs[key], "said": said(p.costs[key])}
            for p in some
        ]

    methods = [method for method in _SHAPES if any(point.method == method for point in points)]
    costs = [point.costs[key] for point in points]
    x: Chart = {"field": "cost", "type": "quantitative", "title": title}
    is_wide = max(costs) > LOG_FROM * min(costs)
    x["scale"] = ({"type": "log"} if is_wide else {"type": "linear", "zero": False}) | {"padding": 24}
    x["scale"]["nice"] = False
    x["axis"] = {"format": "~g" if key == "ms" else "~s", "tickCount": 4, "grid": False, "labelBound": True}
    best = front(points, key)
    beaten = best[-1:] if max(costs) > best[-1].costs[key] else []  # the line goes on over nets that cost more
    line = rows(best) + [row | {"cost": max(costs)} for row in rows(beaten)]
    y: Chart = {"field": "accuracy", "type": "quantitative", "title": None, "scale": {"zero": False, "padding": 16}}
    y["axis"] = {"tickCount": 6}
    shapes = {"domain": methods, "range": [_SHAPES[method] for method in methods]}
    shown = {"name": "shown", "select": {"type": "point", "fields": ["net"]}, "bind": "legend"}
    tooltip = [
        {"field": "run", "type": "nominal"},
        {"field": "net", "type": "nominal"},
        {"field": "accuracy", "type": "quantitative", "format": ".2f", "title": "accuracy, %"},
        {"field": "said", "type": "nominal", "title": name},
    ]
    return {
        "description": f"accuracy on the test images, %, over {title}",
        "height": 320,
        "autosize": AUTOSIZE,
        "layer": [
            {
                "data": {"values": line},
                "mark": {"type": "line", "interpolate": "step-after", "color": "var(--quiet)", "strokeWidth": 1},
                "encoding": {"x": x, "y": y},
            },
            {
                "data": {"values": rows(points)},
                "params": [shown],
                "mark": {"type": "point", "filled": True, "size": 90},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": coloured("net", methods, LEGEND),
                    "shape": {"field": "net", "type": "nominal", "scale": shapes, "legend": LEGEND},
                    "opacity": {"condition": {"param": "shown", "value": 1}, "value": 0.08},
                    "tooltip": tooltip,
                },
            },
        ],
    }
