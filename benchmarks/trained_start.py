"""A trained net compressed in one call: accuracy after recalibration, by what is kept and how it is chosen.

    python benchmarks/trained_start.py --net public_resnet:resnet20 --weights resnet20-12fca82f.th --data folder \
        --root DIR --json benchmarks/results/trained_start.json

    python benchmarks/trained_start.py --table benchmarks/results/trained_start.json

Batch norm is recalibrated on training images that are augmented as in training: on plain ones, even a dense net loses.
With --epochs, each net is fine-tuned with its masks held, at a learning rate that falls to 0.
"""

import argparse
import copy
import hashlib
import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from rows import add_row
from torch import Tensor, nn

import splore
from splore.measure.cost import cost
from splore.vision import Data, build, open_data

Batches = list[tuple[Tensor, Tensor]]


def magnitude(model: nn.Module, kept: float, images: Batches) -> None:
    """S alone, cut by one magnitude for all layers."""
    splore.decompose(model, splore.Design(rank=0))
    splore.prune(model, params=kept, score=splore.magnitude)


def truncated(model: nn.Module, kept: float, images: Batches) -> None:
    """L alone, by a truncated SVD of each layer, ranks by the energy that a parameter gains."""
    splore.decompose(model, splore.Design(rank=splore.Budget(kept), sparse=False))


def uncalibrated(model: nn.Module, kept: float, images: Batches) -> None:
    """L + S by the weights alone."""
    splore.decompose(model, splore.Design(params=kept))


def calibrated_sparse(model: nn.Module, kept: float, images: Batches) -> None:
    """S alone by the data."""
    splore.decompose(model, splore.Design(params=kept, rank=0), images)


def calibrated(model: nn.Module, kept: float, images: Batches) -> None:
    """L + S by the data."""
    splore.decompose(model, splore.Design(params=kept), images)


METHODS: dict[str, Callable[[nn.Module, float, Batches], None]] = {
    "S by magnitude": magnitude,
    "truncated SVD": truncated,
    "L + S, uncalibrated": uncalibrated,
    "S, calibrated": calibrated_sparse,
    "L + S, calibrated": calibrated,
}


def load(net: str, weights: Path) -> nn.Module:
    """The trained net; its weights are those of a model file, or a state dict that torch saved."""
    model = build(net, 10)
    if weights.suffix == ".safetensors":
        return splore.load(weights, model).eval()
    state = torch.load(weights, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model.eval()


def finetune(model: nn.Module, data: Data, epochs: int, lr: float) -> None:
    """Fine-tunes the net with its masks held."""
    optimizer = torch.optim.SGD(splore.parameter_groups(model, 5e-4), lr=lr, momentum=0.9, nesterov=True)
    splore.hold_masks(model, optimizer)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(data.train))
    model.train()
    for epoch in range(epochs):
        for x, y in data.train.epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def measure(args: argparse.Namespace) -> None:
    """Adds a row for the dense net and for each method and share of the parameters that is kept."""
    data = open_data(
        args.data,
        args.root,
        128,
        args.seed,
        torch.device("cpu"),
        memory_format=torch.channels_last,
        workers=args.workers,
    )
    augmented = list(islice(data.train.epoch(0), args.recalibrate))
    images, test = augmented[: args.calibrate], list(islice(data.test.epoch(0), args.test))
    dense = load(args.net, args.weights).to(memory_format=torch.channels_last)
    config = {
        "net": args.net,
        "weights": hashlib.sha256(args.weights.read_bytes()).hexdigest()[:12],
        "epochs": args.epochs,
        "calibration_images": 128 * args.calibrate,
        "recalibration_images": 128 * args.recalibrate,
        "lr": args.lr if args.epochs else None,
        "seed": args.seed,
    }

    def add(method: str, kept: float, model: nn.Module, seconds: float) -> None:
        score, found = splore.evaluate(model, test), cost(model, data.image_shape)
        row = config | {
            "method": method,
            "kept": kept,
            "accuracy": score.accuracy,
            "loss": score.loss,
            "images": score.samples,
            "params_kept": found.params_kept,
            "ranks": sum(layer.rank for layer in splore.decomposed_layers(model).values()),
            "seconds": round(seconds, 1),
        }
        print(method, kept, f"{score.accuracy:.2f}", flush=True)
        add_row(args.json, row, (*config, "method", "kept", "images"))

    add("dense", 1.0, dense, 0.0)
    for kept in args.kept:
        for name in args.methods:
            model, began = copy.deepcopy(dense), time.monotonic()
            METHODS[name](model, kept, images)
            seconds = time.monotonic() - began
            splore.recalibrate(model, augmented)
            if args.epochs:
                finetune(model, data, args.epochs, args.lr)
            add(name, kept, model, seconds)


def table(path: Path) -> str:
    """The accuracies as a Markdown table, a row for each net, method and length of fine-tuning."""
    rows = json.loads(path.read_text())
    shares = sorted({row["kept"] for row in rows if row["method"] != "dense"}, reverse=True)
    lines = [
        "| net | method | epochs | dense | " + " | ".join(f"{share:.0%}" for share in shares) + " |",
        "| --- " * (4 + len(shares)) + "|",
    ]
    for net, epochs in sorted({(row["net"], row["epochs"]) for row in rows}):
        group = [row for row in rows if (row["net"], row["epochs"]) == (net, epochs)]
        dense = next((f"{row['accuracy']:.2f}" for row in group if row["method"] == "dense"), "")
        for name in METHODS:
            found = {row["kept"]: f"{row['accuracy']:.2f}" for row in group if row["method"] == name}
            if found:
                cells = " | ".join(found.get(share, "") for share in shares)
                lines.append(f"| {net} | {name} | {epochs} | {dense} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, or prints the table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--net", default="resnet20")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--root")
    parser.add_argument("--kept", type=float, nargs="+", default=[0.7, 0.5, 0.3])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--calibrate", type=int, default=8, help="batches of 128 images")
    parser.add_argument("--recalibrate", type=int, default=16, help="batches of 128 images")
    parser.add_argument("--test", type=int, help="batches of test images; all by default")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--workers", type=int, help="processes that read images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/trained_start.json"))
    args = parser.parse_args()
    if args.table:
        print(table(args.table))
    else:
        measure(args)


if __name__ == "__main__":
    main()
