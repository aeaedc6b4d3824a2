"""The tables of results in docs/results.md, made from the summaries of runs in benchmarks/results.

python benchmarks/table.py > docs/results.md
"""

import json
from pathlib import Path

from splore.measure.tables import StageRow, stage_table

RESULTS = Path(__file__).parent / "results"
FIGURES = ("accuracy", "params", "params_kept", "macs_kept", "bytes")


def section(path: Path) -> str:
    """One run: what was run where, and its stages."""
    run = json.loads(path.read_text())
    recipe, machine, versions = run["recipe"], run["hardware"], run["versions"]
    stages = [StageRow(row["stage"], **{name: row[name] for name in FIGURES}) for row in run["stages"]]
    epochs = recipe["train"]["epochs"] + recipe["finetune"]["epochs"]
    return "\n".join(
        [
            f"## {recipe['model']} on {recipe['data']['name']}",
            "",
            str(stage_table(stages)),
            "",
            f"Method {recipe['method']}; {epochs} epochs for the dense net, {recipe['train']['epochs']} + "
            f"{recipe['finetune']['epochs']} for ours; seed {run['seed']} (n = 1); accuracy at the last epoch.",
            f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads, {_minutes(run['seconds'])}; "
            f"PyTorch {versions['torch']}; commit {run['commit']}; `benchmarks/results/{path.name}`.",
        ]
    )


def _minutes(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} minute{'' if minutes == 1 else 's'}"


def main() -> None:
    print("# Results\n\nMade by `make docs` from the runs' own JSON in `benchmarks/results`. All figures are ours.")
    for path in sorted(RESULTS.glob("*.json")):
        if "stages" in json.loads(path.read_text()):
            print(f"\n{section(path)}")


if __name__ == "__main__":
    main()
