"""The table of the comparison, its ablations and its curves, made from the summaries in benchmarks/results/paper/.

    python benchmarks/paper/table.py --json table.json --plots docs

Tables are printed as Markdown. Accuracies are those of the last epoch, mean and standard deviation over the seeds.
"""

import argparse
import json
import re
import statistics
from collections import defaultdict
from pathlib import Path

from run import METHODS
from scipy.stats import ttest_1samp

NAME = r"(.+?)-(.+?)-(?:(int8)-)?(bytes|macs|ms|)([\d.]+)-(\d+)ep-seed\d+"
"""Net, method, values (float32 where none are named), currency (parameters where none is), share kept in %, epochs and
seed in a file's name."""
CURRENCIES = {"params": "parameters", "bytes": "bytes", "macs": "multiply-adds", "ms": "milliseconds"}
RESULTS = Path(__file__).parents[1] / "results" / "paper"


def rows(folder: Path) -> list[dict]:
    """One row per net, method, values, currency, share and number of epochs, over seeds and machines.

    `kept` is the share of the parameters, `cost` that of the float32 dense net's cost in the row's currency.
    """
    groups = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text())
        net, method, values, currency, share, epochs = re.fullmatch(NAME, path.stem).groups()
        groups[net, int(epochs), method, values or "float32", currency or "params", float(share)].append(run)
    dense_means = {
        key[:2]: statistics.mean(run["dense"]["accuracy"] for run in runs)
        for key, runs in groups.items()
        if key[2] == "dense"
    }
    found = []
    for (net, epochs, method, values, currency, wanted), runs in groups.items():
        parts = [run["dense" if method == "dense" else "compressed"] for run in runs]
        accuracies = [part["accuracy"] for part in parts]
        found.append(
            {
                "net": net,
                "method": method,
                "kept": statistics.mean(part.get("params_kept", 1.0) for part in parts),
                "values": values,
                "currency": currency,
                "cost": statistics.mean(
                    part[currency] / run["dense"][currency] for part, run in zip(parts, runs, strict=True)
                ),
                "epochs": epochs,
                "seeds": len(runs),
                "accuracies": {run["seed"]: accuracy for run, accuracy in zip(runs, accuracies, strict=True)},
                "accuracy_mean": statistics.mean(accuracies),
                "accuracy_std": statistics.stdev(accuracies) if len(runs) > 1 else None,
                "dense_mean": dense_means.get((net, epochs)),
                "bytes": round(statistics.mean(part["bytes"] for part in parts)),
                "hardware": "; ".join(sorted({run["hardware"]["gpu"] or run["hardware"]["cpu"] for run in runs})),
                "wanted": wanted,
                "densities": sorted({run["recipe"]["train"].get("density", 1.0) for run in runs}),
            }
        )
    order = ("net", "epochs", "values", "currency")
    return sorted(found, key=lambda row: (*(row[key] for key in order), -row["wanted"], row["method"]))


def differences(found: list[dict]) -> list[dict]:
    """Rows with what each method has over `best`, in points and seed by seed."""
    place = ("net", "epochs", "values", "currency", "wanted")
    best = {tuple(row[key] for key in place): row["accuracies"] for row in found if row["method"] == "best"}
    compared = []
    for row in found:
        beside = best.get(tuple(row[key] for key in place), {})
        over = [accuracy - beside[seed] for seed, accuracy in row["accuracies"].items() if seed in beside]
        if over and row["method"] != "best":
            compared.append(row | {"differences": over})
    return compared


def plot(found: list[dict], folder: Path) -> list[str]:
    """Accuracy against the cost and against bytes; the names of the pictures.

    There is one for each net, number of epochs, values and currency of the budgets; where that is bytes, the cost
    beside them is in parameters. A method has one colour in all of them, and the dense net is in float32 in all.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    names = []
    keys = ("net", "epochs", "values", "currency")
    places = {tuple(row[key] for key in keys) for row in found if row["method"] != "dense"}
    for net, epochs, values, currency in sorted(places):
        paid = ("kept", "params") if currency == "bytes" else ("cost", currency)
        scales = ((paid[0], f"{CURRENCIES[paid[1]]} in % of the dense net's", 1e2), ("bytes", "MB on disk", 1e-6))
        figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
        for axis, (key, label, unit) in zip(axes, scales, strict=True):
            for number, method in enumerate(METHODS):
                points = [
                    row
                    for row in found
                    if (row["net"], row["epochs"], row["method"]) == (net, epochs, method)
                    and (method == "dense" or (row["values"], row["currency"]) == (values, currency))
                ]
                points.sort(key=lambda row: row[key])
                if points:
                    spread = [row["accuracy_std"] or 0 for row in points]
                    means = [row["accuracy_mean"] for row in points]
                    look = {"color": f"C{number}", "marker": "o", "capsize": 3, "label": method}
                    axis.errorbar([unit * row[key] for row in points], means, spread, **look)
            axis.set(xscale="log", xlabel=label)
            axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(ticker.NullFormatter())
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("accuracy in %")
        axes[1].legend(frameon=False)
        said, end = CURRENCIES[currency], "" if currency == "params" else f"_{currency}"
        if values != "float32":
            said, end = f"{said}, {values}", f"{end}_{values}"
        figure.suptitle(f"{net}, {epochs} epochs, equal {said}: mean and spread over the seeds")
        names.append(f"paper_{net}_{epochs}{end}.svg")
        figure.savefig(folder / names[-1])
    return names


def percent(mean: float, spread: float | None) -> str:
    return f"{mean:.2f} %" if spread is None else f"{mean:.2f} ± {spread:.2f} %"


def trained(row: dict) -> str:
    """The method, with `train.density` where there is an S that was trained behind a threshold."""
    behind = [f"{density:g}" for density in row["densities"] if density < 1]
    if not behind or row["method"] in ("dense", "low-rank"):
        return row["method"]
    return f"{row['method']}, train.density {' or '.join(behind)}"


def cost(row: dict) -> str:
    values = "" if row["values"] == "float32" else f", {row['values']}"
    return f"{100 * row['cost']:.2f} % of the {CURRENCIES[row['currency']]}{values}"


def p_value(differences: list[float]) -> str:
    """Of a t-test of the differences, seed by seed, against none; two-sided."""
    return f"{ttest_1samp(differences, 0).pvalue:.3f}" if len(differences) > 2 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--json", help="write the rows here")
    parser.add_argument("--plots", type=Path, help="draw the curves into this folder")
    args = parser.parse_args()
    found = rows(args.results)
    print("## Dense, low rank, sparse and both\n\nEqual epochs and images; last epoch; `benchmarks/paper/`.\n")
    print("| net | method | cost | kept | accuracy | dense | epochs | seeds | on disk | hardware |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in found:
        if row["method"] in METHODS:
            dense = "" if row["dense_mean"] is None else f"{row['dense_mean']:.2f} %"
            print(
                f"| {row['net']} | {trained(row)} | {cost(row)} | {100 * row['kept']:.2f} % "
                f"| {percent(row['accuracy_mean'], row['accuracy_std'])} | {dense} "
                f"| {row['epochs']} | {row['seeds']} | {row['bytes'] / 1e6:.2f} MB | {row['hardware']} |"
            )
    compared = differences(found)
    if compared:
        print(
            "\n## What matters\n\nThe other methods, and `best` with one thing changed, beside `best` seed by seed.\n"
        )
        print("| net | method | cost | accuracy | points over `best`, mean | each | p | epochs |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in compared:
        over = row["differences"]
        print(
            f"| {row['net']} | {trained(row)} | {cost(row)} "
            f"| {percent(row['accuracy_mean'], row['accuracy_std'])} | {statistics.mean(over):+.2f} "
            f"| {', '.join(f'{points:+.2f}' for points in over)} | {p_value(over)} | {row['epochs']} |"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    for name in plot(found, args.plots) if args.plots else []:
        print(f"\n![accuracy by cost, and by bytes]({name})")


if __name__ == "__main__":
    main()
