"""The runs behind the CIFAR-10 table: every method, kept share and seed of a net, in slices of time.

    python benchmarks/paper/run.py --root data/cifar10 --minutes 60

Each run is a recipe of recipes/ with one method's overrides, in a folder of its own under --out. A run that was cut
short, by the budget of minutes or by anything else, goes on at the next call; the summary of a finished one is copied
to benchmarks/results/paper/. Whatever stands behind -- goes to every run, as in: -- --train.epochs=4
"""

import argparse
import itertools
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
RECIPES = HERE.parents[1] / "recipes"
RESULTS = HERE.parent / "results" / "paper"

KEPT = {"vgg19": [0.0314, 0.02, 0.01], "preactresnet56": [0.2978, 0.15, 0.08], "resnet20": [0.30, 0.15]}
NETS = {
    "vgg19": "cifar10-vgg19.yaml",
    "preactresnet56": "cifar10-preactresnet56.yaml",
    "resnet20": "cifar10-resnet20-cpu.yaml",
}
METHODS = {
    "dense": ["--method=dense"],
    "low-rank": ["--method=low-rank"],
    "sparse": ["--method=sparse"],
    "paper": ["--train.proximal=false", "--cut.score=energy_share", "--cut.steps=1"],
    "best": [],
}
"""What sets a method apart: `paper` has the l1 in the loss and one cut by energy, `best` is the recipe as it stands."""


def jobs(args: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """The runs by name, with the arguments of each; the seeds of one setting follow one another."""
    found = []
    for net, method in itertools.product(args.net, args.method):
        epochs = "--train.epochs" if method == "dense" else None
        for kept in [None] if method == "dense" else args.kept or KEPT[net]:
            for seed in args.seeds:
                name = "-".join([net, method, *([f"{100 * kept:g}"] if kept else []), str(seed)])
                words = [f"--seed={seed}", "--baseline=false", f"--data.root={args.root}", *METHODS[method]]
                words += [f"--cut.params={kept}"] if kept else []
                words += [f"{epochs}={total_epochs(net, args.more)}"] if epochs else []
                found.append((name, [str(RECIPES / NETS[net]), *[w for w in args.more if keeps(w, epochs)], *words]))
    return found


def keeps(word: str, replaced: str | None) -> bool:
    """Whether an override for all runs holds for this one too."""
    return replaced is None or not word.startswith(replaced + "=")


def total_epochs(net: str, more: list[str]) -> int:
    """The epochs of the dense net: those of training and fine-tuning together."""
    from splore.recipe import Recipe
    from splore.recipe_file import recipe_parser

    parser = recipe_parser()
    values = parser.instantiate(parser.parse_args(["--config", str(RECIPES / NETS[net]), *more]))
    recipe = Recipe(**{key: values[key] for key in Recipe.__dataclass_fields__})
    return recipe.train.epochs + recipe.finetune.epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="CIFAR-10: torchvision's files, or a folder of images")
    parser.add_argument("--net", nargs="+", choices=NETS, default=["vgg19", "preactresnet56"])
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--kept", nargs="+", type=float, help="shares of the parameters; each net's own by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop, with a checkpoint, after so long")
    parser.add_argument("--parallel", type=int, default=1, help="runs side by side on one device")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    own, more = (sys.argv[1:], [])
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    args = parser.parse_args(own)
    args.more = more
    end = time.monotonic() + 60 * args.minutes
    waiting = [job for job in jobs(args) if not (RESULTS / f"{job[0]}.json").exists()]
    running: dict[str, subprocess.Popen] = {}
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{len(waiting)} runs to make", flush=True)
    while (waiting or running) and time.monotonic() < end:
        while waiting and len(running) < args.parallel:
            name, words = waiting.pop(0)
            folder = args.out / name
            resume = ["--resume"] if (folder / "recipe.yaml").exists() else []
            with open(args.out / f"{name}.log", "a") as log:
                command = [sys.executable, "-m", "splore", "run", *words, "--out", str(folder), *resume]
                running[name] = subprocess.Popen(command, stdout=log, stderr=log)
            print(f"{'goes on' if resume else 'begins'}: {name}", flush=True)
        time.sleep(0.5)
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                finish(name, process.returncode, args.out)
    for process in running.values():
        process.send_signal(signal.SIGINT)
    for name, process in running.items():
        process.wait()
        print(f"paused: {name}", flush=True)


def finish(name: str, code: int, out: Path) -> None:
    """Keeps the summary of a finished run; says where the trouble of another is told."""
    if code:
        print(f"failed: {name} (exit code {code}); see {out / name}.log", flush=True)
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copy(out / name / "summary.json", RESULTS / f"{name}.json")
    print(f"done: {name}", flush=True)


if __name__ == "__main__":
    main()
