"""What each layer of a run's net costs and keeps, beside the dense layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from splore.measure.cost import LayerCost, cost
from splore.measure.tables import count, percent, size
from splore.report.chart import AUTOSIZE, LEGEND, Chart, coloured, milliseconds
from splore.report.energy import Curve
from splore.report.run_folder import LeftOut, RunFolder
from splore.report.timing import Times


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer.

    Attributes:
        cost: rank, density, parameters, multiply-adds and bytes, each beside those of the dense layer.
        factors: parameters in A and B.
        energy: share of the trained S's energy that the cut kept, or None where it isn't known.
        ms, dense_ms: of one image in the engine, or None where it wasn't measured.
    """

    cost: LayerCost
    factors: int
    energy: float | None
    ms: float | None
    dense_ms: float | None


def layers_of(run: RunFolder, curves: list[Curve], times: Times | None) -> list[Layer]:
    """The layers of the run's net in its order. Raises LeftOut where the net can't be had."""
    model = run.net("dense" if run.recipe["method"] == "dense" else "after fine-tuning")
    energies = {curve.layer: curve.cut[1] for curve in curves}
    try:
        found = cost(model, run.image_shape).layers
    except ValueError as error:
        raise LeftOut(f"The layers can't be counted: {error}.") from error
    return [
        Layer(
            cost=layer,
            factors=_factors(layer),
            energy=energies.get(layer.name),
            ms=times.layers.get(layer.name) if times else None,
            dense_ms=times.dense_layers.get(layer.name) if times and times.dense_ms is not None else None,
        )
        for layer in found
        if layer.shape is not None
    ]


def _factors(layer: LayerCost) -> int:
    """Parameters in A and B: what is neither in S nor in the dense layer's bias."""
    if layer.rank is None or layer.shape is None:
        return 0
    return layer.params - (layer.nnz or 0) - (layer.dense_params - math.prod(layer.shape))


def layer_charts(layers: Sequence[Layer]) -> dict[str, Chart]:
    """A chart of bars for each figure that is known of the layers, by its name."""
    ranks = [layer.cost.rank for layer in layers]
    figures = {
        "parameters": ("parameters, % of the dense layer's", _parameters(layers)),
        "rank": ("rank of A·B", _rows(layers, "A·B", ranks) if any(ranks) else []),
        "density": ("entries of S that are not zero, %", _rows(layers, "S", [_100(x.cost.density) for x in layers])),
        "energy": ("energy of the trained S that was kept, %", _rows(layers, "S", [_100(x.energy) for x in layers])),
        "multiply-adds": ("multiply-adds, % of the dense layer's", _kept(layers, "macs")),
        "bytes": ("bytes in the model file, % of the dense layer's", _kept(layers, "bytes")),
        "time": ("milliseconds of one image", _times(layers)),
    }  # fmt: skip
    return {name: _chart(title, rows, layers) for name, (title, rows) in figures.items() if rows}


def said_of(layer: Layer) -> dict[str, str]:
    """The figures of a layer, in words, by the title of their column."""
    cost = layer.cost
    return {
        "layer": cost.name or "(the net)",
        "shape": " × ".join(map(str, cost.shape or ())),
        "rank": "dense" if cost.rank is None else str(cost.rank),
        "density of S": percent(cost.density) or "–",
        "energy kept": percent(layer.energy) or "–",
        "parameters": count(cost.params),
        "kept": percent(cost.params_kept),
        "multiply-adds": count(cost.macs),
        "bytes": size(cost.bytes),
        "time": "–" if layer.ms is None else milliseconds(layer.ms),
    }


def _100(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _rows(layers: Sequence[Layer], part: str, values: Sequence[float | None]) -> list[dict]:
    pairs = zip(layers, values, strict=True)
    return [
        {"layer": said_of(layer)["layer"], "part": part, "value": value} for layer, value in pairs if value is not None
    ]


def _kept(layers: Sequence[Layer], figure: str) -> list[dict]:
    shares = [(getattr(layer.cost, figure), getattr(layer.cost, f"dense_{figure}")) for layer in layers]
    return _rows(layers, "compressed", [100 * ours / dense if dense else None for ours, dense in shares])


def _parameters(layers: Sequence[Layer]) -> list[dict]:
    rows = []
    for layer in layers:
        cost = layer.cost
        weight = layer.factors + (cost.nnz or 0)
        parts = {
            "A·B": layer.factors,
            "S": cost.nnz or 0,
            "dense" if cost.rank is None else "bias": cost.params - weight,
        }
        rows += [
            {"layer": said_of(layer)["layer"], "part": part, "value": 100 * number / cost.dense_params}
            for part, number in parts.items()
            if number
        ]
    return rows


def _times(layers: Sequence[Layer]) -> list[dict]:
    ours, dense = ([getattr(layer, name) for layer in layers] for name in ("ms", "dense_ms"))
    return _rows(layers, "compressed", ours) + _rows(layers, "dense", dense)


def _chart(title: str, rows: list[dict], layers: Sequence[Layer]) -> Chart:
    names = [said_of(layer)["layer"] for layer in layers]
    parts = [part for part in ("A·B", "S", "compressed", "dense", "bias") if any(row["part"] == part for row in rows)]
    paired = "compressed" in parts and len(parts) > 1
    columns = [name for name in said_of(layers[0]) if name != "time" or any(layer.ms is not None for layer in layers)]
    y: Chart = {"field": "layer", "type": "nominal", "sort": names, "title": None}
    y["axis"] = {"labelLimit": 140, "grid": False, "minExtent": 60}
    x: Chart = {"field": "value", "type": "quantitative", "title": None, "stack": None if paired else "zero"}
    x["axis"] = {"tickCount": 6, "orient": "top"}
    bars = {
        "y": y,
        "x": x,
        "color": coloured("part", parts, LEGEND | {"offset": 8} if len(parts) > 1 else None),
        "order": {"field": "part", "sort": parts},
        "opacity": {"condition": {"param": "near", "value": 1}, "value": 0.4},
    } | ({"yOffset": {"field": "part", "sort": parts}} if paired else {})
    strips: Chart = {"y": y, "x": {"value": 0}, "x2": {"value": "width"}}
    strips["tooltip"] = [{"field": name, "type": "nominal"} for name in columns]
    hover = {"type": "point", "on": "pointerover", "clear": "pointerout", "fields": ["layer"]}
    return {
        "description": f"{title}, by layer",
        "height": 20 * len(layers),
        "autosize": AUTOSIZE,
        "layer": [
            {"data": {"values": rows}, "mark": {"type": "bar", "cornerRadius": 1}, "encoding": bars},
            {  # what is pointed at: the whole strip of a layer, for a bar may be thin
                "data": {"values": [said_of(layer) for layer in layers]},
                "params": [{"name": "near", "select": hover}],
                "mark": {"type": "bar", "opacity": 0},
                "encoding": strips,
            },
        ],
    }
