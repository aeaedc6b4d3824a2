"""What the input costs: images read from folders each second, and what a step waits for data held in memory.

    python benchmarks/input.py --folder data/imagenet --cifar data/cifar10 --json benchmarks/results/input.json

Folders: ImageNet's training augmentation, by the number of worker processes. In memory: a training step with batches
as they come, beside one with a fixed batch, turn by turn; figures are medians.
"""

import argparse
import statistics
import time
from itertools import cycle
from pathlib import Path

import torch
import torch.nn.functional as F
from rows import add_row

import splore
from splore.machine import cores_per_process
from splore.vision import open_data


def folder_rows(root: str, batch: int, repeats: int) -> list[dict]:
    """Images a second that the worker processes decode and augment, by their number."""
    rows = []
    for workers in sorted({1, 2, cores_per_process(), cores_per_process() + 1}):
        train = open_data("imagenet", root, batch, seed=0, device=torch.device("cpu"), workers=workers).train
        speeds = []
        for epoch in range(repeats + 1):
            start = time.perf_counter()
            images = sum(len(labels) for _, labels in train.epoch(epoch))
            if epoch:  # the first one starts the workers
                speeds.append(images / (time.perf_counter() - start))
        rows.append({"data": "folder", "workers": workers, "batch": batch, "images": images, "n": repeats,
                     "images_per_second": round(statistics.median(speeds), 1)})  # fmt: skip
        print(f"folder, {workers} workers: {rows[-1]['images_per_second']} images/s", flush=True)
    return rows


def memory_row(root: str, net: str, batch: int, repeats: int) -> dict:
    """The time of a training step with CIFAR-10's batches over that with a fixed batch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = open_data("cifar10", root, batch, seed=0, device=device)
    torch.manual_seed(0)
    model = splore.build(net, 10).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    batches = cycle(data.train.epoch(0))
    fixed = next(batches)
    times: dict[str, list[float]] = {"data": [], "fixed": []}
    for repeat in range(repeats + 3):
        for name in times:
            start = time.perf_counter()
            for _ in range(4):  # so that what is queued on a device counts as it does in training
                x, y = next(batches) if name == "data" else fixed
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    outputs = model(x)
                F.cross_entropy(outputs.float(), y).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat > 2:
                times[name].append((time.perf_counter() - start) / 4)
    ratio = statistics.median(a / b for a, b in zip(times["data"], times["fixed"], strict=True))
    row = {"data": "memory", "net": net, "batch": batch, "n": repeats, "device": device.type,
           "step_ms": round(1e3 * statistics.median(times["data"]), 3), "ratio": round(ratio, 4)}  # fmt: skip
    print(f"memory, {net}: {row['step_ms']} ms a step, {row['ratio']}x the step with a fixed batch", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="large images: {train, val}/<class>/<image>")
    parser.add_argument("--cifar", help="CIFAR-10: torchvision's files, or a folder of images")
    parser.add_argument("--net", nargs="+", default=["resnet20", "vgg19"], help="nets that CIFAR-10's batches train")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--json", type=Path, help="file of rows to add to; a row of the same measurement is replaced")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = folder_rows(args.folder, 32, args.repeats) if args.folder else []
    rows += [memory_row(args.cifar, net, args.batch, args.repeats) for net in args.net] if args.cifar else []
    for row in rows if args.json else []:
        add_row(args.json, row, ("data", "net", "workers", "device", "batch"))


if __name__ == "__main__":
    main()
