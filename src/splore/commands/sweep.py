"""splore sweep: a recipe with several seeds, methods and shares kept."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from splore.commands.parser import Misuse, Parser
from splore.commands.recipe_words import add_folder, check_out, check_same, or_recipe, with_recipe
from splore.runs.folder import RECIPE, check_free, claimed, held, write_recipe
from splore.runs.trial import log_of

if TYPE_CHECKING:
    from splore.runs.recipe import Method, Recipe
    from splore.runs.sweep import Outcome, Sweep


def command(words: list[str]) -> int:
    """Parses the words and carries the command out; returns its exit code."""
    parser = Parser(
        "sweep",
        "Runs of one recipe that differ in seed, method and share of the parameters kept, each in a folder of its own; "
        "at the end a table, mean and standard deviation over the seeds. With dense among the methods the others train "
        "no baseline of their own, and all see the images equally often.",
        "splore sweep [RECIPE] [--KEY=VALUE ...] [--seeds K ...] [--methods M ...] [--kept SHARE ...] --out DIR",
    )
    add_folder(parser)
    parser.add_argument(
        "--methods",
        type=or_recipe(str),
        nargs="+",
        metavar="M",
        default=[],
        help="dense, low-rank, sparse, low-rank+sparse; by default that of the recipe",
    )
    parser.add_argument(
        "--kept",
        type=or_recipe(float),
        nargs="+",
        metavar="SHARE",
        default=[],
        help="shares of the dense net's parameters to keep, in place of cut.params",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="stop after so long, each run with a checkpoint, to go on later with --resume",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="run on the workers of the Dask cluster with this scheduler (tcp://host:8786), which must all see --out",
    )
    values, recipe = with_recipe(parser, words)
    check_out(values.out)
    if any(word.startswith("--seed=") for word in values.overrides):
        raise Misuse("a sweep takes its seeds from --seeds: leave --seed out")
    seeds = values.seeds or [recipe.seed]
    more = (values.methods, values.kept, values.jobs, values.minutes, values.scheduler)
    return sweep(recipe, seeds, values.out, values.resume, *more)


def sweep(
    recipe: "Recipe",
    seeds: Sequence[int],
    out: Path,
    resume: bool = False,
    methods: "Sequence[Method]" = (),
    kept: Sequence[float] = (),
    jobs: int | None = None,
    minutes: float = float("inf"),
    scheduler: str | None = None,
) -> int:
    """Runs a recipe with each seed, method and share kept, into folders in `out`; with `resume`, what is unfinished.

    `jobs` of them run side by side: by default as many as there are seeds on a GPU, and one after the other on a CPU.
    With a `scheduler` they run on the workers of a Dask cluster, all of which must see the folder `out`.
    """
    from splore.runs.prepare import fetch
    from splore.runs.recipe_file import recipe_yaml
    from splore.runs.sweep import Sweep, cluster_executor, local_executor, shares, trials_of, usual_jobs
    from splore.runs.sweep_table import report_sweep

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise Misuse("a sweep starts a process for each run: call splore itself, not by way of torchrun or accelerate")
    if resume and (out / "metrics.jsonl").exists():
        raise Misuse(f"{out} holds a single run: leave --seeds out to go on with it")
    if jobs is not None and scheduler is not None:
        raise Misuse("--jobs is of this machine; with --scheduler the threads of the workers say how many run at once")
    text = recipe_yaml(recipe)
    try:
        if jobs is not None and jobs < 1:
            raise ValueError(f"--jobs must be at least 1, found {jobs}")
        trials = trials_of(recipe, (out / RECIPE).absolute(), seeds, methods, kept)
        if resume:
            check_same(out, text)
        else:
            check_free(out)
    except (ValueError, FileNotFoundError) as error:
        raise Misuse(str(error)) from error
    fetch(recipe.data)  # before several processes would do so at once
    if scheduler is None:
        jobs = min(jobs or usual_jobs(recipe, len(seeds)), len(trials))
        trials = [replace(trial, words=(*trial.words, *shares(recipe, jobs))) for trial in trials]
    executors = local_executor(jobs or 1) if scheduler is None else cluster_executor(scheduler)
    with executors as executor, held(out) if resume else claimed(out, text):
        if resume:
            write_recipe(out, text)  # where it is resumed on other hardware
        several = Sweep(trials, out, minutes)
        outcomes = list(several.outcomes(executor))
        begun = any((several.folder(trial) / RECIPE).exists() for trial in trials)
        if not begun and {outcome.code for outcome in outcomes} == {2}:
            for path in [out / RECIPE, *(log_of(several.folder(trial)) for trial in trials)]:
                path.unlink(missing_ok=True)  # so that a corrected command can use the folder
            raise Misuse(outcomes[0].why)
        report_sweep(several, outcomes)
    return _said(several, outcomes, minutes)


def _said(several: "Sweep", outcomes: "Sequence[Outcome]", minutes: float) -> int:
    """Says what a sweep has left undone, and returns the exit code."""
    go_on = f"the same command with --resume continues the runs in {several.out}"
    if several.stopped == "asked":
        print(f"splore: stopped; {go_on}", file=sys.stderr)
        return 130
    failed = [outcome for outcome in outcomes if outcome.why]
    for outcome in failed:
        log = log_of(several.folder(outcome.trial))
        print(f"splore: {outcome.trial.label} failed: {outcome.why} ({log}); {go_on}", file=sys.stderr)
    if several.stopped:
        print(f"splore: stopped after {minutes:g} minute{'s' * (minutes != 1)}; {go_on}", file=sys.stderr)
    return 1 if failed else 0
