"""The tables of results in docs/results.md, made from the summaries of runs in benchmarks/results.

python benchmarks/table.py > docs/results.md
"""

import json
from pathlib import Path

import trained_start

from splore.measure.tables import StageRow, stage_table

RESULTS = Path(__file__).parent / "results"
FIGURES = ("accuracy", "params", "params_kept", "macs_kept", "bytes")


def section(path: Path) -> str:
    """One run: what was run where, and its stages."""
    run = json.loads(path.read_text())
    recipe, machine, versions = run["recipe"], run["hardware"], run["versions"]
    stages = [StageRow(row["stage"], **{name: row[name] for name in FIGURES}) for row in run["stages"]]
    return "\n".join(
        [
            f"## {recipe['model']} on {recipe['data']['name']}{', in eight bits' if _rounded(recipe) else ''}",
            "",
            str(stage_table(stages)),
            "",
            f"Method {recipe['method']}; {_epochs(recipe)}; seed {run['seed']} (n = 1); accuracy at the last epoch.",
            f"{machine['gpu'] or machine['cpu']}, {_count(machine['threads'], 'thread')}, "
            f"{_count(round(run['seconds'] / 60), 'minute')}; "
            f"PyTorch {versions['torch']}; commit {run['commit']}; `benchmarks/results/{path.name}`.",
        ]
    )


EIGHT_BITS = """
## Eight bits

Trained nets on CIFAR-10, the accuracy in % of float32 and of eight bits after calibration by training images, 500 where
no other number stands, on all 10,000 test images, ours by the engine's programs (n = 1); other runtimes quantise the
dense net with their own defaults (`benchmarks/quantize.py`, `benchmarks/results/quantize.json`). Of `half` one half of
the parameters is kept, in blocks of 1 or 4, by calibration without training; `best` and `sparse` are the nets of 23 and
40 epochs [below](#dense-low-rank-sparse-and-both), at the share kept in %, which the other runtimes get folded dense.
Fine-tuning is with fake quantisation, for an epoch from the learning rate named; no twin was trained as long in
float32, so what it gains or loses may be the epoch's."""


FROM_TRAINED = """
## From trained weights, in one call

CIFAR-10, accuracy in % on all 10,000 test images by the share of the parameters that is kept, after batch norm is
recalibrated on augmented training images (n = 1). `public_resnet` has the weights of akamaster's repository;
`resnet20` and `preactresnet20` are our own of 30 epochs. Without epochs nothing is trained; with one, masks are held
(`benchmarks/trained_start.py`, `benchmarks/results/trained_start.json`)."""


def eight_bits(rows: list[dict]) -> str:
    """A line for each net and method: in float32, in eight bits, and the difference."""
    lines = ["| net | file | eight bits by | float32 | eight bits | points |", "| --- | --- | --- | --- | --- | --- |"]
    for row in sorted(rows, key=lambda row: (row["net"], row["file"], row["method"])):
        before, after = row["float32"], row["accuracy"]
        lines.append(
            f"| {row['net']} | {row['file']} | {row['method']} | {before:.2f} | {after:.2f} | {after - before:+.2f} |"
        )
    return "\n".join(lines)


def _epochs(recipe: dict) -> str:
    """How long the stages of a run trained, and what they started from."""
    train, tune, rounded = recipe["train"]["epochs"], recipe["finetune"]["epochs"], recipe.get("quantize", {})
    first = f"{train + tune} epochs for the dense net" if recipe["baseline"] else "from trained dense weights"
    last = f" + {rounded['epochs']} in eight bits" if rounded.get("epochs") else ""
    return f"{first}, {train} + {tune}{last} for ours"


def _rounded(recipe: dict) -> bool:
    return bool(recipe.get("quantize", {}).get("images"))


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def main() -> None:
    print("# Results\n\nMade by `make docs` from the runs' own JSON in `benchmarks/results`. All figures are ours.")
    for path in sorted(RESULTS.glob("*.json")):
        if "stages" in json.loads(path.read_text()):
            print(f"\n{section(path)}")
    print(f"{EIGHT_BITS}\n\n{eight_bits(json.loads((RESULTS / 'quantize.json').read_text()))}")
    print(f"{FROM_TRAINED}\n\n{trained_start.table(RESULTS / 'trained_start.json')}")


if __name__ == "__main__":
    main()
