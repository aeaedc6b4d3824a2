"""One run of a sweep: the command line in a process of its own, on whichever machine the executor picks."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT

from splore.runs.folder import RECIPE

PATIENCE = 120.0
"""Seconds that a run has for the end of its step and a checkpoint, once it is asked to stop."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        group: what it has in common with the runs of other seeds; empty where the seed is all that differs.
        seed: its seed.
        words: of `splore run`, without --out and --resume.
    """

    name: str
    group: str
    seed: int
    words: tuple[str, ...]

    @property
    def label(self) -> str:
        """What people see it called."""
        return self.name if self.group else f"seed {self.seed}"


def carry_out(words: tuple[str, ...], folder: Path, stop: Path, here: Path) -> int | None:
    """Makes a run in `folder`, or goes on with it, and returns its exit code; None where it was not begun any more.

    What it prints goes into a log beside the folder. The number in the file `stop` says how often the sweep has been
    asked to stop: a file, for it reaches other machines too. `here` is the working folder.
    """
    if times_asked(stop):
        return None
    resume = ["--resume"] if (folder / RECIPE).exists() else []
    command = [sys.executable, "-m", "splore", "run", *words, f"--out={folder}", *resume]
    with log_of(folder).open("ab") as log:
        # In a session of its own, Ctrl-C reaches it once, by way of the sweep.
        process = subprocess.Popen(
            command, cwd=here, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    asked, end = 0, float("inf")
    while process.poll() is None:
        time.sleep(0.2)
        if times_asked(stop) > asked:
            asked, end = asked + 1, time.monotonic() + PATIENCE
            process.send_signal(SIGINT)
        if time.monotonic() > end:
            process.kill()
    return process.returncode


def log_of(folder: Path) -> Path:
    """The file beside the folder of a run with all that it prints."""
    return folder.with_name(f"{folder.name}.log")


def times_asked(stop: Path) -> int:
    """How often a sweep has been asked to stop."""
    try:
        return int(stop.read_text() or 0)
    except FileNotFoundError:
        return 0
