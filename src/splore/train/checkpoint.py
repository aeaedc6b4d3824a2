"""Checkpoints that survive a kill: written whole or not at all, the last two kept, never a torn one loaded."""

import io
import random
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from splore.files import remove_temporaries, sha256, write_whole

KEPT = 2


class Checkpoints:
    """The checkpoints of one run, in the folder `directory`, numbered upwards.

    Each is a PyTorch file that is read with `weights_only=True` (no code can hide in it), with its SHA-256 in a file
    beside it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._good: int | None = None

    def save(self, state: dict) -> None:
        """Writes a checkpoint and lets go of all but the last two. Atomic: a kill leaves the ones before it whole."""
        content = io.BytesIO()  # first, for torch.save to a file on a full disk raises what says nothing of disks
        torch.save(state, content)
        numbers = self._numbers()
        number = numbers[-1] + 1 if numbers else 0
        path = self._path(number)
        self.directory.mkdir(parents=True, exist_ok=True)
        remove_temporaries(self.directory)
        try:
            digest = sha256([content.getbuffer()]).encode()
            write_whole(path.with_suffix(".sha256"), "the digest of a checkpoint", digest)
            write_whole(path, "the checkpoint", content.getbuffer())
        except OSError:
            with suppress(OSError):
                path.with_suffix(".sha256").unlink(missing_ok=True)
            raise
        kept = [*self._whole(numbers), number][-KEPT:]
        self._good = number
        self._remove(set(numbers) - set(kept))

    def tidy(self) -> None:
        """Lets go of what a kill within a save has left beside the last two."""
        numbers = self._numbers()
        self._remove(set(numbers) - set(self._whole(numbers)[-KEPT:]))

    def remove(self) -> None:
        """Removes all of them, and their folder where it holds nothing else."""
        self._remove(self._numbers())
        with suppress(OSError):
            self.directory.rmdir()

    def newest(self) -> Path | None:
        """The last checkpoint that was written, whole as long as nothing has altered it since."""
        numbers = self._numbers()
        return self._path(numbers[-1]) if numbers else None

    def load(self) -> dict | None:
        """The newest checkpoint that is whole, on the CPU, or None."""
        for number in reversed(self._numbers()):
            path = self._path(number)
            try:
                digest = path.with_suffix(".sha256").read_text()
                if sha256([path.read_bytes()]) == digest:
                    self._good = number  # later ones are torn: the next save lets go of them
                    return torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, UnicodeDecodeError):
                continue
        return None

    def _whole(self, numbers: list[int]) -> list[int]:
        """Those up to the last one that is known to be whole; all of them where none is known."""
        return [each for each in numbers if self._good is None or each <= self._good]

    def _remove(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._path(number).unlink(missing_ok=True)
            self._path(number).with_suffix(".sha256").unlink(missing_ok=True)

    def _numbers(self) -> list[int]:
        return sorted(int(p.stem) for p in self.directory.glob("*.pt") if p.stem.isdigit())

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:06d}.pt"


def random_state() -> dict:
    """The state of every generator that a network or a dataset may draw from."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "python": repr(random.getstate()),
    }


def set_random_state(state: dict) -> None:
    """Puts the generators back to where `random_state` found them."""
    import ast

    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    random.setstate(ast.literal_eval(state["python"]))
