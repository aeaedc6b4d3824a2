"""How the engine's time grows with density, batch and threads, as plots.

    python benchmarks/engine_sweep.py --net vgg19 --out docs

writes engine_<net>.json and engine_<net>.svg: how many times faster than dense in torch, by the density of S (2 to
60 %), and images a second, by the batch (1 to 128), each with 1 and 2 threads.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from statistics import median

import torch
from engine import interleaved_ms
from matplotlib.figure import Figure
from networks import Structure, images, network
from runtimes import eager

from splore.capture.export import Captured, capture
from splore.engine.engine import Engine
from splore.measure.provenance import provenance

DENSITIES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
BATCHES = (1, 2, 4, 8, 15, 16, 17, 32, 64, 128)
THREADS = (1, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", default="vgg19", help="as for engine.py")
    parser.add_argument("--rank", type=float, default=4, help="as for engine.py")
    parser.add_argument("--kept", type=float, default=0.05, help="share of the parameters, where the batch varies")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="where the density varies")
    parser.add_argument("--repeats", type=int, default=20, help="timed turns of each")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="directory of the JSON file and of the plot")
    options = parser.parse_args()
    by_density, by_batch = [], []
    for density in DENSITIES:
        captured = structured(options.net, density, options.rank)
        for batch, threads in product(options.batch, THREADS):
            by_density.append({"density": density} | point(captured, options, batch, threads))
            print(by_density[-1], flush=True)
    captured = structured(options.net, options.kept, options.rank)
    for batch, threads in product(BATCHES, THREADS):
        by_batch.append({"density": options.kept} | point(captured, options, batch, threads))
        print(by_batch[-1], flush=True)
    found = {"net": options.net, "rank": options.rank, "repeats": options.repeats, "by_density": by_density,
             "by_batch": by_batch, **provenance()}  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"engine_{options.net.replace(':', '_')}"
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, stem.with_suffix(".svg"))
    return 0


def structured(net: str, density: float, rank: float) -> Captured:
    """A net whose sparse parts have this density, beside low-rank parts of this rank."""
    return capture(network(net, Structure(density, rank, of_sparse=True))[0], images(net, 1))


def point(captured: Captured, options: argparse.Namespace, batch: int, threads: int) -> dict:
    torch.set_num_threads(threads)
    x = images(options.net, batch)
    engine = Engine(captured.segments, captured.input, captured.output, threads, flow=captured.flow)
    runs = {"engine": engine, "torch": eager(captured.dense, x, threads)}
    times = interleaved_ms(runs, x.numpy(), options.repeats)
    return {"batch": batch, "threads": threads} | {f"{name}_ms": round(median(ms), 4) for name, ms in times.items()}


def draw(found: dict, path: Path) -> None:
    figure = Figure(figsize=(11, 4.2))
    left, right = figure.subplots(1, 2)
    batches = sorted({row["batch"] for row in found["by_density"]})
    for color, (batch, threads) in enumerate(product(batches, THREADS)):
        rows = [row for row in found["by_density"] if (row["batch"], row["threads"]) == (batch, threads)]
        line = [row["torch_ms"] / row["engine_ms"] for row in rows]
        label = f"batch {batch}, {threads} thread{'s' * (threads > 1)}"
        left.plot([100 * row["density"] for row in rows], line, "o-", color=f"C{color}", label=label)
    left.axhline(1, color="grey", linewidth=0.8)
    left.set(xlabel="density of S, %", ylabel="times faster than dense in torch", xscale="log", yscale="log")
    for threads in THREADS:
        rows = [row for row in found["by_batch"] if row["threads"] == threads]
        for name, style in (("engine", "o-"), ("torch", "o:")):
            rate = [1e3 * row["batch"] / row[f"{name}_ms"] for row in rows]
            label = f"{'dense in torch' if name == 'torch' else name}, {threads} thread{'s' * (threads > 1)}"
            right.plot([row["batch"] for row in rows], rate, style, color=f"C{threads - 1}", label=label)
    right.set(xlabel="batch", ylabel="images a second", xscale="log", yscale="log")
    for axes, ticks in ((left, [100 * density for density in DENSITIES]), (right, BATCHES)):
        ticks = [tick for tick in ticks if round(tick) not in (15, 17, 50)]  # too near to another for a label
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.legend(frameon=False)
        axes.grid(alpha=0.2)
    figure.suptitle(f"{found['net']} with rank {found['rank']:g}, {found['hardware']['cpu']}")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
