"""What the page says of one run, in the words and numbers that the template lays out.

A section that can't be made is the line that says why.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from splore.measure.tables import count, percent, size
from splore.report.chart import METHODS, Chart, milliseconds
from splore.report.curves import curve_charts
from splore.report.energy import energy_chart, energy_curves
from splore.report.fronts import Point, points_of
from splore.report.layer_section import Layer, layer_charts, layers_of, said_of
from splore.report.mistakes import Mistakes, find_mistakes
from splore.report.pictures import LayerPicture, layer_pictures
from splore.report.run_folder import LeftOut, RunFolder
from splore.report.timing import Times, time_run

UNTIMED = "Milliseconds were not measured: splore report --time measures them on the machine at hand."
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Fact:
    """One of the figures at the head of a run; `share` is what is left of the dense net's, in %, or None."""

    title: str
    value: str
    beside: str
    share: float | None


@dataclass(frozen=True)
class Section:
    """A run, as the template shows it: strings stand for sections that are left out."""

    name: str
    lead: str
    method: str
    row: list[str]
    outcome: list[Fact]
    stages: list[list[str]]
    curves: dict[str, Chart]
    times: Times | None
    untimed: str
    layer_titles: list[str]
    layers: list[list[str]] | str
    layer_charts: dict[str, Chart]
    energy: Chart | str
    pictures: list[dict] | str
    mistakes: dict | str
    origin: list[tuple[str, str]]
    recipe: str
    points: list[Point]


def section(run: RunFolder, time: bool, pixels: int) -> Section:
    """Reads, measures and words all that the page says of a run, with pictures of so many pixels."""
    times = _or_why(lambda: time_run(run)) if time else UNTIMED
    measured = None if isinstance(times, str) else times
    curves = _or_why(lambda: energy_curves(run))
    layers = _or_why(lambda: layers_of(run, [] if isinstance(curves, str) else curves, measured))
    pictures = _or_why(lambda: _decomposed_pictures(run, pixels))
    mistakes = _or_why(lambda: find_mistakes(run))
    titles, cells = ([], layers) if isinstance(layers, str) else _layer_rows(layers)
    return Section(
        name=run.name,
        lead=_lead(run, [] if isinstance(layers, str) else layers),
        method=METHODS[run.recipe["method"]],
        row=_row(run, measured),
        outcome=_outcome(run, measured),
        stages=[_stage(row) for row in run.summary["stages"]],
        curves=curve_charts(run),
        times=measured,
        untimed=times if isinstance(times, str) else "",
        layer_titles=titles,
        layers=cells,
        layer_charts={} if isinstance(layers, str) else layer_charts(layers),
        energy=curves if isinstance(curves, str) else energy_chart(curves),
        pictures=pictures if isinstance(pictures, str) else [_pictured(picture) for picture in pictures],
        mistakes=mistakes if isinstance(mistakes, str) else _mistaken(mistakes),
        origin=_origin(run),
        recipe=json.dumps(run.recipe, indent=2, ensure_ascii=False),
        points=points_of(run, measured),
    )


def _or_why(make: Callable[[], _Made]) -> _Made | str:
    try:
        return make()
    except LeftOut as reason:
        return str(reason)


def _lead(run: RunFolder, layers: list[Layer]) -> str:
    """The outcome in a sentence or two."""
    dense, ours = run.summary["dense"], run.summary.get("compressed")
    if ours is None:
        return f"The dense net: {_of_100(dense['accuracy'])} accuracy with {count(dense['params'])} parameters."
    said = f"{_of_100(ours['accuracy'])} accuracy with {percent(ours['params_kept'])} of the dense net's parameters"
    if dense["accuracy"] is not None:
        said += f"; the dense net reaches {_of_100(dense['accuracy'])}"
    fell = run.recipe["method"] == "low-rank+sparse" and layers and not any(layer.cost.rank for layer in layers)
    return said + (". All ranks fell to 0: what is left is sparse alone." if fell else ".")


def _outcome(run: RunFolder, times: Times | None) -> list[Fact]:
    dense, ours = run.summary["dense"], run.summary.get("compressed")
    if ours is None:
        return [Fact("Accuracy", _of_100(dense["accuracy"]), "the dense net", None)] + [
            Fact(title, said(dense[key]), "", None) for title, key, said in _COSTS
        ]
    facts = [_accuracy("Accuracy", ours["accuracy"], dense["accuracy"])]
    for title, key, said in _COSTS:
        share = ours[key] / dense[key]
        facts.append(Fact(title, said(ours[key]), f"{percent(share)} of {said(dense[key])}", min(100 * share, 100)))
    if times is not None and times.dense_ms is not None:
        beside = f"of {milliseconds(times.dense_ms)}: {times.dense_ms / times.ms:.2f} times as fast"
        facts.append(Fact("Time", milliseconds(times.ms), beside, min(100 * times.ms / times.dense_ms, 100)))
    elif times is not None:
        facts.append(Fact("Time", milliseconds(times.ms), "one image", None))
    return facts


_COSTS: tuple[tuple[str, str, Callable[[int], str]], ...] = (
    ("Parameters", "params", count),
    ("On disk", "bytes", size),
    ("Multiply-adds", "macs", count),
)


def _accuracy(title: str, ours: float, dense: float | None) -> Fact:
    if dense is None:
        return Fact(title, _of_100(ours), "no dense baseline", None)
    gap = round(ours - dense, 2)
    said = f"{abs(gap):.2f} points {'above' if gap > 0 else 'below'}" if gap else "the same"
    return Fact(title, _of_100(ours), f"dense {_of_100(dense)}: {said}", None)


def _of_100(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f} %"


def _row(run: RunFolder, times: Times | None) -> list[str]:
    """The run in the table of all runs."""
    dense = run.summary["dense"]
    ours = run.summary.get("compressed") or dense | {"params_kept": 1.0}
    return [
        _of_100(ours["accuracy"]),
        _of_100(dense["accuracy"]),
        count(ours["params"]),
        percent(ours["params_kept"]),
        size(ours["bytes"]),
        count(ours["macs"]),
        "–" if times is None else milliseconds(times.ms),
    ]


def _stage(row: dict) -> list[str]:
    return [
        row["stage"],
        _of_100(row["accuracy"]),
        count(row["params"]),
        percent(row["params_kept"]),
        percent(row["macs_kept"]),
        size(row["bytes"]),
    ]


def _layer_rows(layers: list[Layer]) -> tuple[list[str], list[list[str]]]:
    """The table of layers: its titles and its rows."""
    said = [said_of(layer) for layer in layers]
    titles = [title for title in said[0] if title != "time" or any(row[title] != "–" for row in said)]
    return titles, [[row[title] for title in titles] for row in said]


def _decomposed_pictures(run: RunFolder, pixels: int) -> list[LayerPicture]:
    pictures = layer_pictures(run.net("after fine-tuning"), pixels) if run.recipe["method"] != "dense" else []
    if not pictures:
        raise LeftOut("The net has no decomposed layer.")
    return pictures


def _pictured(picture: LayerPicture) -> dict:
    (m, k), block = picture.shape, picture.block
    entries = "" if picture.nnz is None else f", {picture.nnz:,} of {m * k:,} entries of S"
    caption = f"{picture.layer}: {m:,} × {k:,}, rank {picture.rank}{entries}."
    if block != (1, 1):
        caption += f" Each pixel is the largest entry of {block[0]} × {block[1]}."
    return {
        "layer": picture.layer,
        "shape": picture.shape,
        "parts": picture.parts,
        "caption": caption,
        "limit": f"{picture.limit:.2g}",
    }


def _mistaken(mistakes: Mistakes) -> dict:
    first, second = mistakes.nets[0], mistakes.nets[-1]
    wrong = sum(number for (right, _), number in mistakes.counts.items() if not right)
    said = f"The {first} net is wrong on {wrong:,} of {mistakes.samples:,} test images"
    if mistakes.samples < mistakes.of:
        said += f", spread evenly over the {mistakes.of:,} there are"
    titles = {
        (False, True): f"{first} alone wrong",
        (False, False): "both wrong",
        (True, False): f"{second} alone wrong",
    }
    if first == second:
        titles = {(False, False): "wrong"}
    return {
        "said": said + ".",
        "nets": mistakes.nets,
        "counts": {group: f"{number:,}" for group, number in mistakes.counts.items()},
        "groups": {
            _group_name(title, len(mistakes.cases[group]), mistakes.counts[group]): mistakes.cases[group]
            for group, title in titles.items()
            if mistakes.cases[group]
        },
    }


def _group_name(name: str, shown: int, number: int) -> str:
    return f"{name} ({number:,})" if shown == number else f"{name} (first {shown} of {number:,})"


def _origin(run: RunFolder) -> list[tuple[str, str]]:
    summary = run.summary
    minutes, hardware = summary["seconds"] / 60, summary["hardware"]
    told = [
        ("run", run.name),
        ("net and data", f"{run.recipe['model']} on {run.recipe['data']['name']}, seed {summary['seed']}"),
        ("trained for", f"{minutes:,.1f} minutes" if minutes < 120 else f"{minutes / 60:,.1f} hours"),
        (
            "on",
            f"{hardware['gpu'] or hardware['cpu']}, {hardware['threads']} CPU thread{'s' * (hardware['threads'] > 1)}",
        ),
        ("versions", ", ".join(f"{name} {number}" for name, number in summary["versions"].items() if number)),
    ]
    return told + ([("commit", summary["commit"])] if summary.get("commit") else [])
