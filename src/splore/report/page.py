"""The page: one HTML file that holds all it needs."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

from splore.report.fronts import front_charts
from splore.report.pictures import PIXELS
from splore.report.run_folder import RunFolder
from splore.report.sections import UNTIMED, Section, section

HERE = Path(__file__).parent


def render(runs: Sequence[RunFolder], time: bool) -> str:
    """The page of some runs, as HTML; `time` measures milliseconds.

    Raises ImportError where the libraries that draw it are not installed.
    """
    try:
        import PIL  # noqa: F401
        from jinja2 import Environment, FileSystemLoader
        from markupsafe import Markup

        scripts = bundle()
    except ImportError as error:
        raise ImportError(f'the report is drawn by {error.name}: pip install "splore[report]"') from error
    sections = [section(run, time, PIXELS // len(runs)) for run in runs]
    fronts = front_charts([point for each in sections for point in each.points]) if len(runs) > 1 else {}
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True)
    return environment.get_template("page.html").render(
        title=_title(runs),
        lead=_lead(sections),
        runs=sections,
        fronts=fronts,
        untimed="" if time else UNTIMED,
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        charts=Markup(json.dumps(_charts(sections, fronts), allow_nan=False).replace("<", "\\u003c")),
        bundle=Markup(scripts),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
    )


def _title(runs: Sequence[RunFolder]) -> str:
    """The net and the data of the runs, where they all have the same."""
    nets = list(dict.fromkeys(f"{run.recipe['model']} on {run.recipe['data']['name']}" for run in runs))
    return nets[0] if len(nets) == 1 else f"{len(nets)} nets"


def _lead(sections: Sequence[Section]) -> str:
    if len(sections) == 1:
        return sections[0].lead
    accuracies = sorted((point.accuracy, each.row[0]) for each in sections for point in each.points[:1])
    if not accuracies:
        return f"{len(sections)} runs."
    return f"{len(sections)} runs, with accuracies from {accuracies[0][1]} to {accuracies[-1][1]}."


def _charts(sections: Sequence[Section], fronts: dict[str, dict]) -> dict[str, dict]:
    """All charts by the names that the template gives their places."""
    groups = {"fronts": fronts}
    for number, each in enumerate(sections):
        groups |= {f"r{number}-curves": each.curves, f"r{number}-layers": each.layer_charts}
        if not isinstance(each.energy, str):
            groups[f"r{number}-energy"] = {"": each.energy}
    return {f"{group}-{i}": chart for group, charts in groups.items() for i, chart in enumerate(charts.values())}


@functools.cache
def bundle() -> str:
    """Vega, Vega-Lite and their embedding as one script, whose one global name is `vegaEmbed`."""
    import vl_convert

    # In a scope of its own, and without what would end the script element. Vega-Lite 6.4 loses the words (not the
    # numbers) of a tooltip that belongs to the nearest point.
    scripts = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version="6.1").replace(
        "</script", "<\\/script"
    )
    return "(() => {" + scripts + "})();"
