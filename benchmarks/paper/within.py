"""One net, dense, ours and S alone, side by side on one device, with the epochs that so many minutes allow.

    python benchmarks/paper/within.py --net vgg19 --root data/cifar10 --minutes 12 --out results

Two epochs of each are run first, to learn what one takes; from these and what is left of the minutes the epochs follow,
shared out between the stages as the recipe of the net does. Each summary and model file is in --out as soon as its run
has ended; a run that the minutes cut short leaves its last checkpoint in --runs, and the same command goes on.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from run import NETS, RECIPES, keep, trials

from splore.runs.recipe_file import load_recipe
from splore.runs.sweep import Sweep, local_executor

METHODS = ["dense", "best", "sparse"]
PROBE = 2
"""Epochs of the runs that only measure."""
RESERVE = 0.12
"""The share of the minutes that is kept back for what takes longer than it was measured to."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS, default="vgg19")
    parser.add_argument("--root", required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument(
        "--began", type=float, default=time.time(), help="when the minutes began, in seconds of the epoch"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--kept", nargs="+", type=float, help="shares of the parameters; the paper's by default")
    parser.add_argument("--method", nargs="+", default=METHODS)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more keys of the recipe")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/within"), help="where the runs have their folders")
    args = parser.parse_args()
    args.kept = args.kept or NETS[args.net][1][:1]
    args.net, args.parallel = [args.net], len(args.method) * len(args.seeds)
    args.currency, args.together = "params", True
    keys = [
        "--hardware.compile=false",
        "--hardware.cuda_graphs=true",
        "--hardware.checkpoint_minutes=1",
        *(f"--{word}" for word in args.set),
    ]
    end = args.began + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    plan = args.runs / "epochs.json"
    if not plan.exists():
        start, epoch = probe(args, keys)
        base = load_recipe(RECIPES / NETS[args.net[0]][0], keys)
        tuned = base.finetune.epochs / (base.train.epochs + base.finetune.epochs)
        each = 1 + tuned * (len(args.kept) - 1)  # a net is trained once, and fine-tuned for every share
        epochs = int(((end - time.time()) - RESERVE * 60 * args.minutes - start) / epoch / each)
        if epochs < 3:
            print(f"{args.minutes:g} minutes are too few: a start takes {start:.0f} s, an epoch {epoch:.1f} s")
            return 1
        tuning = max(round(epochs * tuned), 1)
        steps = max(round(tuning * base.cut.steps / base.finetune.epochs), 1)
        found = {"train": epochs - tuning, "finetune": tuning, "steps": steps, "start_s": start, "epoch_s": epoch}
        plan.write_text(json.dumps(found, indent=2) + "\n")
    found = json.loads(plan.read_text())
    print(f"{found['train']} + {found['finetune']} epochs of {found['epoch_s']:.1f} s", flush=True)
    keys += [
        f"--train.epochs={found['train']}",
        f"--finetune.epochs={found['finetune']}",
        f"--cut.steps={found['steps']}",
    ]
    return carry_out(args, keys, args.runs, (end - time.time()) / 60)


def probe(args: argparse.Namespace, keys: list[str]) -> tuple[float, float]:
    """The seconds until the first epoch begins, and those of an epoch, with all runs at once."""
    folder = args.runs / "probe"
    began = time.monotonic()
    short = [f"--train.epochs={PROBE}", "--finetune.epochs=1", "--cut.steps=1", "--evaluate_every=1"]
    if carry_out(args, [*keys, *short], folder, float("inf"), final=False):
        raise SystemExit("the runs that measure failed: see the logs in " + str(folder))
    whole = time.monotonic() - began
    slowest = 0.0
    for metrics in folder.glob("*/metrics.jsonl"):
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
        slowest = max(slowest, images(args.root) / min(speeds[1:] or speeds))
    shutil.rmtree(folder)
    return max(whole - (PROBE + 1) * slowest, 0.0), slowest


def images(root: str) -> int:
    """The training images in a folder of images; those of CIFAR-10 where the files are torchvision's."""
    return sum(1 for path in Path(root).glob("train/*/*")) or 50_000


def carry_out(args: argparse.Namespace, keys: list[str], folder: Path, minutes: float, final: bool = True) -> int:
    """Makes the runs side by side in a folder; where they are `final`, their results go to --out."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = trials(args, keys)
    sweep = Sweep(list(runs), folder, minutes)
    failed = 0
    with local_executor(args.parallel) as executor:
        for outcome in sweep.outcomes(executor):
            made = sweep.folder(outcome.trial)
            print(f"{outcome.trial.name}: {outcome.why or ('done' if sweep.is_finished(outcome.trial) else 'paused')}")
            failed += bool(outcome.why)
            if final and sweep.is_finished(outcome.trial):
                last = "dense" if "-dense-" in outcome.trial.name else "model"
                places = runs[outcome.trial]
                keep(made, places, args.out)
                for name, place in places.items():
                    shutil.copy(made / place / f"{last}.safetensors", args.out / f"{name}.safetensors")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
