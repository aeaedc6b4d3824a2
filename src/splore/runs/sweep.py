"""A sweep: runs of one recipe that differ in seed, method and share kept, on the executor that is at hand."""

import itertools
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from splore.files import write_whole
from splore.machine import usable_cores
from splore.names import nearest
from splore.runs.branch import is_finished
from splore.runs.recipe import Method, Recipe
from splore.runs.recipe_check import check_recipe
from splore.runs.recipe_file import overrides
from splore.runs.stop import on_stop
from splore.runs.trial import Trial, carry_out, log_of

STOP = ".stop"
_EPOCH = re.compile(r"\w+ +epoch \d+/\d+ ")
"""How the line begins that a run prints at the end of an epoch."""


def trials_of(
    recipe: Recipe, file: Path, seeds: Sequence[int], methods: Sequence[Method] = (), kept: Sequence[float] = ()
) -> list[Trial]:
    """Every seed with every method and share kept, seed by seed, so that what is done first is a whole table.

    Where dense is among the methods it trains as long as the others do in all, and they leave their own baseline out
    unless they learn from it; all see the images equally often.

    Raises:
        ValueError: values that no run can have, or that are given twice.
    """
    for name, values in (("--seeds", seeds), ("--methods", methods), ("--kept", kept)):
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{name} must differ, found {value} {values.count(value)} times")
    if any(seed < 0 for seed in seeds):
        raise ValueError(f"--seeds must be at least 0, found {min(seeds)}")
    trials = {}
    for method in methods:
        if method not in get_args(Method):
            raise ValueError(f"--methods: there is no method {method!r}; {nearest(method, get_args(Method))}")
    shares_kept: Sequence[float | None] = kept or [None]
    for seed, method, share in itertools.product(seeds, methods or [recipe.method], shares_kept):
        changed = replace(recipe, seed=seed, method=method)
        if method == "dense":
            share = None if share is None else 1.0
            if methods:
                epochs = recipe.train.epochs + recipe.finetune.epochs
                changed = replace(changed, train=replace(recipe.train, epochs=epochs))
        elif share is not None:
            changed = replace(
                changed, cut=replace(recipe.cut, params=share, bytes=None, macs=None, ms=None, energy=None)
            )
        learns = recipe.finetune.distill and recipe.finetune.teacher is None  # from the baseline
        if "dense" in methods and method != "dense" and not learns:
            changed = replace(changed, baseline=False)
        check_recipe(changed)
        parts = [*([method] if methods else []), *([] if share is None else [f"{100 * share:g}"])]
        group = " ".join([*parts[:-1], f"{parts[-1]} %"] if share is not None else parts)
        name = "-".join([*parts, f"seed-{seed}"])
        trials[name] = Trial(name, group, seed, (str(file), *overrides(recipe, changed)))
    return list(trials.values())


def usual_jobs(recipe: Recipe, seeds: int) -> int:
    """Runs side by side on one device: as many as there are seeds on a GPU, one on a CPU."""
    return seeds if recipe.hardware.device == "auto" and torch.accelerator.is_available() else 1


def shares(recipe: Recipe, jobs: int) -> tuple[str, ...]:
    """The words that share this machine's cores among `jobs` runs side by side, where the recipe leaves them open."""
    if jobs == 1:
        return ()
    cores = max(usable_cores() // jobs, 1)
    threads = (f"--hardware.threads={cores}",) if recipe.hardware.threads is None else ()
    return (*threads, *((f"--data.workers={cores}",) if recipe.data.workers is None else ()))


@contextmanager
def local_executor(jobs: int) -> Iterator[Executor]:
    """Runs `jobs` at a time on this machine: a thread watches each process."""
    with ThreadPoolExecutor(jobs) as executor:
        yield executor


@contextmanager
def cluster_executor(address: str) -> Iterator[Executor]:
    """Runs on the workers of a Dask cluster, as many at a time as they have threads.

    Raises:
        ImportError: Dask is not installed.
        OSError: there is no scheduler at the address.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("--scheduler needs Dask: pip install 'splore[cluster]'") from error
    with Client(address, timeout=20) as client:
        yield client.get_executor(pure=False, retries=0)


@dataclass(frozen=True)
class Outcome:
    """How a run of a sweep has ended.

    Attributes:
        trial: the run.
        code: its exit code; None where it was not begun, for the sweep was to stop.
        why: what went wrong; empty where it is finished, and where it was stopped.
    """

    trial: Trial
    code: int | None
    why: str = ""


class Sweep:
    """Runs that are not finished yet, each in a folder of its own in `out`, with its log beside it.

    Attributes:
        stopped: what has stopped it before all were finished: Ctrl-C or SIGTERM ("asked"), its time ("time"), or "".
    """

    def __init__(self, trials: Sequence[Trial], out: Path, minutes: float = float("inf")) -> None:
        self.trials, self.out, self.minutes = trials, out, minutes
        self.stopped = ""
        self._asked = 0
        self._read: dict[str, int] = {}

    def folder(self, trial: Trial) -> Path:
        """Where the run writes."""
        return self.out / trial.name

    def is_finished(self, trial: Trial) -> bool:
        """Whether the run has come to its end, for each of its budgets."""
        return is_finished(self.folder(trial))

    def outcomes(self, executor: Executor) -> Iterator[Outcome]:
        """Starts, or goes on with, what is not finished; gives each outcome as it comes. A failure stops no other run.

        Ctrl-C, SIGTERM and the end of the minutes stop all runs once, each with a checkpoint; a second Ctrl-C ends
        them at once.
        """
        stop, here = (self.out / STOP).absolute(), Path.cwd()
        stop.unlink(missing_ok=True)
        waiting: dict[Future, Trial] = {}
        for trial in self.trials:
            if self.is_finished(trial):
                yield Outcome(trial, 0)
                continue
            folder = self.folder(trial).absolute()
            log = log_of(folder)
            self._read[trial.name] = log.stat().st_size if log.exists() else 0
            waiting[executor.submit(carry_out, trial.words, folder, stop, here)] = trial
        end = time.monotonic() + 60 * self.minutes
        with on_stop(lambda *_: self._stop("asked")):
            while waiting:
                done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                for trial in waiting.values():
                    self._show_epochs(trial)
                if time.monotonic() > end and not self._asked:
                    self._stop("time")
                for future in done:
                    yield self._outcome(waiting.pop(future), future)
        stop.unlink(missing_ok=True)

    def _stop(self, why: str) -> None:
        self._asked += 1
        self.stopped = self.stopped or why
        write_whole(self.out / STOP, "the request to stop", str(self._asked).encode())

    def _outcome(self, trial: Trial, future: Future) -> Outcome:
        error = future.exception()
        if error is not None:  # of the executor: a worker that is gone, a folder that it can't reach
            return Outcome(trial, 1, " ".join(str(error).split()) or repr(error))
        code = future.result()
        if not code or self.stopped:
            return Outcome(trial, code)
        lines = log_of(self.folder(trial)).read_text(errors="replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return Outcome(trial, code, last.removeprefix("splore: ") or f"it ended with code {code}")

    def _show_epochs(self, trial: Trial) -> None:
        """Prints the lines of epochs that a run has written since they were last looked for."""
        log = log_of(self.folder(trial))
        if not log.exists():
            return
        with log.open("rb") as file:
            file.seek(self._read[trial.name])
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read[trial.name] += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if _EPOCH.match(line):
                print(f"{trial.label}  {line}", flush=True)
