"""Data sets by name, and what a training loop sees of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from splore.machine import cores_per_process
from splore.names import UnknownName, nearest
from splore.task import Preprocessing, Task
from splore.vision.data.class_folders import list_splits
from splore.vision.data.images import CIFAR_SCALES, image_shape
from splore.vision.data.in_memory import Augment, MemoryBatches
from splore.vision.data.large import RESIZED, LargeData, large_folder, own
from splore.vision.data.order import TestOrder, TrainOrder
from splore.vision.data.small import SmallData, cifar, digits, small_folder
from splore.vision.data.workers import WorkerBatches

NAMES = ("digits", "cifar10", "cifar100", "folder", "imagenet")
SMALL = 96
"""A `folder` whose first image is at most this many pixels high and wide is held in memory."""


class Batches(Protocol):
    """One split of a data set as this rank reads it.

    What a step yields depends on the seed, the epoch and the step alone: not on the global random state, nor on what
    was read before. A run that continues at step k of an epoch therefore sees what an uninterrupted one would.
    """

    samples: int
    """Samples of the whole split, over all ranks."""

    def __len__(self) -> int:
        """Steps of an epoch; the same on all ranks."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from step `start` on.

        Yields images (N, C, H, W), float32, normalised, and labels (N,), int64, both on the device of the split.
        """
        ...


@dataclass(frozen=True)
class Data:
    """A data set that is ready to be trained on."""

    name: str
    """As it was asked for."""
    train: Batches
    """Shuffled anew in each epoch, and augmented."""
    test: Batches
    """In a fixed order, not augmented; each sample exactly once over all ranks."""
    classes: list[str]
    """Names of the classes; the label is the index."""
    image_shape: tuple[int, int, int]
    """(C, H, W) of what is fed to the net."""
    preprocessing: Preprocessing | None = None
    """From a test image to what is fed to the net; None where the data set does it by itself."""

    @property
    def task(self) -> Task:
        """What a net that is trained on it is for."""
        return Task(tuple(self.classes), self.preprocessing)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)


def open_data(
    name: str,
    root: str | None,
    batch_size: int,
    seed: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    workers: int | None = None,
    download: bool = False,
    augment: Augment | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Data:
    """A data set, ready to be trained on.

    Args:
        name: one of
            - "digits": scikit-learn's handwritten digits; needs no `root`;
            - "cifar10", "cifar100": torchvision's files in `root`, or a folder of images as below;
            - "folder": `root`/{train, test or val}/<class>/<image>. Small images (by the first one) must be of equal
              size and are held in memory; larger ones are treated as ImageNet's;
            - "imagenet": such a folder with ImageNet's augmentation at 224 x 224, whatever the images' size;
            - "package.module:factory": a user's own; see `splore.vision.data.large.own`.
        root: the folder that holds the data.
        batch_size: samples of a step, over all ranks together.
        seed: of the order of the samples and of what augments them.
        device: where the batches are made; data sets in memory are held there.
        rank, world_size: this process and how many share each batch.
        workers: processes that read images; None takes one for each processor core of this process.
        download: fetch CIFAR where it is missing. Let one rank of a machine go first.
        augment: how training images in memory vary, in place of the data set's own way.
        memory_format: layout of the batches in memory.

    Raises:
        UnknownName: nothing has that name; the nearest are offered. A ValueError.
        ValueError: an empty folder, a class without images, splits of
            different classes, an unreadable image (its path is named), a batch that the ranks cannot share.
        FileNotFoundError: a folder, a split or a data set that is missing and could not be fetched.
        ImportError: torchvision or scikit-learn is not installed.
    """
    workers = cores_per_process() if workers is None else workers
    found = _find(name, root, workers, download)
    train_order = TrainOrder(len(found.train), batch_size, seed, rank, world_size)
    test_order = TestOrder(len(found.test), batch_size, rank, world_size)
    train: Batches
    test: Batches
    if isinstance(found, SmallData):
        augment = augment or found.augment
        place = (found.scale, device, memory_format)
        train = MemoryBatches(found.train.images, found.train.labels, train_order, *place, augment)
        test = MemoryBatches(found.test.images, found.test.labels, test_order, *place)
    elif augment:
        raise ValueError(f"`augment` holds for data sets in memory; {name} is read, and augmented, by worker processes")
    else:
        common = (len(found.classes), seed, device, workers, found.scale, memory_format)
        train = WorkerBatches(found.train, train_order, *common)
        test = WorkerBatches(found.test, test_order, *common)
    return Data(name, train, test, found.classes, found.image_shape, _preprocessing(found))


def _preprocessing(found: SmallData | LargeData) -> Preprocessing | None:
    if found.scale is None:
        return None
    channels, *size = found.image_shape
    mean, deviation = (
        tuple(value / 255 for value in (values if len(values) == channels else values * channels))
        for values in (found.scale.mean, found.scale.std)
    )
    return Preprocessing((size[0], size[1]), mean, deviation, RESIZED if isinstance(found, LargeData) else None)


def _find(name: str, root: str | None, workers: int, download: bool) -> SmallData | LargeData:
    if ":" in name:
        return own(name, root)
    if name not in NAMES:
        raise UnknownName(
            f"there is no data set {name!r}; {nearest(name, NAMES)} A data set of your own is written "
            "'package.module:factory'"
        )
    if name == "digits":
        return digits()
    if root is None:
        raise ValueError(f"{name} needs the folder that holds it, found none: give `root`")
    if name in CIFAR_SCALES:
        return cifar(name, root, workers, download)
    # ImageNet is often stored with a test folder that has no labels.
    train, test = list_splits(root, ("val", "test") if name == "imagenet" else ("test", "val"))
    if name == "folder" and max(image_shape(train.path(0))[1:]) <= SMALL:
        return small_folder(train, test, workers)
    return large_folder(train, test)
