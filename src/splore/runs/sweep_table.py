"""What the runs of a sweep have come to: mean and spread over the seeds, for people and for programs."""

import json
from collections.abc import Sequence
from statistics import mean, stdev

from splore.measure.tables import Column, Report, percent, show, size
from splore.runs.folder import SUMMARY, write_summary
from splore.runs.sweep import Outcome, Sweep


def over_seeds(summaries: list[dict]) -> list[dict]:
    """Mean and sample standard deviation (None of a single run) of the stages of runs that differ in the seed."""
    stages = []
    for name in [row["stage"] for row in summaries[0]["stages"]] if summaries else []:
        rows = [row for summary in summaries for row in summary["stages"] if row["stage"] == name]
        figures = {}
        for key in ("accuracy", "loss", "params", "params_kept", "macs_kept", "bytes"):
            values = [row[key] for row in rows]
            figures[key] = {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}
        stages.append({"stage": name, "n": len(rows), **figures})
    return stages


def stages_table(stages: list[dict]) -> Report:
    """The table of `over_seeds`: a row for each stage."""
    return _table("stage", [(stage["stage"], stage) for stage in stages])


def groups_table(groups: dict[str, list[dict]]) -> Report:
    """A row for each method and share kept, with the last of its stages."""
    return _table("runs", [(name, stages[-1]) for name, stages in groups.items() if stages])


def _table(title: str, rows: list[tuple[str, dict]]) -> Report:
    columns = (
        Column(title, words=True), Column("accuracy"), Column("params kept", 1), Column("MACs kept", 2),
        Column("bytes", 3),
    )  # fmt: skip
    cells = []
    for name, stage in rows:
        accuracy = stage["accuracy"]
        spread = "" if accuracy["std"] is None else f" ± {accuracy['std']:.2f}"
        cells.append(
            (
                name,
                f"{accuracy['mean']:.2f}{spread} % ({stage['n']})",
                percent(stage["params_kept"]["mean"]),
                percent(stage["macs_kept"]["mean"]),
                size(round(stage["bytes"]["mean"])),
            )
        )
    return Report(columns, tuple(cells))


def report_sweep(sweep: Sweep, outcomes: Sequence[Outcome]) -> None:
    """Prints the table of a sweep and writes its summary.json.

    Where the runs differ in their seeds alone the table is that of the stages, else it has a row for each group.
    """
    summaries = {
        trial: json.loads((sweep.folder(trial) / SUMMARY).read_text())
        for trial in sweep.trials
        if sweep.is_finished(trial)
    }
    groups: dict[str, list[dict]] = {}
    for trial, summary in summaries.items():
        groups.setdefault(trial.group, []).append(summary)
    stages = {group: over_seeds(runs) for group, runs in groups.items()}
    failed = {outcome.trial: outcome.why for outcome in outcomes if outcome.why}
    if any(trial.group for trial in sweep.trials):
        found: dict = {
            "groups": stages,
            "runs": {trial.name: summary for trial, summary in summaries.items()},
            "failed": {trial.name: why for trial, why in failed.items()},
        }
        table = groups_table(stages)
    else:
        found = {
            "stages": stages.get("", []),
            "seeds": {str(trial.seed): summary for trial, summary in summaries.items()},
            "failed": {str(trial.seed): why for trial, why in failed.items()},
        }
        table = stages_table(found["stages"])
    if summaries:
        show(table)
    write_summary(sweep.out, found)
