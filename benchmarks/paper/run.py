"""The runs behind the CIFAR-10 table: every method, kept share and seed of a net, in slices of time.

    python benchmarks/paper/run.py --root data/cifar10 --minutes 60

Each run is a recipe of recipes/ with one method's overrides, in a folder of its own under --out. A run that was cut
short, by the budget of minutes, Ctrl-C or anything else, goes on at the next call; the summary of a finished one is
copied to benchmarks/results/paper/. Whatever stands behind -- goes to every run, as in: -- --train.epochs=4

With --currency ms the shares are of what the dense net takes in the engine, for the batch and the threads of the
recipe's cut (-- --cut.batch=32 --cut.threads=1), timed at the first call and kept in --out: leave the machine to it.
Runs that end in eight bits (-- --quantize.images=256 --design.block=4) have budgets in eight bits, too, of which the
shares are still of the dense net in float32; what is kept of them is the net in eight bits.
"""

import argparse
import functools
import itertools
import json
import sys
from pathlib import Path

import splore
from splore.budget.milliseconds import Milliseconds
from splore.design.prices import Params
from splore.files import write_whole
from splore.runs.branch import branches
from splore.runs.folder import RECIPE, SUMMARY
from splore.runs.recipe import Recipe
from splore.runs.recipe_budget import CURRENCIES
from splore.runs.recipe_file import load_recipe
from splore.runs.sweep import Outcome, Sweep, cluster_executor, local_executor, shares
from splore.runs.trial import Trial, log_of
from splore.train.penalties import L1

HERE = Path(__file__).parent
RECIPES = HERE.parents[1] / "recipes"
RESULTS = HERE.parent / "results" / "paper"

NETS: dict[str, tuple[str, list[float]]] = {
    "vgg19": ("cifar10-vgg19.yaml", [0.0314, 0.02, 0.01]),
    "vgg11": ("cifar10-vgg19.yaml", [0.30, 0.15]),
    "preactresnet56": ("cifar10-preactresnet56.yaml", [0.2978, 0.15, 0.08]),
    "resnet20": ("cifar10-resnet20-cpu.yaml", [0.30, 0.15]),
    "preactresnet20": ("cifar10-resnet20-cpu.yaml", [0.30, 0.15]),
    "digits_cnn": ("digits.yaml", [0.02]),
}
"""The recipe of a net, and the shares of its parameters that are kept where --kept names none."""

IMAGES = {"digits_cnn": (1, 8, 8)}
"""What a net's images measure where they are not those of CIFAR-10."""

KEPT = "--cut.ranks=keep"
PAPER_CUT = ["--cut.score=energy_share", "--cut.steps=1", KEPT]

METHODS = {
    "dense": ["--method=dense", "--quantize.images=0", "--quantize.epochs=0"],
    "low-rank": ["--method=low-rank"],
    "sparse": ["--method=sparse"],
    "paper": ["--train.proximal=false", "--train.nuclear=0", *PAPER_CUT],
    "best": [],
}
"""What sets a method apart: `paper` has the l1 in the loss and one cut by energy, `best` is the recipe as it stands.

None of them has a teacher: each sees the images as often as the dense net, and nothing else.
"""

ABLATIONS = {
    "subgradient": ["--train.proximal=false"],
    "no-l1": ["--train.l1=0"],
    "l1-x2": [],
    "l1-x3": [],
    "l1-x4": [],
    "l1-third": [],
    "l1-unscaled": ["--train.l1_scaling=none"],
    "no-nuclear": ["--train.nuclear=0"],
    "nuclear-tenth": ["--train.nuclear=0.1"],
    "no-frobenius": ["--train.frobenius=0"],
    "ranks-kept": [KEPT],
    "no-nuclear-ranks-kept": ["--train.nuclear=0", KEPT],
    "rank-1": ["--design.rank=1"],
    "rank-8": ["--design.rank=8"],
    "random-start": ["--design.start=random"],
    "spatial": ["--design.scheme=spatial"],
    "one-shot": ["--cut.steps=1"],
    "by-magnitude": ["--cut.score=magnitude"],
    "by-relative": ["--cut.score=relative"],
    "by-energy": ["--cut.score=energy_share"],
    "stale-norm": ["--cut.recalibrate_batches=0"],
    "two-schedules": ["--train.final_lr=0"],
    "finetune-half": [],
    "finetune-most": [],
    "distilled": ["--baseline=true", "--finetune.distill=0.5"],
    "paper-sparse": ["--method=sparse", "--train.proximal=false", *PAPER_CUT],
    "sparse-l1-half": METHODS["sparse"],
    "sparse-l1-x2": METHODS["sparse"],
    "sparse-l1-x4": METHODS["sparse"],
}
"""`best` with one thing changed, to see what matters; `derived` has what depends on the recipe.

`paper-sparse` is no change of `best`, but `paper` without L; those after it are changes of `sparse`.
"""

STRENGTHS = {"third": 1 / 3, "half": 1 / 2, "x2": 2, "x3": 3, "x4": 4}
"""How many times the recipe's l1 an ablation has, by what its name says."""


def derived(net: str, method: str, base: Recipe) -> list[str]:
    """Overrides of a method that are reckoned from the recipe."""
    l1, epochs = base.train.l1, base.train.epochs + base.finetune.epochs
    changed, _, times = method.rpartition("-")
    if changed.endswith("l1") and times in STRENGTHS:
        return [f"--train.l1={l1 * STRENGTHS[times]:.3g}"]
    if method == "l1-unscaled":
        return [f"--train.l1={mean_strength(net, l1):.3g}"]
    if method in ("finetune-half", "finetune-most"):
        tuning = max(base.finetune.epochs // 2, 1) if method == "finetune-half" else round(0.8 * epochs)
        steps = min(base.cut.steps, tuning)
        return [f"--train.epochs={epochs - tuning}", f"--finetune.epochs={tuning}", f"--cut.steps={steps}"]
    return [f"--train.epochs={epochs}"] if method == "dense" else []


@functools.cache
def mean_strength(net: str, l1: float) -> float:
    """The mean over the entries of S of the strength that the scaled l1 has for them."""
    model = splore.build(net, 10)
    splore.decompose(model, splore.Design(rank=1))
    penalty = L1(model, l1)
    entries = [S.numel() for S in penalty.parts]
    return sum(n * strength for n, strength in zip(entries, penalty.strengths, strict=True)) / sum(entries)


@functools.cache
def rank_within(net: str, rank: int, kept: float) -> int:
    """The largest rank up to `rank` with which the net without any S takes at most 35 % of what is kept, or else 1."""
    for r in range(rank, 1, -1):
        model = splore.build(net, 10)
        splore.decompose(model, splore.Design(rank=r))
        budget = Params(0.35 * kept)
        prices = budget.prices(model)
        if prices.of_ranks(model) <= budget.allowed(model):
            return r
    return 1


def overrides(net: str, method: str, kept: float, more: list[str]) -> tuple[list[str], int]:
    """What a method changes in the recipe of a net, and the epochs of a run: the same number for every method."""
    base = load_recipe(RECIPES / NETS[net][0], more)
    words = [*more, f"--model={net}", "--baseline=false", "--finetune.distill=0"]
    changes = [*(METHODS | ABLATIONS)[method], *derived(net, method, base)]
    if isinstance(base.design.rank, int) and KEPT in changes:
        words.append(f"--design.rank={rank_within(net, base.design.rank, kept)}")
    return [*words, *changes], base.train.epochs + base.finetune.epochs


def trials(args: argparse.Namespace, more: list[str]) -> dict[Trial, dict[str, str]]:
    """The runs, each with the names of its summaries, and where in its folder each is: one for every budget.

    They go seed by seed, so that whatever is done first is a whole table.
    """
    found = {}
    for seed, net, method in itertools.product(args.seeds, args.net, args.method):
        kept = [1.0] if method == "dense" else args.kept or NETS[net][1]
        together = args.together and method not in ("dense", "low-rank")  # ranks alone are chosen before training
        for share, *others in [kept] if together else [[share] for share in kept]:
            words, epochs = overrides(net, method, share, more)
            recipe = RECIPES / NETS[net][0]
            base = load_recipe(recipe, more)
            values = "int8-" if method != "dense" and base.quantize.images else ""
            amount = "" if args.currency == "params" or method == "dense" else args.currency
            whole = dense_ms(net, base, args.out) if amount == "ms" else 1.0
            group, *further = (f"{net}-{method}-{values}{amount}{100 * each:g}-{epochs}ep" for each in (share, *others))
            cut = [] if method == "dense" else [f"--cut.{args.currency}={share * whole}"]
            cut += ["--cut.params=null"] if amount else []
            cut += [f"--cut.budgets={[each * whole for each in others]}"] if others else []
            root = [f"--data.root={args.root}"] if args.root else []
            own = (str(recipe), *shares(load_recipe(recipe), args.parallel), *words, *cut, *root, f"--seed={seed}")
            trial = Trial(f"{group}-seed{seed}", group, seed, own)
            places = ["", *branches(load_recipe(recipe, own[1:]))]
            found[trial] = {f"{each}-seed{seed}": at for each, at in zip((group, *further), places, strict=True)}
    return found


def dense_ms(net: str, recipe: Recipe, folder: Path) -> float:
    """Milliseconds of the dense net in the engine; timed once, so that runs that go on have the budgets they had."""
    batch, threads = recipe.cut.batch, recipe.cut.threads
    kept = folder / f"{net}-batch{batch}-threads{threads or 'all'}.json"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        image = IMAGES.get(net, (3, 32, 32))
        timed = Milliseconds(1.0, image, batch, threads).measure(splore.build(net, 10, image[0]))
        write_whole(kept, "the dense net's time", (json.dumps({"dense_ms": timed}) + "\n").encode())
    return float(json.loads(kept.read_text())["dense_ms"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", help="CIFAR-10: torchvision's files, or a folder of images; not needed for digits_cnn"
    )
    parser.add_argument("--net", nargs="+", choices=NETS, default=["vgg19", "preactresnet56"])
    parser.add_argument("--method", nargs="+", choices=METHODS | ABLATIONS, default=list(METHODS))
    parser.add_argument(
        "--kept", nargs="+", type=float, help="shares of the dense net's cost; each net's own by default"
    )
    parser.add_argument("--currency", choices=CURRENCIES, default="params", help="of the shares kept")
    parser.add_argument("--together", action="store_true", help="train once for all shares, then cut to each")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop, with a checkpoint, after so long")
    parser.add_argument("--parallel", type=int, default=1, help="runs side by side on one device")
    parser.add_argument("--scheduler", help="run on the workers of the Dask cluster with this scheduler")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    own, more = sys.argv[1:], []
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    args = parser.parse_args(own)
    if args.currency == "ms" and args.parallel > 1:
        print("runs side by side disturb each other's timings: --parallel 1 gives truer ones", flush=True)
    runs = trials(args, more)
    waiting = [trial for trial in runs if not all((RESULTS / f"{name}.json").exists() for name in runs[trial])]
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{len(waiting)} runs to make", flush=True)
    sweep = Sweep(waiting, args.out, args.minutes)
    failed = False
    with cluster_executor(args.scheduler) if args.scheduler else local_executor(args.parallel) as executor:
        for outcome in sweep.outcomes(executor):
            failed |= not settle(outcome, sweep, runs[outcome.trial])
    return int(failed)


def settle(outcome: Outcome, sweep: Sweep, places: dict[str, str]) -> bool:
    """Keeps the summaries of a finished run; says what became of another, and whether that is no failure."""
    trial, folder = outcome.trial, sweep.folder(outcome.trial)
    if outcome.why:
        print(f"failed: {trial.name}: {outcome.why}; see {log_of(folder)}", flush=True)
    elif sweep.is_finished(trial):
        RESULTS.mkdir(parents=True, exist_ok=True)
        keep(folder, places, RESULTS)
        print("\n".join(f"done: {name}" for name in places), flush=True)
    elif outcome.code is not None:
        print(f"paused: {trial.name}", flush=True)
    return not outcome.why


def keep(run: Path, places: dict[str, str], out: Path) -> None:
    """Writes the summaries of a run's folder to `out`: of the net in eight bits where there is one.

    Milliseconds have those of the dense net in float32 beside them.
    """
    for name, place in places.items():
        folder = run / place
        summary = json.loads((folder / SUMMARY).read_text())
        recipe = load_recipe(folder / RECIPE)
        if recipe.quantize.images:
            summary["compressed"] = {key: summary["stages"][-1][key] for key in summary["compressed"]}
        if recipe.cut.ms is not None:
            summary["dense"]["ms"] = dense_ms(recipe.model, recipe, run.parent)
            summary["compressed"]["ms"] = summary["stages"][-1]["cost"]
        write_whole(out / f"{name}.json", "the summary", (json.dumps(summary, indent=2) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
