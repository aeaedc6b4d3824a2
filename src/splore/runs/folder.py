"""The folder that a run writes into: free, claimed by one run, and written by one process at a time."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splore.files import is_temporary, remove_temporaries, write_whole

RECIPE = "recipe.yaml"
SUMMARY = "summary.json"
"""Written last: where it is, the run is finished."""
LOCK = ".lock"


def check_free(out: Path) -> None:
    """Raises FileExistsError where `out` holds a run or anything else, PermissionError where it can't be made."""
    if (out / RECIPE).exists():
        raise FileExistsError(f"{out} already holds a run: continue it with --resume, or choose another --out")
    if out.is_dir():
        if any(name != LOCK and not is_temporary(name) for name in os.listdir(out)):
            raise FileExistsError(f"{out} is not empty: choose another --out")
    elif out.exists():
        raise FileExistsError(f"{out} is a file: choose another --out")
    place = next((folder for folder in (out, *out.absolute().parents) if folder.exists()), Path("/"))
    if not place.is_dir():
        raise NotADirectoryError(f"{out} can't be made, for {place} is a file: choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{out} can't be written, for {place} is closed to you: choose another --out")


def stored_recipe(out: Path) -> str:
    """The recipe of the run in `out`. Raises FileNotFoundError where there is none."""
    if not (out / RECIPE).exists():
        raise FileNotFoundError(f"there is no run to resume in {out}: leave --resume out to start one")
    return (out / RECIPE).read_text(encoding="utf-8")


@contextmanager
def claimed(out: Path, recipe: str) -> Iterator[None]:
    """Makes the folder of a run that begins, with its recipe, and holds it as `held` does."""
    out.mkdir(parents=True, exist_ok=True)
    with held(out):
        check_free(out)  # another run may have been quicker
        write_recipe(out, recipe)
        yield


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Holds the folder: no other process can, until this one leaves the block or dies, however it dies.

    Raises FileExistsError while another process holds it.
    """
    with (out / LOCK).open("w") as file:
        try:
            # A lock of the process (not of the open file): worker processes don't inherit it, and so don't outlive it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(f"another process is writing the run in {out}: wait for it, or end it") from error
        except OSError:
            pass  # a file system without locks
        remove_temporaries(out)
        yield


def write_recipe(out: Path, recipe: str) -> None:
    """Writes the recipe of a run into its folder, whole or not at all."""
    write_whole(out / RECIPE, "the recipe", recipe.encode())


def write_summary(out: Path, summary: dict) -> None:
    """Writes summary.json into the folder of a run, whole or not at all."""
    write_whole(out / SUMMARY, "the summary", (json.dumps(summary, indent=2) + "\n").encode())
