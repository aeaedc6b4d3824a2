"""What a finished run has left in its folder, as the report reads it."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from splore.modelfile.file import ModelFileError, load, read_structure
from splore.runs.folder import SUMMARY
from splore.runs.prepare import images_of
from splore.runs.record import FILES
from splore.vision import Data, build, open_data, usual_image

METRICS = "metrics.jsonl"


class LeftOut(Exception):
    """A section can't be made; the message is the line that stands in its place: why, and what to do."""


@dataclass(frozen=True)
class RunFolder:
    """A finished run.

    Attributes:
        path: its folder.
        name: how the report calls it.
        summary: what summary.json holds.
        epochs: the lines of metrics.jsonl that end an epoch, in order.
        own_code: whether a net and a data set that the recipe names as package.module:factory may be imported.
    """

    path: Path
    name: str
    summary: dict
    epochs: tuple[dict, ...]
    own_code: bool = False

    @property
    def recipe(self) -> dict:
        """The recipe, as nested dicts."""
        return self.summary["recipe"]

    @cached_property
    def data(self) -> Data:
        """The images. Raises LeftOut where they are not at hand."""
        config = self.recipe["data"]
        self._check_own(config["name"], "The data set")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        recipe, normalisation = self.recipe, config.get("normalisation", "data")
        started = bool(recipe.get("pretrained") or recipe.get("weights"))
        try:
            return open_data(
                config["name"],
                config["root"],
                config["batch_size"],
                0,
                device,
                workers=config.get("workers"),
                size=config.get("size"),
                trained=images_of(str(recipe["model"]), started, normalisation),
            )
        except (ValueError, OSError, ImportError, RuntimeError) as error:  # the last: a full memory
            raise LeftOut(f"The images are not at hand: {error}.") from error

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the data; the usual one of the net where the data is not at hand."""
        try:
            return self.data.image_shape
        except LeftOut:
            return usual_image(str(self.recipe["model"]))

    def has(self, stage: str) -> bool:
        """Whether the net at the end of a stage is there."""
        return (self.path / FILES[stage]).exists()

    def net(self, stage: str) -> nn.Module:
        """The net at the end of a stage, in evaluation mode. Raises LeftOut where it can't be had."""
        path = self.path / FILES[stage]
        if not path.exists():
            raise LeftOut(f"The run's folder has no {path.name}.")
        source = str(self.recipe["model"])
        self._check_own(source, "The net")
        try:
            origin = read_structure(path).origin or {}
            model = build(source, origin["num_classes"], origin["in_channels"]) if _is_own(source) else None
            return load(path, model).eval()
        except (ModelFileError, ValueError, KeyError, OSError, ImportError) as error:
            raise LeftOut(f"The net of {path.name} can't be had: {error}.") from error

    def _check_own(self, name: str, what: str) -> None:
        if _is_own(name) and not self.own_code:
            raise LeftOut(f"{what} is code of your own, {name}: splore report --own-code imports it, if you trust it.")


def open_runs(paths: Sequence[str | os.PathLike], own_code: bool = False) -> list[RunFolder]:
    """The runs in some folders; one that holds no run itself stands for all finished runs below it.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it.
        ValueError: a run is unfinished, or its files are damaged.
    """
    folders = list(dict.fromkeys(folder for path in paths for folder in _folders(Path(path).resolve())))
    if not folders:
        raise ValueError("expected at least one run, found none: name a run's folder")
    parent = Path(os.path.commonpath([folder.parent for folder in folders]))
    return [_open(folder, str(folder.relative_to(parent)), own_code) for folder in folders]


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise FileNotFoundError(
            f"expected the folder of a run at {path}, found {'a file' if path.exists() else 'none'}"
        )
    if _is_finished(path):
        return [path]
    if (path / METRICS).exists():
        raise ValueError(f"the run in {path} is not finished: go on with it by splore run --resume, then report on it")
    found = sorted(file.parent for file in path.rglob(SUMMARY) if _is_finished(file.parent))
    if not found:
        raise FileNotFoundError(f"expected a run in {path}, found no {SUMMARY} in or below it")
    return found


def _is_finished(folder: Path) -> bool:
    """Whether a folder is that of one finished run; the summary of several seeds holds no stage's curve."""
    return (folder / SUMMARY).exists() and (folder / METRICS).exists()


def _open(folder: Path, name: str, own_code: bool) -> RunFolder:
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
        for part in ("recipe", "stages", "dense"):
            summary[part]
        return RunFolder(folder, name, summary, tuple(line for line in lines if "epoch" in line), own_code)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the files of the run in {folder} are damaged ({error!r}): make the run anew") from error


def _is_own(source: str) -> bool:
    return ":" in source and not source.startswith(("torchvision:", "timm:"))
