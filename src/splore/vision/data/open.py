"""Data sets by name, and what a training loop sees of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import Subset

from splore.machine import cores_per_process
from splore.names import UnknownName, nearest
from splore.task import Preprocessing, Task
from splore.vision.data.class_folders import list_splits
from splore.vision.data.images import CIFAR_SCALES, image_shape, pixel_scale
from splore.vision.data.in_memory import Augment, MemoryBatches
from splore.vision.data.large import LargeData, large_folder, own
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
    validation: Batches | None = None
    """Training images that are held back, in a fixed order and not augmented; None where there are none."""

    @property
    def watched(self) -> Batches:
        """What is evaluated while training: the images held back, or else the test images."""
        return self.test if self.validation is None else self.validation

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
    augment: Augment | str | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    size: int | None = None,
    validation: float = 0.0,
    trained: Preprocessing | None = None,
) -> Data:
    """A data set, ready to be trained on.

    Args:
        name: one of
            - "digits": scikit-learn's handwritten digits; needs no `root`;
            - "cifar10", "cifar100": torchvision's files in `root`, or a folder of images as below;
            - "folder": `root`/{train, test or val}/<class>/<image>. Small images (by the first one) must be of equal
              size and are held in memory; larger ones are treated as ImageNet's, as all are in "imagenet";
            - "package.module:factory": a user's own; see `splore.vision.data.large.own`.
        root: the folder that holds the data.
        batch_size: samples of a step, over all ranks together.
        seed: of the order of the samples and of what augments them.
        device: where the batches are made; data sets in memory are held there.
        rank, world_size: this process and how many share each batch.
        workers: processes that read images; None takes one for each processor core of this process.
        download: fetch CIFAR where it is missing. Let one rank of a machine go first.
        augment: how training images vary, in place of the data set's own way: a word of `large_folder`'s, or `Augment`.
        memory_format: layout of the batches in memory.
        size: height and width that images of a folder are brought to; 96 pixels and less are then no exception.
        validation: share of the training images, 0 to 1, that is held back.
        trained: how images were preprocessed that a net was trained with: so are these, but for small ones' size.

    Raises:
        UnknownName: nothing has that name; the nearest are offered. A ValueError.
        ValueError: an empty folder, a class without images, splits of different classes, an unreadable image (its path
            is named), a batch that the ranks cannot share, a choice that the data set does not offer.
        FileNotFoundError: a folder, a split or a data set that is missing and could not be fetched.
        ImportError: torchvision or scikit-learn is not installed.
    """
    workers = cores_per_process() if workers is None else workers
    found = _find(name, root, workers, download, augment if isinstance(augment, str) else "usual", size, trained)
    learned, held_back = _drawn(len(found.train), validation)
    train_order = TrainOrder(len(learned), batch_size, seed, rank, world_size)

    test_order = TestOrder(len(found.test), batch_size, rank, world_size)
    held_order = TestOrder(len(held_back), batch_size, rank, world_size) if held_back else None
    train: Batches
    test: Batches
    held: Batches | None
    if isinstance(found, SmallData):
        place = (found.scale, device, memory_format)
        part, back = found.train.only(learned), found.train.only(held_back)
        train = MemoryBatches(part.images, part.labels, train_order, *place, _small_way(augment, found))
        test = MemoryBatches(found.test.images, found.test.labels, test_order, *place)
        held = MemoryBatches(back.images, back.labels, held_order, *place) if held_order else None
    elif isinstance(augment, Augment):
        raise ValueError(f"`augment` holds for data sets in memory; {name} is read, and augmented, by worker processes")
    else:
        common = (len(found.classes), seed, device, workers, found.scale, memory_format)
        kept = Subset(cast(Any, found.train), learned) if held_back else found.train
        train = WorkerBatches(kept, train_order, *common)
        test = WorkerBatches(found.test, test_order, *common)
        held = WorkerBatches(Subset(cast(Any, found.plain), held_back), held_order, *common) if held_order else None
    return Data(name, train, test, found.classes, found.image_shape, _preprocessing(found), held)


def _drawn(samples: int, share: float) -> tuple[list[int], list[int]]:
    """The places of the samples that are learned by, and of those held back; by the same lot for every seed."""
    if not share:
        return list(range(samples)), []
    lot = torch.randperm(samples, generator=torch.Generator().manual_seed(0)).tolist()
    held_back = sorted(lot[: round(share * samples)])
    if not 0 < len(held_back) < samples:
        raise ValueError(f"a share of {share} for validation holds {len(held_back)} of {samples} images back")
    return sorted(lot[len(held_back) :]), held_back


def _small_way(word: Augment | str | None, found: SmallData) -> Augment:
    """How images in memory vary by a recipe's word."""
    if isinstance(word, Augment):
        return word
    if word in (None, "usual"):
        return found.augment
    if word == "randaugment":
        raise ValueError("randaugment holds for folders of larger images, found images in memory: give data.size")
    pad = (found.augment.pad or found.image_shape[2] // 8) if "shift" in str(word) else 0
    return Augment(pad, flip="mirror" in str(word))


def _preprocessing(found: SmallData | LargeData) -> Preprocessing | None:
    if found.scale is None:
        return None
    channels, *size = found.image_shape
    mean, deviation = (
        tuple(value / 255 for value in (values if len(values) == channels else values * channels))
        for values in (found.scale.mean, found.scale.std)
    )
    return Preprocessing((size[0], size[1]), mean, deviation, found.resized if isinstance(found, LargeData) else None)


def _find(
    name: str,
    root: str | None,
    workers: int,
    download: bool,
    augment: str,
    size: int | None,
    trained: Preprocessing | None,
) -> SmallData | LargeData:
    if ":" in name:
        if augment != "usual" or size is not None:
            raise ValueError(f"{name} is a data set of your own, which augments and sizes its images itself")
        return own(name, root)
    if name not in NAMES:
        raise UnknownName(
            f"there is no data set {name!r}; {nearest(name, NAMES)} A data set of your own is written "
            "'package.module:factory'"
        )
    if size is not None and name not in ("folder", "imagenet"):
        raise ValueError(f"the images of {name} have a size of their own: a size holds for folders")
    if name == "digits":
        return digits()
    if root is None:
        raise ValueError(f"{name} needs the folder that holds it, found none: give `root`")
    if name in CIFAR_SCALES:
        found = cifar(name, root, workers, download)
        return found if trained is None else replace(found, scale=pixel_scale(trained.mean, trained.deviation))
    # ImageNet is often stored with a test folder that has no labels.
    train, test = list_splits(root, ("val", "test") if name == "imagenet" else ("test", "val"))
    if name == "folder" and size is None and max((shape := image_shape(train.path(0)))[1:]) <= SMALL:
        scale = pixel_scale(trained.mean, trained.deviation) if trained and shape[0] == 3 else None
        return small_folder(train, test, workers, scale)
    return large_folder(train, test, augment, size, trained)
