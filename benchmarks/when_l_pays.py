"""Where L pays: a trained net cut to equal cost in each currency, with L and without, and no training after the cut.

    python benchmarks/when_l_pays.py dense.safetensors --net resnet20 --root DIR

Every layer starts as W = A·B + S with all of W, also where the file has W in parts. Ranks and entries are then chosen
by their prices in parameters, bytes of the file, multiply-adds, or milliseconds of the engine on this machine, and cut;
"S alone" has no ranks to choose. Batch norm is recalibrated on augmented training images. Nothing is random but what
the timings make so.
"""

import argparse
import copy
import hashlib
import json
import warnings
from itertools import islice
from pathlib import Path

import torch
from rows import add_row
from torch import nn
from trained_start import load

import splore
from splore.design.prices import Limit
from splore.vision import open_data

FULL = 0.5
"""The ranks that may be chosen, as a share of min(m, k)."""


def budgets(kept: float, shape: tuple[int, ...], dense: nn.Module, args: argparse.Namespace) -> dict[str, Limit]:
    """The same share of the dense net's cost in each currency."""
    found: dict[str, Limit] = {
        "params": splore.Params(kept),
        "bytes": splore.Bytes(kept),
        "bytes, float16": splore.Bytes(kept, values="float16"),
        "bytes, int8": splore.Bytes(kept, values="int8"),
        "macs": splore.MACs(kept, shape),
    }
    for batch in args.batches if "ms" in args.currencies else ():
        one = splore.Milliseconds(1.0, shape, batch, args.threads)
        found[f"ms, batch {batch}"] = splore.Milliseconds(kept * one.measure(dense), shape, batch, args.threads)
    return {name: budget for name, budget in found.items() if {name, name.partition(", batch")[0]} & {*args.currencies}}


def measure(args: argparse.Namespace) -> None:
    """Adds a row for each currency, share and method."""
    data = open_data(args.data, args.root, 128, 0, torch.device("cpu"))
    augmented, test = list(islice(data.train.epoch(0), 16)), list(islice(data.test.epoch(0), args.test))
    dense = splore.materialise(load(args.net, args.weights))
    print(f"dense {splore.evaluate(dense, test).accuracy:.2f}", flush=True)
    for kept in args.kept:
        for currency, budget in budgets(kept, data.image_shape, dense, args).items():
            for method, rank in {"L + S": FULL, "S alone": 0}.items():
                model = copy.deepcopy(dense)
                splore.decompose(model, splore.Design(rank=rank))
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    if rank:
                        splore.share_budget(model, budget=budget)
                    splore.prune(model, budget=budget)
                prices = budget.prices(model)
                layers = splore.decomposed_layers(model)
                in_L = sum(prices.direction[name] * layers[name].rank for name in prices.direction)
                splore.recalibrate(model, augmented)
                score = splore.evaluate(model, test)
                row = {
                    "net": args.name or args.net,
                    "weights": hashlib.sha256(args.weights.read_bytes()).hexdigest()[:12],
                    "currency": currency,
                    "kept": kept,
                    "method": method,
                    "accuracy": score.accuracy,
                    "loss": score.loss,
                    "images": score.samples,
                    "allowed": budget.allowed(dense),
                    "cost": budget.measure(model),
                    "share_in_L": in_L / prices.of(model),
                    "ranks": {name: layer.rank for name, layer in layers.items() if layer.rank},
                    "warnings": [str(each.message) for each in said],
                }
                met = f"{row['cost'] / row['allowed']:.3f} of the budget"
                print(
                    f"{currency} {kept:.0%} {method}: {score.accuracy:.2f}, {row['share_in_L']:.1%} in L, {met}",
                    flush=True,
                )
                add_row(args.json, row, ("net", "weights", "currency", "kept", "method", "images"))


def table(path: Path) -> str:
    """Accuracy of L + S less that of S alone, and the share of the cost that lies in L, as a Markdown table."""
    rows = json.loads(path.read_text())
    found = {(row["net"], row["currency"], row["kept"], row["method"]): row for row in rows}
    shares = sorted({row["kept"] for row in rows})
    lines = [
        "| net | currency | " + " | ".join(f"{share:.0%}" for share in shares) + " |",
        "| --- " * (2 + len(shares)) + "|",
    ]
    for net, currency in sorted({(row["net"], row["currency"]) for row in rows}):
        cells = []
        for share in shares:
            pair = [found.get((net, currency, share, method)) for method in ("L + S", "S alone")]
            both = all(pair)
            cells.append(
                f"{pair[0]['accuracy'] - pair[1]['accuracy']:+.2f} ({pair[0]['share_in_L']:.0%})" if both else ""
            )
        lines.append(f"| {net} | {currency} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures the weights that are given, and prints the table of all that was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="?", help="a model file, or a state dict; none for the table alone")
    parser.add_argument("--net", default="resnet20")
    parser.add_argument("--name", help="of the net in the table, where it isn't --net's dense one")
    parser.add_argument("--kept", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4])
    parser.add_argument("--currencies", nargs="+", default=["params", "bytes", "macs", "ms"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="of the engine, for milliseconds")
    parser.add_argument("--threads", type=int, default=2, help="of the engine")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--root", help="where the images are")
    parser.add_argument("--test", type=int, help="batches of test images; all by default")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/when_l_pays.json"))
    args = parser.parse_args()
    if args.weights:
        measure(args)
    print(table(args.json))


if __name__ == "__main__":
    main()
