"""Several seeds of one recipe: a process for each, side by side on one device, and the mean and spread of them all."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

import torch

from splore.machine import cores_per_process
from splore.measure.report import Column, Report, percent, show, size
from splore.runs.folder import RECIPE, SUMMARY, write_summary
from splore.runs.recipe import Recipe
from splore.runs.stop import on_stop
from splore.vision import open_data

_EPOCH = re.compile(r"\w+ +epoch \d+/\d+ ")
"""How the line begins that a run prints at the end of an epoch."""


def check_seeds(seeds: Sequence[int], jobs: int | None) -> None:
    """Raises ValueError for seeds that are not all different and 0 or more, and for no jobs at all."""
    for seed in seeds:
        if seed < 0:
            raise ValueError(f"--seeds must be at least 0, found {seed}")
        if seeds.count(seed) > 1:
            raise ValueError(f"--seeds must differ, found {seed} {seeds.count(seed)} times")
    if jobs is not None and jobs < 1:
        raise ValueError(f"--jobs must be at least 1, found {jobs}")


class Seeds:
    """The runs of a recipe with several seeds, each in the folder seed-K of `out`; its output is in seed-K.log.

    Attributes:
        failed: the last line of the output of each seed that failed.
        stopped: whether Ctrl-C or SIGTERM has ended the runs.
    """

    def __init__(self, recipe: Recipe, seeds: Sequence[int], out: Path, jobs: int | None) -> None:
        self.recipe, self.seeds, self.out = recipe, seeds, out
        if jobs is None:
            jobs = len(seeds) if recipe.hardware.device == "auto" and torch.accelerator.is_available() else 1
        self.jobs = min(jobs, len(seeds))
        self.failed: dict[int, str] = {}
        self.stopped = False
        self._codes: list[int] = []
        self._running: list[subprocess.Popen] = []

    def fetch(self) -> None:
        """Fetches the data set, where that is wished for, before several processes would do so at once."""
        wish = self.recipe.data
        if wish.download:
            open_data(wish.name, wish.root, wish.batch_size, 0, torch.device("cpu"), workers=0, download=True)

    def run(self) -> None:
        """Starts or goes on with what is not finished, and waits for it. A seed that fails stops no other."""
        with on_stop(self._stop), ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(self._run_one, self.seeds))

    @property
    def refused(self) -> str:
        """What was wrong where every seed was refused before it began; else empty."""
        begun = any((self._folder(seed) / RECIPE).exists() for seed in self.seeds)
        return "" if begun or set(self._codes) != {2} else next(iter(self.failed.values()), "")

    def leave(self) -> None:
        """Removes what stands in `out` while no seed has begun, so that a corrected command can use it."""
        for path in [self.out / RECIPE, *self.out.glob("seed-*.log")]:
            path.unlink(missing_ok=True)

    def report(self) -> int:
        """Prints the table of stages over all finished seeds, writes summary.json, and returns the exit code."""
        finished = {seed: self._folder(seed) / SUMMARY for seed in self.seeds}
        summaries = {seed: json.loads(path.read_text()) for seed, path in finished.items() if path.exists()}
        stages = over_seeds(list(summaries.values()))
        if stages:
            show(seeds_table(stages))
        failed = {str(seed): why for seed, why in self.failed.items()}
        each = {str(seed): summary for seed, summary in summaries.items()}
        write_summary(self.out, {"stages": stages, "seeds": each, "failed": failed})
        go_on = f"the same command with --resume continues the runs in {self.out}"
        if self.stopped:
            print(f"splore: stopped; {go_on}", file=sys.stderr)
            return 130
        for seed, why in self.failed.items():
            log = self._folder(seed).with_suffix(".log")
            print(f"splore: seed {seed} failed: {why} ({log}); {go_on}", file=sys.stderr)
        return 1 if self.failed else 0

    def _folder(self, seed: int) -> Path:
        return self.out / f"seed-{seed}"

    def _command(self, seed: int) -> list[str]:
        folder = self._folder(seed)
        words = [str(self.out / RECIPE), f"--seed={seed}", f"--out={folder}"]
        if (folder / RECIPE).exists():
            words.append("--resume")
        if self.jobs > 1:
            share = max(cores_per_process() // self.jobs, 1)
            if self.recipe.hardware.threads is None:
                words.append(f"--hardware.threads={share}")
            if self.recipe.data.workers is None:
                words.append(f"--data.workers={share}")
        return [sys.executable, "-m", "splore", "run", *words]

    def _run_one(self, seed: int) -> None:
        """Makes the run of one seed, with its output in its log and its epochs on the screen."""
        if self.stopped or (self._folder(seed) / SUMMARY).exists():
            return
        with self._folder(seed).with_suffix(".log").open("a") as log:
            # In a session of its own, Ctrl-C reaches it once, by way of this process.
            process = subprocess.Popen(
                self._command(seed),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._running.append(process)
            if self.stopped:  # while it was being started
                process.send_signal(signal.SIGINT)
            last = ""
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                log.flush()
                last = line.strip() or last
                if _EPOCH.match(line):
                    print(f"seed {seed}  {line}", end="", flush=True)
        code = process.wait()
        self._codes.append(code)
        if code and not self.stopped:
            self.failed[seed] = last.removeprefix("splore: ") or f"it ended with code {code}"

    def _stop(self, number: int, frame: object) -> None:
        """Asks every run to stop with a checkpoint; the second time, to die."""
        self.stopped = True
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)


def over_seeds(summaries: list[dict]) -> list[dict]:
    """Mean and sample standard deviation (None of a single run) of the stages of runs that differ in the seed."""
    stages = []
    for name in [row["stage"] for row in summaries[0]["stages"]] if summaries else []:
        rows = [row for summary in summaries for row in summary["stages"] if row["stage"] == name]
        figures = {}
        for key in ("accuracy", "loss", "params", "params_kept", "macs_kept", "bytes"):
            values = [row[key] for row in rows]
            figures[key] = {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}
        stages.append({"stage": name, "n": len(rows), **figures})
    return stages


def seeds_table(stages: list[dict]) -> Report:
    """The table of `over_seeds`, for people."""
    columns = (
        Column("stage", words=True), Column("accuracy"), Column("params kept", 1), Column("MACs kept", 2),
        Column("bytes", 3),
    )  # fmt: skip
    rows = []
    for stage in stages:
        accuracy = stage["accuracy"]
        spread = "" if accuracy["std"] is None else f" ± {accuracy['std']:.2f}"
        rows.append(
            (
                stage["stage"],
                f"{accuracy['mean']:.2f}{spread} % ({stage['n']})",
                percent(stage["params_kept"]["mean"]),
                percent(stage["macs_kept"]["mean"]),
                size(round(stage["bytes"]["mean"])),
            )
        )
    return Report(columns, tuple(rows))
