"""The runs behind the CIFAR-10 table: every method, kept share and seed of a net, in slices of time.

    python benchmarks/paper/run.py --root data/cifar10 --minutes 60

Each run is a recipe of recipes/ with one method's overrides, in a folder of its own under --out. A run that was cut
short, by the budget of minutes, Ctrl-C or anything else, goes on at the next call; the summary of a finished one is
copied to benchmarks/results/paper/. Whatever stands behind -- goes to every run, as in: -- --train.epochs=4
"""

import argparse
import functools
import itertools
import shutil
import sys
from pathlib import Path

import splore
from splore.design.prices import Params
from splore.runs.branch import branches
from splore.runs.folder import SUMMARY
from splore.runs.recipe import Recipe
from splore.runs.recipe_budget import currency_of
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

KEPT = "--cut.ranks=keep"
PAPER_CUT = ["--cut.score=energy_share", "--cut.steps=1", KEPT]

METHODS = {
    "dense": ["--method=dense"],
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
    "l1-x3": [],
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
}
"""`best` with one thing changed, to see what matters; `derived` has what depends on the recipe.

`paper-sparse` is no change of `best`, but `paper` without L.
"""


def derived(net: str, method: str, base: Recipe) -> list[str]:
    """Overrides of a method that are reckoned from the recipe."""
    l1, epochs = base.train.l1, base.train.epochs + base.finetune.epochs
    if method in ("l1-x3", "l1-third"):
        return [f"--train.l1={l1 * (3 if method == 'l1-x3' else 1 / 3):.3g}"]
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


def trials(args: argparse.Namespace, more: list[str]) -> list[Trial]:
    """The runs, seed by seed, so that whatever is done first is a whole table."""
    found = []
    for seed, net, method in itertools.product(args.seeds, args.net, args.method):
        kept = [1.0] if method == "dense" else args.kept or NETS[net][1]
        together = args.together and method not in ("dense", "low-rank")  # ranks alone are chosen before training
        for share, *others in [kept] if together else [[share] for share in kept]:
            words, epochs = overrides(net, method, share, more)
            recipe = RECIPES / NETS[net][0]
            amount = "" if args.currency == "params" else args.currency
            group = f"{net}-{method}-{amount}{100 * share:g}-{epochs}ep"
            cut = [] if method == "dense" else [f"--cut.{args.currency}={share}"]
            cut += ["--cut.params=null"] if cut and amount else []
            cut += [f"--cut.budgets={others}"] if others else []
            root = [f"--data.root={args.root}"] if args.root else []
            own = (str(recipe), *shares(load_recipe(recipe), args.parallel), *words, *cut, *root, f"--seed={seed}")
            found.append(Trial(f"{group}-seed{seed}", group, seed, own))
    return found


def summaries(trial: Trial, folder: Path) -> dict[str, Path]:
    """The summary of a run and of each further budget, by the name that it is kept under."""
    recipe = load_recipe(trial.words[0], trial.words[1:])
    found = {trial.name: folder / SUMMARY}
    for name, branch in branches(recipe).items():
        currency = str(currency_of(branch.cut))
        mine, other = (f"{100 * getattr(cut, currency):g}-" for cut in (recipe.cut, branch.cut))
        before, _, after = trial.name.rpartition(mine)
        found[f"{before}{other}{after}"] = folder / name / SUMMARY
    return found


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
    parser.add_argument("--currency", choices=["params", "bytes", "macs"], default="params", help="of the shares kept")
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
    waiting = [
        trial
        for trial in trials(args, more)
        if not all((RESULTS / f"{name}.json").exists() for name in summaries(trial, args.out))
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{len(waiting)} runs to make", flush=True)
    sweep = Sweep(waiting, args.out, args.minutes)
    failed = False
    with cluster_executor(args.scheduler) if args.scheduler else local_executor(args.parallel) as executor:
        for outcome in sweep.outcomes(executor):
            failed |= not settle(outcome, sweep)
    return int(failed)


def settle(outcome: Outcome, sweep: Sweep) -> bool:
    """Keeps the summary of a finished run; says what became of another, and whether that is no failure."""
    name, folder = outcome.trial.name, sweep.folder(outcome.trial)
    if outcome.why:
        print(f"failed: {name}: {outcome.why}; see {log_of(folder)}", flush=True)
    elif sweep.is_finished(outcome.trial):
        RESULTS.mkdir(parents=True, exist_ok=True)
        for kept_as, summary in summaries(outcome.trial, folder).items():
            shutil.copy(summary, RESULTS / f"{kept_as}.json")
            print(f"done: {kept_as}", flush=True)
    elif outcome.code is not None:
        print(f"paused: {name}", flush=True)
    return not outcome.why


if __name__ == "__main__":
    sys.exit(main())
