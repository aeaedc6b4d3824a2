"""splore run: one recipe, from images to a compressed file."""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from splore.commands.parser import Misuse, Parser
from splore.commands.recipe_words import add_folder, check_out, check_same, with_recipe
from splore.commands.sweep import sweep
from splore.runs.folder import RECIPE, SUMMARY, check_free, claimed, held

# Whatever imports PyTorch, recipes too, is imported within the commands: help and mistakes are to be answered at once.
if TYPE_CHECKING:
    from splore.runs.recipe import Recipe


def command(words: list[str]) -> int:
    """Parses the words and carries the command out; returns its exit code."""
    parser = Parser(
        "run",
        "One run of the method, from images to a compressed file. RECIPE is a YAML file; each of its keys can be "
        "overridden here, and those it leaves out have the defaults below.",
        "splore run [RECIPE] [--KEY=VALUE ...] --out DIR [--resume] [--seeds K ...]",
    )
    add_folder(parser)
    parser.add_argument("--print_config", action="store_true", help="print the recipe as it would be run, and end")
    values, recipe = with_recipe(parser, words)
    if values.print_config:
        from splore.runs.recipe_file import recipe_yaml

        print(recipe_yaml(recipe), end="")
        return 0
    check_out(values.out)
    if values.seeds is None:
        if values.jobs is not None:
            raise Misuse("--jobs says how many of the --seeds run side by side: give them too")
        return run(recipe, values.out, values.resume)
    if any(word.startswith("--seed=") for word in values.overrides):
        raise Misuse("--seed and --seeds are both given: leave one out")
    return sweep(recipe, values.seeds, values.out, values.resume, jobs=values.jobs)


def run(recipe: "Recipe", out: Path, resume: bool = False) -> int:
    """Runs a recipe into the folder `out`; with `resume`, continues the run that the folder holds.

    Nothing is written before the data, the model and the budgets have been found to be possible.
    """
    from splore.runs.branch import branches, is_finished
    from splore.runs.recipe_check import check_recipe
    from splore.runs.recipe_file import recipe_yaml

    if resume and any(out.glob("*seed-*/")):
        raise Misuse(f"{out} holds the runs of several seeds: name them with --seeds, or splore sweep, to go on")
    text = recipe_yaml(recipe)
    first = not int(os.environ.get("RANK", "0"))  # of the processes of one job, the one that writes
    try:
        check_recipe(recipe)
        if resume:
            check_same(out, text)
        elif first:
            check_free(out)
    except (ValueError, FileNotFoundError) as error:
        raise Misuse(str(error)) from error
    more = branches(recipe)
    over = (out / SUMMARY).exists()
    if resume and is_finished(out):
        print(f"the run in {out} is finished: nothing is left to do")
        return 0
    from splore.runs.prepare import prepare
    from splore.runs.run import Run
    from splore.train.checkpoint import Checkpoints
    from splore.train.loop import Diverged, Stopped

    claim: AbstractContextManager = nullcontext()
    try:
        prepared = prepare(recipe, out)
        if first:
            claim = held(out) if resume else claimed(out, text)
        with claim:
            if not over:
                Run(prepared, out, resume).execute()
            for name, each in more.items():
                _branch(out, out / name, each, first)
            if first:
                _write_report(out, [out / name for name in more])
    except (Stopped, KeyboardInterrupt):
        go_on = f"the same command with --resume continues the run in {out}"
        print(f"splore: stopped; {go_on if (out / RECIPE).exists() else 'nothing was begun'}", file=sys.stderr)
        return 130
    except Diverged as error:
        last = Checkpoints(out / "checkpoints").newest()
        kept = f"the last good checkpoint, {last}, is kept" if last else "there was no checkpoint yet"
        raise Diverged(f"{error}; {kept}") from error
    return 0


def _branch(out: Path, folder: Path, recipe: "Recipe", first: bool) -> None:
    """Goes on from the trained net of a finished run to another budget, in a folder of its own."""
    from splore.runs.branch import begin
    from splore.runs.prepare import prepare
    from splore.runs.run import Run

    if (folder / SUMMARY).exists():
        return
    prepared = prepare(recipe, folder)
    if first:
        print(f"{folder}: the trained net, cut to another budget")
        begin(out, folder, recipe, prepared.model)
    prepared.accelerator.wait_for_everyone()
    with held(folder) if first else nullcontext():
        Run(prepared, folder, resume=True).execute()


def _write_report(out: Path, more: list[Path]) -> None:
    """The page on a run that has just ended, with its branches. The run is finished without it, too."""
    from splore.report import write

    try:
        print(f"report: {write([out, *more], out / 'report.html', own_code=True)}")  # the code has just been run
    except (ImportError, OSError, ValueError) as error:
        print(f"no report.html: {error}")
