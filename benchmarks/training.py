"""What a training step costs: the dense net, ours, and the naive two-branch form, side by side in one run.

    python benchmarks/training.py --net vgg19 preactresnet56 resnet50 --json benchmarks/results/training.json

Ours is the whole step of the method: W composed, the proximal step, the Frobenius decay, and the masks held. Before
anything is timed, the three nets are checked to give the same outputs. Steps of the three alternate, so that a machine
whose speed drifts does so for all; figures are medians.
"""

import argparse
import copy
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rows import add_row
from torch import Tensor, nn

import splore
from splore.train.passes import Graphed, Passes

NETS = {
    "vgg19": ("vgg19", 10, (3, 32, 32), 128),
    "preactresnet56": ("preactresnet56", 10, (3, 32, 32), 128),
    "resnet50": ("torchvision:resnet50", 1000, (3, 224, 224), 32),
}
VARIANTS = ("dense", "ours", "naive")


class TwoBranches(nn.Module):
    """A·B and S as convolutions, or products, of their own, whose outputs are added."""

    def __init__(self, layer: splore.LowRankSparseConv2d | splore.LowRankSparseLinear) -> None:
        super().__init__()
        self.A, self.B, self.S, self.bias = layer.A, layer.B, layer.S, layer.bias
        self.shape = layer.weight_shape
        self.geometry = [getattr(layer, name, None) for name in ("stride", "padding", "dilation")]

    def forward(self, x: Tensor) -> Tensor:
        if len(self.shape) == 2:
            return F.linear(F.linear(x, self.B), self.A) + F.linear(x, self.S, self.bias)
        n, c, kh, kw = self.shape
        low_rank = F.conv2d(F.conv2d(x, self.B.view(-1, c, kh, kw), None, *self.geometry), self.A[:, :, None, None])
        return low_rank + F.conv2d(x, self.S.view(self.shape), self.bias, *self.geometry)


def build(net: str, variant: str, rank: int) -> nn.Module:
    """One of the three nets; they compute the same function."""
    torch.manual_seed(0)
    source, classes, _, _ = NETS[net]
    model = splore.build(source, classes)
    if variant == "dense":
        return model
    splore.decompose(model, splore.Design(rank=rank))
    if variant == "naive":
        for name, layer in splore.decomposed_layers(model).items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, TwoBranches(layer))
    return model


def stepper(variant: str, model: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype, mode: str):
    """A function that takes one training step of a variant."""
    groups = splore.parameter_groups(model, 5e-4)
    optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9, nesterov=True)
    if variant == "ours":
        splore.attach(model, optimizer, l1=1e-3, frobenius=5e-4)

    AcceleratorState._reset_state()  # steps of several precisions are taken here
    accelerator = Accelerator(cpu=not x.is_cuda, mixed_precision="no" if dtype == torch.float32 else "bf16")
    forward = torch.compile(model) if mode == "compiled" else model
    passes = Passes(forward, lambda outputs, labels, images: F.cross_entropy(outputs, labels), accelerator)
    take = Graphed(passes, len(x)) if mode == "graphs" else passes

    def step() -> None:
        take(x, y)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def check(models: dict[str, nn.Module], x: Tensor) -> float:
    """The largest difference of the outputs from the dense net's, relative; raises when it is more than rounding."""
    with torch.no_grad():
        outputs = {name: copy.deepcopy(model).eval()(x[:4]) for name, model in models.items()}
    error = max((outputs[v] - outputs["dense"]).norm().item() for v in VARIANTS) / outputs["dense"].norm().item()
    if error > 1e-3:
        raise SystemExit(f"the three nets disagree by {error:.1e}: nothing was timed")
    return error


def prepare(net: str, variants: Sequence[str], args: argparse.Namespace) -> tuple[dict[str, nn.Module], Tensor, Tensor]:
    """The nets by variant, and a batch of random images and labels, on the device."""
    _, classes, shape, batch = NETS[net]
    batch = args.batch or batch
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = {name: build(net, name, args.rank).to(device, memory_format=torch.channels_last) for name in variants}
    x = torch.randn(batch, *shape, device=device).contiguous(memory_format=torch.channels_last)
    return models, x, torch.randint(0, classes, (batch,), device=device)


def measure(net: str, dtype: torch.dtype, mode: str, args: argparse.Namespace) -> dict:
    """One row: images per second of the three, and the ratio of ours to dense, step by step."""
    models, x, y = prepare(net, VARIANTS, args)
    error = check(models, x)
    steps = {variant: stepper(variant, models[variant].train(), x, y, dtype, mode) for variant in VARIANTS}
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for repeat in range(args.warmup + args.repeats):
        for variant, step in steps.items():
            if x.is_cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if x.is_cuda:
                torch.cuda.synchronize()
            if repeat >= args.warmup:
                times[variant].append(time.perf_counter() - start)
    speeds = {variant: len(x) / statistics.median(taken) for variant, taken in times.items()}
    ratio = statistics.median(ours / dense for ours, dense in zip(times["ours"], times["dense"], strict=True))
    return {
        "net": net,
        "dtype": str(dtype).removeprefix("torch."),
        "mode": mode,
        **{f"{variant}_ips": round(speed, 1) for variant, speed in speeds.items()},
        "step_ratio": round(ratio, 3),
        "naive_ratio": round(statistics.median(times["naive"]) / statistics.median(times["dense"]), 3),
        "batch": len(x),
        "rank": args.rank,
        "repeats": args.repeats,
        "max_error": error,
    }


def _peak(net: str, variant: str, args: argparse.Namespace, queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(args.threads)
    models, x, y = prepare(net, [variant], args)
    if not x.is_cuda:
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on: decomposing is no part of a step
    step = stepper(variant, models[variant].train(), x, y, torch.float32, "eager")
    for _ in range(2):
        step()
    if x.is_cuda:
        queue.put(torch.cuda.max_memory_allocated())
    else:
        status = Path("/proc/self/status").read_text().splitlines()
        (line,) = [line for line in status if line.startswith("VmHWM")]
        queue.put(1024 * int(line.split()[1]))


def peak_memory(net: str, args: argparse.Namespace) -> dict[str, int]:
    """Peak bytes of each variant, each in a process of its own: the device's on a GPU, else the whole process's."""
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for variant in VARIANTS:
        queue = context.Queue()
        process = context.Process(target=_peak, args=(net, variant, args, queue))
        process.start()
        peaks[variant] = queue.get()
        process.join()
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--mode", nargs="+", choices=["eager", "compiled", "graphs"], default=["eager"])
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--batch", type=int, default=0, help="images per step; 0 takes each net's own")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory, in float32 and eager mode")
    parser.add_argument("--json", type=Path, help="file of rows to add to; a row of the same measurement is replaced")
    args = parser.parse_args()
    if "graphs" in args.mode and not torch.cuda.is_available():
        parser.error("--mode graphs needs a GPU, and PyTorch finds none")
    torch.set_num_threads(args.threads)
    for net in args.net:
        peaks = peak_memory(net, args) if args.memory else None
        for dtype in args.dtype:
            for mode in args.mode:
                row = measure(net, getattr(torch, dtype), mode, args)
                if peaks:
                    row |= {f"{variant}_peak_bytes": peak for variant, peak in peaks.items()}
                    row["memory_ratio"] = round(peaks["ours"] / peaks["dense"], 3)
                if args.json:
                    add_row(args.json, row, ("net", "dtype", "mode", "batch", "rank"))
                memory = f"; peak memory {row['memory_ratio']}x" if peaks else ""
                print(
                    f"{net:<15} {row['dtype']:<9} {mode:<9} img/s: dense {row['dense_ips']}, ours {row['ours_ips']}, "
                    f"naive {row['naive_ips']}; step: ours {row['step_ratio']}x, naive {row['naive_ratio']}x{memory}",
                    flush=True,
                )
                torch.compiler.reset()


if __name__ == "__main__":
    main()
