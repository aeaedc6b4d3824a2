"""The curves of a run: accuracy, loss and parameters kept over the epochs, the stages marked."""

import math
from dataclasses import dataclass, replace

from splore.report.chart import AUTOSIZE, LEGEND, METHODS, Chart, coloured
from splore.report.run_folder import RunFolder

_STAGES = {"dense": "dense", "train": "training", "finetune": "fine-tuning"}


@dataclass(frozen=True)
class _Figure:
    """A figure that is drawn over the epochs, and how its numbers are written."""

    key: str
    title: str
    axis: str
    exact: str
    log: bool


_ACCURACY = _Figure("accuracy", "accuracy on the test images, %", "~f", ".2f", log=False)
_LOSS = _Figure("loss", "cross entropy on the test images, nats", "~g", ".3f", log=True)
_KEPT = _Figure("kept", "parameters that are not zero, as a share of the dense net's", "~%", ".2%", log=True)


def curve_charts(run: RunFolder) -> dict[str, Chart]:
    """A chart for each figure by its name; none where the run tested nothing."""
    ours = METHODS[run.recipe["method"]]
    rows, ends, stages = _epochs(run), _ends(run), _marks(run)
    series = [name for name in dict.fromkeys(("dense", ours)) if any(row["series"] == name for row in rows)]
    if not series:
        return {}
    figures = [_ACCURACY, _LOSS]
    if run.recipe["data"].get("validation"):
        said = "images held back, after a stage on the test images"
        figures = [replace(each, title=each.title.replace("the test images", said)) for each in figures]
    charts = {figure.key: _chart(figure, rows, ends, stages, series) for figure in figures}
    if ours != "dense":
        kept, at = ([row for row in some if row["series"] == ours] for some in (rows, ends))
        charts["kept"] = _chart(_KEPT, kept, at, stages, [ours])
    return charts


def _trained(run: RunFolder) -> int:
    """Epochs of stage b, after which fine-tuning goes on."""
    return sum(line["stage"] == "train" for line in run.epochs)


def _epochs(run: RunFolder) -> list[dict]:
    """A row for each epoch that ended with a test."""
    return [
        {
            "epoch": line["epoch"] + (_trained(run) if line["stage"] == "finetune" else 0),
            "series": "dense" if line["stage"] == "dense" else METHODS[run.recipe["method"]],
            "stage": _STAGES[line["stage"]],
            "accuracy": line["test_accuracy"],
            "loss": line["test_loss"],
            "kept": line["kept"],
        }
        for line in run.epochs
        if "test_accuracy" in line
    ]


def _ends(run: RunFolder) -> list[dict]:
    """A row for the net at the end of each stage. A gradual cut is over after the last of its steps."""
    trained, steps = _trained(run), run.recipe["cut"]["steps"]
    tuned = sum(line["stage"] == "finetune" for line in run.epochs)
    epochs = {
        "as given": 0,
        "as decomposed": 0,
        "dense": sum(line["stage"] == "dense" for line in run.epochs),
        "after training": trained,
        "after the cut": trained + steps - 1,
        "after fine-tuning": trained + tuned,
        "in eight bits": trained + tuned + run.recipe.get("quantize", {}).get("epochs", 0),
    }
    return [
        {
            "epoch": epochs[row["stage"]],
            "series": "dense" if row["stage"] == "dense" else METHODS[run.recipe["method"]],
            "stage": row["stage"],
            "accuracy": row["accuracy"],
            "loss": row["loss"],
            "kept": row["params_kept"],
        }
        for row in run.summary["stages"]
    ]


def _marks(run: RunFolder) -> list[dict]:
    """Where the stages of the compressed net begin."""
    trained = _trained(run)
    return [{"epoch": 0, "text": "training"}, {"epoch": trained, "text": "cut, fine-tuning"}] if trained else []


def _chart(figure: _Figure, rows: list[dict], ends: list[dict], stages: list[dict], series: list[str]) -> Chart:
    rows, ends = _drawn(rows, figure), _drawn(ends, figure)
    x: Chart = {"field": "epoch", "type": "quantitative", "title": "epoch", "scale": {"nice": False}}
    x["axis"] = {"grid": False, "tickCount": 8, "format": "d", "labelFlush": True}
    y: Chart = {
        "field": figure.key,
        "type": "quantitative",
        "title": None,
        "axis": {"format": figure.axis, "tickCount": 5},
    }
    if figure.log:
        y["scale"] = {"type": "log", "nice": False}
        y["axis"]["values"] = [part * 10.0**power for power in range(-4, 4) for part in (1, 2, 5)]
    else:
        y["scale"] = {"zero": False, "nice": True}
    place = {"x": x, "y": y, "color": coloured("series", series, LEGEND if len(series) > 1 else None)}
    faded = {"condition": {"param": "shown", "value": 1}, "value": 0.12}
    tooltip = [
        {"field": "series", "type": "nominal", "title": "net"},
        {"field": "epoch", "type": "quantitative"},
        {"field": "stage", "type": "nominal"},
        {"field": figure.key, "type": "quantitative", "format": figure.exact},
    ]
    shown = {"name": "shown", "select": {"type": "point", "fields": ["series"]}, "bind": "legend"}
    near = {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}
    seen = {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0}
    label = {"type": "text", "align": "left", "baseline": "bottom", "dx": -1, "color": "var(--quiet)"}
    return {
        "description": f"{figure.title}, by epoch",
        "height": 260,
        "autosize": AUTOSIZE,
        "layer": [
            {
                "data": {"values": stages},
                "mark": {"type": "rule", "color": "var(--quiet)", "strokeDash": [2, 3]},
                "encoding": {"x": x},
            },
            {
                "data": {"values": stages},
                "mark": label,
                "encoding": {"x": x, "y": {"value": -5}, "text": {"field": "text"}},
            },
            {
                "data": {"values": rows},
                "params": [shown],
                "mark": {"type": "line", "strokeWidth": 1.75, "strokeJoin": "round"},
                "encoding": place | {"opacity": faded},
            },
            {
                "data": {"values": rows},
                "params": [{"name": "near", "select": near}],
                "mark": {"type": "point", "filled": True, "size": 60},
                "encoding": place | {"opacity": seen, "tooltip": tooltip},
            },
            {
                "data": {"values": ends},
                "mark": {"type": "point", "filled": False, "size": 70, "strokeWidth": 1.75},
                "encoding": place | {"opacity": faded, "tooltip": tooltip},
            },
        ],
    }


def _drawn(rows: list[dict], figure: _Figure) -> list[dict]:
    """What of the rows is drawn: this figure alone, where it is a number that its axis has."""
    least = 0.0 if figure.log else -math.inf
    return [
        {key: row[key] for key in ("epoch", "series", "stage", figure.key)}
        for row in rows
        if least < row[figure.key] < math.inf
    ]
