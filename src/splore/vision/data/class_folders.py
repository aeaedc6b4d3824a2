"""Folders of images, one sub-folder for each class: {train, test or val}/<class>/<image>."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Listing:
    """The images of one split."""

    paths: np.ndarray
    """(samples,), bytes: one block of memory, which worker processes share however many images there are."""
    labels: Tensor
    """(samples,), int64: places in `classes`."""
    classes: list[str]
    """Names of the class folders, in alphabetical order."""

    def path(self, index: int) -> str:
        """Where the image lies."""
        return os.fsdecode(self.paths[index])


def list_splits(root: str, test_names: Sequence[str]) -> tuple[Listing, Listing]:
    """The train and the test split under `root`; the test split is the first folder of `test_names` that exists.

    Raises FileNotFoundError for a folder or a split that is missing, ValueError for an empty one, for a class without
    images and for splits whose classes differ.
    """
    folder = Path(root)
    layout = f"{root}/train/<class>/<image> and {root}/{' or '.join(test_names)}/<class>/<image>"
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no data folder {root}; expected {layout}")
    found = sorted(each.name for each in folder.iterdir() if each.is_dir())
    test = next((name for name in test_names if name in found), None)
    missing = "train" if "train" not in found else None if test else "test"
    if missing or test is None:
        holds = f"the folders {', '.join(found[:5])}{', ...' if found[5:] else ''}" if found else "no folders"
        raise FileNotFoundError(f"the {missing} split is missing: expected {layout}, found {holds} in {root}")
    train, tested = _list_split(folder / "train"), _list_split(folder / test)
    if train.classes != tested.classes:
        only_train = sorted(set(train.classes) - set(tested.classes))
        only_test = sorted(set(tested.classes) - set(train.classes))
        raise ValueError(
            f"the class folders of {root}/train and {root}/{test} differ: only in train {only_train[:5]}, "
            f"only in {test} {only_test[:5]}; both must hold the same"
        )
    return train, tested


def _list_split(folder: Path) -> Listing:
    classes = sorted(each.name for each in os.scandir(folder) if each.is_dir() and not each.name.startswith("."))
    if not classes:
        raise ValueError(f"{folder} holds no class folders; expected {folder}/<class>/<image>")
    paths: list[bytes] = []
    counts = []
    for name in classes:
        images = sorted(each.path for each in os.scandir(folder / name) if each.name.lower().endswith(SUFFIXES))
        if not images:
            raise ValueError(
                f"the class folder {folder / name} holds no images; "
                f"put some there ({', '.join(SUFFIXES)}) or remove the folder"
            )
        paths.extend(os.fsencode(path) for path in images)
        counts.append(len(images))
    return Listing(np.array(paths), torch.arange(len(classes)).repeat_interleave(torch.tensor(counts)), classes)
