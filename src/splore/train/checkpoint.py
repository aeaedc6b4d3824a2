"""Checkpoints that survive a kill: written whole or not at all, the last two kept, never a torn one loaded."""

import hashlib
import os
import random
from pathlib import Path

import numpy as np
import torch

KEPT = 2


class Checkpoints:
    """The checkpoints of one run, in the folder `directory`, numbered upwards.

    Each is a PyTorch file that is read with `weights_only=True` (no code can hide in it), with its SHA-256 in a file
    beside it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, state: dict) -> None:
        """Writes a checkpoint and lets go of all but the last two. Atomic: a kill leaves the ones before it whole."""
        self.directory.mkdir(parents=True, exist_ok=True)
        numbers = self._numbers()
        path = self._path(numbers[-1] + 1 if numbers else 0)
        temporary = path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
            path.with_suffix(".sha256").write_text(digest)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OSError(f"the checkpoint {path} could not be written ({error}); earlier ones are whole") from error
        for number in numbers[: len(numbers) + 1 - KEPT]:
            self._path(number).unlink(missing_ok=True)
            self._path(number).with_suffix(".sha256").unlink(missing_ok=True)

    def load(self) -> dict | None:
        """The newest checkpoint that is whole, on the CPU, or None."""
        for number in reversed(self._numbers()):
            path = self._path(number)
            try:
                digest = path.with_suffix(".sha256").read_text()
                if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                    return torch.load(path, map_location="cpu", weights_only=True)
            except OSError:
                continue
        return None

    def _numbers(self) -> list[int]:
        return sorted(int(p.stem) for p in self.directory.glob("*.pt") if p.stem.isdigit())

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:06d}.pt"


def random_state() -> dict:
    """The state of every generator that a network or a dataset may draw from."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, keys.tolist(), *rest],
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
