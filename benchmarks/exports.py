"""Each export of a compressed net beside that of the dense net, in the runtime that it is for: size, error and time.

    python benchmarks/exports.py --json benchmarks/results/exports.json
    python benchmarks/exports.py --table benchmarks/results/exports.json

The nets have random weights of their structure, as in `engine.py`; "low rank" has no S.
"""

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path

import torch
from networks import SIZES, Structure, network
from rows import add_row
from runtimes import quiet
from torch import nn

from splore.deploy.export import FORMATS, Export, export
from splore.deploy.latency import measure
from splore.deploy.runtimes import missing
from splore.design.layers import LowRankSparse, decomposed_layers
from splore.design.select import replace
from splore.measure.cost import cost

NETS = {
    "vgg19": ("vgg19", Structure(0.03, 4)),
    "vgg19, low rank": ("vgg19", Structure(0.25, 0.2)),
    "preactresnet56": ("preactresnet56", Structure(0.25, 0.1)),
    "resnet50": ("resnet50", Structure(0.2, 0.05)),
}
TARGETS = [target for target in FORMATS if target != "dense"]  # it is the dense net, in torch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--threads", type=int, default=2, help="of every runtime; ExecuTorch has its own number")
    parser.add_argument("--seconds", type=float, default=2.0, help="that each of two files is timed")
    parser.add_argument("--json", type=Path, help="file of rows to add to; a row of the same measurement is replaced")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of a file, and end")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return 0
    quiet()
    torch.set_num_threads(options.threads)
    for name in options.nets:
        for target in options.targets:
            if missing(*FORMATS[target].packages):
                print(f"left out: {target}, because {missing(*FORMATS[target].packages)} are not installed")
                continue
            row = compare(name, target, options.threads, options.seconds)
            print(row, flush=True)
            if options.json:
                add_row(options.json, row, ("net", "target", "threads"))
    return 0


def compare(name: str, target: str, threads: int, seconds: float) -> dict:
    """The row of one net and target: one image, the two files by turns."""
    source, structure = NETS[name]
    compressed, _ = network(source, structure)
    if name.endswith("low rank"):
        for layer in decomposed_layers(compressed).values():
            layer.set_parts(layer.A, layer.B, torch.zeros_like(layer.S), torch.zeros_like(layer.mask))
    x = torch.randn(1, 3, SIZES[source], SIZES[source], generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        files = {
            label: export(model, Path(folder) / f"{label}{FORMATS[target].suffix}", target, x, threads)
            for label, model in (("ours", compressed), ("dense", random_dense(compressed)))
        }
        found = measure({label: file.run for label, file in files.items()}, x.numpy(), seconds)
    ours: Export = files["ours"]
    kept = round(cost(compressed, tuple(x.shape[1:])).params_kept, 4)
    return {
        "net": name, "kept": kept, "target": target, "threads": threads, "error": ours.error, "bytes": ours.bytes,
        "dense_bytes": files["dense"].bytes, "ms": round(found["ours"].median_ms, 4),
        "dense_ms": round(found["dense"].median_ms, 4), "n": found["ours"].calls,
    }  # fmt: skip


def random_dense(model: nn.Module) -> nn.Module:
    """The dense net of the same architecture, with no zero in it: what a dense export of it would be."""
    model = copy.deepcopy(model)
    layers = [layer for layer in model.modules() if isinstance(layer, LowRankSparse)]
    others = {layer: layer.to_dense() for layer in layers}
    for layer in others.values():
        with torch.no_grad():
            layer.weight.normal_(0, max(float(layer.weight.std()), 1e-3))
    return replace(model, others).eval()


def table(rows: list[dict]) -> str:
    """The rows in Markdown: a line for each target of each net."""
    lines = [
        "| net | target | file | of the dense one | ms | dense ms | faster | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (list(NETS).index(row["net"]), list(FORMATS).index(row["target"]))):
        lines.append(
            f"| {row['net']} | {row['target']} | {row['bytes'] / 1e6:.2f} MB | {row['bytes'] / row['dense_bytes']:.0%} "
            f"| {row['ms']:.2f} | {row['dense_ms']:.2f} | {row['dense_ms'] / row['ms']:.2f}x | {row['error']:.0e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
