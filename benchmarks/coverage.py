"""Nets of many kinds in the engine: whether they run whole, how near to PyTorch, and how long they take beside it.

    python benchmarks/coverage.py [NET ...] [--threads 2] [--json FILE]

Weights are random, and images small where the net allows it. The operators that are left in torch are named below a
net's row.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from splore.capture.export import capture
from splore.engine.engine import Engine
from splore.engine.program import Program

SECONDS = 0.5  # that a net is timed for
SMALL, LARGE = (3, 64, 64), (3, 224, 224)
AT_LEAST = {"inception_v3": (3, 96, 96), "alexnet": (3, 96, 96)} | dict.fromkeys(
    ("maxvit_t", "vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32"), LARGE
)  # sides that these nets want
SEGMENTATION = ("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_resnet50")
TIMM = {
    "deit_tiny_patch16_224": LARGE, "swin_tiny_patch4_window7_224": LARGE, "mixer_s16_224": LARGE,
    "convnextv2_atto": SMALL, "mobilevit_xxs": SMALL, "efficientformer_l1": LARGE, "poolformer_s12": SMALL,
    "levit_128s": LARGE, "xcit_nano_12_p16_224": LARGE, "cait_xxs24_224": LARGE, "resmlp_12_224": LARGE,
    "gmlp_ti16_224": LARGE, "nfnet_f0": SMALL, "coat_lite_tiny": LARGE, "hardcorenas_a": SMALL, "ghostnet_100": SMALL,
}  # fmt: skip


class UNet(nn.Module):
    """Three levels, with transposed convolutions on the way up."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64)
        self.down = nn.ModuleList(self._level(n, m) for n, m in zip((3, *widths), widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, stride=2) for n in reversed(widths[:-1]))
        self.mix = nn.ModuleList(self._level(2 * n, n) for n in reversed(widths[:-1]))
        self.last = nn.Conv2d(widths[0], 2, 1)

    @staticmethod
    def _level(n: int, m: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(n, m, 3, padding=1), nn.GroupNorm(4, m), nn.LeakyReLU(0.1))

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for level in self.down:
            x = level(nn.functional.max_pool2d(x, 2) if kept else x)
            kept.append(x)
        for up, mix, other in zip(self.up, self.mix, reversed(kept[:-1]), strict=True):
            x = mix(torch.cat([up(x), other], 1))
        return self.last(x)


def enlarger() -> nn.Module:
    """A net for super-resolution."""
    body = [
        layer for _ in range(4) for layer in (nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"), nn.PReLU(32))
    ]
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *body, nn.Conv2d(32, 27, 3, padding=1), nn.PixelShuffle(3))


def listener() -> nn.Module:
    """A net for sounds."""
    layers = [
        layer
        for n, m in ((1, 16), (16, 32), (32, 64))
        for layer in (nn.Conv1d(n, m, 9, stride=2, padding=4), nn.BatchNorm1d(m), nn.SiLU(), nn.MaxPool1d(2))
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(7), nn.Flatten(), nn.Linear(64 * 7, 10), nn.Softmax(-1))


def nets() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """A function that makes each net, and the dimensions of an image of it."""
    models, found = torchvision.models, {}
    for name in models.list_models(module=models):
        found[name] = (lambda name=name: models.get_model(name, weights=None), AT_LEAST.get(name, SMALL))
    for name in SEGMENTATION:
        make = getattr(models.segmentation, name)
        found[name] = (lambda make=make: make(weights=None, weights_backbone=None), SMALL)
    for name, side in TIMM.items():
        found[f"timm {name}"] = (lambda name=name: timm.create_model(name), side)
    return found | {"unet": (UNet, SMALL), "enlarger": (enlarger, (3, 48, 40)), "listener": (listener, (1, 4000))}


def row(make: Callable[[], nn.Module], image: tuple[int, ...], threads: int) -> dict:
    """What came of one net."""
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(1, *image)
    captured = capture(model, x)
    engine = Engine(captured.segments, captured.input, captured.output, threads, captured.flow)
    engine.plan(1)
    with torch.inference_mode():
        wanted = [leaf for leaf in tree_leaves(model(x)) if isinstance(leaf, Tensor)]
        got = [leaf for leaf in tree_leaves(engine(x)) if isinstance(leaf, Tensor)]
        errors = [float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in zip(got, wanted, strict=True)]
        ours, theirs = milliseconds(lambda: engine(x)), milliseconds(lambda: model(x))
    left = {name: why for s in captured.segments if not isinstance(s, Program) for name, why in s.reasons.items()}
    programs = [segment for segment in captured.segments if isinstance(segment, Program)]
    return {
        "whole": len(programs) == len(captured.segments) == 1,
        "programs": len(programs),
        "multiply_adds": sum(program.multiply_adds for program in programs),
        "error": max(errors),
        "ms": ours,
        "eager_ms": theirs,
        "in_torch": left,
    }


def milliseconds(run: Callable[[], object]) -> float:
    """The median time of a call."""
    run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < SECONDS:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * sorted(times)[len(times) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nets", nargs="*", help="which ones; all of them if none is given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where the rows go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = {}
    print(f"{'net':40} {'engine':>12} {'error':>8} {'ms':>8} {'eager':>8} {'faster':>7}")
    for name, (make, image) in nets().items():
        if options.nets and name not in options.nets:
            continue
        try:
            found = rows[name] = row(make, image, options.threads)
        except (ValueError, RuntimeError) as error:
            rows[name] = {"failed": str(error)[:300]}
            print(f"{name:40} failed: {str(error)[:100]!r}", flush=True)
            continue
        whole = "whole" if found["whole"] else f"{found['programs']} programs"
        times = (found["ms"], found["eager_ms"], found["eager_ms"] / found["ms"])
        print(
            f"{name:40} {whole:>12} {found['error']:8.1e} {times[0]:8.2f} {times[1]:8.2f} {times[2]:6.2f}x", flush=True
        )
        for operator, why in found["in_torch"].items():
            print(f"    {operator}: {why}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
