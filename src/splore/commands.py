"""What the commands do: one typed function = one command; each returns its exit code."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from splore.runs.folder import RECIPE, SUMMARY, check_free, claimed, held, stored_recipe, write_recipe
from splore.runs.trial import log_of

# Whatever imports PyTorch, recipes too, is imported within the commands: help and mistakes are to be answered at once.
if TYPE_CHECKING:
    from torch import nn

    from splore.runs.recipe import DataRecipe, Method, Recipe
    from splore.runs.sweep import Outcome, Sweep


class Misuse(Exception):
    """The command can't be carried out as it was given: exit code 2."""


def run(recipe: "Recipe", out: Path, resume: bool = False) -> int:
    """Runs a recipe into the folder `out`; with `resume`, continues the run that the folder holds.

    Nothing is written before the data, the model and the budgets have been found to be possible.
    """
    from splore.runs.recipe import check_recipe
    from splore.runs.recipe_file import recipe_yaml

    if resume and any(out.glob("*seed-*/")):
        raise Misuse(f"{out} holds the runs of several seeds: name them with --seeds, or splore sweep, to go on")
    text = recipe_yaml(recipe)
    first = not int(os.environ.get("RANK", "0"))  # of the processes of one job, the one that writes
    try:
        check_recipe(recipe)
        if resume:
            _check_same(out, text)
        elif first:
            check_free(out)
    except (ValueError, FileNotFoundError) as error:
        raise Misuse(str(error)) from error
    if resume and (out / SUMMARY).exists():
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
            Run(prepared, out, resume).execute()
            if first:
                _write_report(out)
    except (Stopped, KeyboardInterrupt):
        go_on = f"the same command with --resume continues the run in {out}"
        print(f"splore: stopped; {go_on if (out / RECIPE).exists() else 'nothing was begun'}", file=sys.stderr)
        return 130
    except Diverged as error:
        last = Checkpoints(out / "checkpoints").newest()
        kept = f"the last good checkpoint, {last}, is kept" if last else "there was no checkpoint yet"
        raise Diverged(f"{error}; {kept}") from error
    return 0


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
            _check_same(out, text)
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


def evaluate(file: str, data: "DataRecipe", model: str | None = None, device: Literal["auto", "cpu"] = "auto") -> int:
    """Classifies the test images with a model file and prints the accuracy."""
    import torch
    from accelerate import Accelerator
    from rich.console import Console

    from splore.measure import accuracy
    from splore.runs.prepare import check_outputs, open_split

    accelerator = Accelerator(cpu=device == "cpu")
    net = _loaded(file, model)[0].to(accelerator.device)
    split = open_split(data, 0, accelerator, torch.channels_last)
    check_outputs(net, split)
    score = accuracy.evaluate(net, split.test)
    top5 = "" if score.top5 is None else f", top-5 {score.top5:.2f} %"
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{file}: accuracy {score.accuracy:.2f} %{top5}, loss {score.loss:.4f}, {score.samples:,} images")
    return 0


def inspect(
    file_or_model: str,
    model: str | None = None,
    classes: int = 1000,
    image: Sequence[int] | None = None,
    as_json: bool = False,
) -> int:
    """Prints the table of layers of a model file, or of a net that is named as in a recipe."""
    from splore.measure.cost import cost
    from splore.measure.tables import layer_table, show
    from splore.vision import build, usual_image

    if image is not None and (len(image) != 3 or min(image) < 1):
        raise Misuse(f"--image is channels, height and width, found {list(image)}")
    if os.path.exists(file_or_model) or file_or_model.endswith(".safetensors"):
        net, source, channels = _loaded(file_or_model, model)
        usual = usual_image(source, channels)
    else:
        usual = usual_image(file_or_model)
        net = build(file_or_model, classes, image[0] if image else usual[0])
    shape = tuple(image) if image else usual
    try:
        found = cost(net, shape)
    except RuntimeError as error:
        raise Misuse(f"the net can't take images of shape {shape}, give theirs as --image: {error}") from error
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        show(layer_table(found))
    return 0


def report(runs: Sequence[str], path: str, time: bool = False, own_code: bool = False) -> int:
    """Writes one page on some finished runs, which opens in any browser, offline."""
    from splore.report import write

    print(f"{write(runs, path, time=time, own_code=own_code)}: the report on {', '.join(runs)}")
    return 0


def _write_report(out: Path) -> None:
    """The page on a run that has just ended. The run is finished without it, too."""
    from splore.report import write

    try:
        print(f"report: {write([out], out / 'report.html', own_code=True)}")  # the code has just been run
    except (ImportError, OSError, ValueError) as error:
        print(f"no report.html: {error}")


def _loaded(file: str, factory: str | None) -> tuple["nn.Module", str, int]:
    """The net of a model file, where it came from, and the channels of its images (0 where the file doesn't say).

    `factory` names what builds a net that is neither the zoo's nor a library's.
    """
    from splore.modelfile.file import load, read_structure
    from splore.vision import build

    origin = read_structure(file).origin or {}
    source = str(origin.get("source", ""))
    if factory is None and ":" in source and not source.startswith(("torchvision:", "timm:")):
        raise Misuse(
            f"{file} holds a net of your own: name the function that builds it, --model={source}, if you trust its code"
        )
    wanted = {key: int(origin[key]) for key in ("num_classes", "in_channels") if key in origin}
    net = None if factory is None else build(factory, wanted.get("num_classes", 1000), wanted.get("in_channels", 3))
    return load(file, net), source, wanted.get("in_channels", 0)


def _check_same(out: Path, recipe: str) -> None:
    """Raises ValueError, naming the keys, where the run in `out` has another recipe."""
    from splore.runs.recipe_file import changes

    differences = changes(stored_recipe(out), recipe)
    if differences:
        raise ValueError(
            f"the run in {out} has another recipe: {'; '.join(differences)}. Resume with the same one, or choose "
            "another --out"
        )
