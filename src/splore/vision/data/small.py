"""Data sets small enough to be held in memory: the digits, CIFAR, and folders of small images."""

from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor

from splore.vision.data.class_folders import Listing, list_splits
from splore.vision.data.images import CIFAR_SCALES, GREY_SCALE, IMAGENET_SCALE, Normalisation, decode_all, image_shape
from splore.vision.data.in_memory import Augment


@dataclass(frozen=True)
class SmallSplit:
    """All images (samples, C, H, W), uint8, and labels (samples,), int64, of one split."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, places: list[int]) -> "SmallSplit":
        """The samples at these places."""
        if len(places) == len(self):
            return self
        return SmallSplit(self.images[places], self.labels[places])


@dataclass(frozen=True)
class SmallData:
    """A data set in memory, and how it is usually normalised and augmented."""

    train: SmallSplit
    test: SmallSplit
    classes: list[str]
    scale: Normalisation
    augment: Augment

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


def digits() -> SmallData:
    """scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, values 0 ... 16 scaled to 0 ... 1.

    The split is fixed: every fourth image of the ten classes, taken one after the other, is a test image: 450 of them,
    45 or so of each digit, and 1,347 to train on. Training images are shifted by up to one pixel; never mirrored.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('the digits come with scikit-learn: pip install "splore[vision]"') from error
    loaded = load_digits()
    by_class = np.argsort(loaded.target, kind="stable")
    tested = np.zeros(len(by_class), dtype=bool)
    tested[by_class[::4]] = True
    images = torch.from_numpy(loaded.images.astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(loaded.target.astype(np.int64))
    train, test = (
        SmallSplit(images[torch.from_numpy(chosen)], labels[torch.from_numpy(chosen)]) for chosen in (~tested, tested)
    )
    return SmallData(
        train, test, [str(digit) for digit in range(10)], Normalisation((0.0,), (16.0,)), Augment(1, flip=False)
    )


def cifar(name: str, root: str, workers: int, download: bool) -> SmallData:
    """CIFAR-10 or CIFAR-100 in torchvision's files below `root`, or as a folder of images in train and test.

    With `download`, files that are missing are fetched; ranks of one machine must not do so at the same time.

    Raises FileNotFoundError where there is neither, or the download failed, and ValueError for damaged files.
    """
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ImportError(f'{name} is read by torchvision: pip install "splore[vision]"') from error
    dataset = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    files = Path(root) / dataset.base_folder
    if not files.exists():
        if (Path(root) / "train").is_dir():
            return small_folder(*list_splits(root, ("test", "val")), workers, CIFAR_SCALES[name])
        if not download:
            raise FileNotFoundError(
                f"there is no {name} in {root}: expected torchvision's files ({files}) or images as "
                f"{root}/train/<class>/<image> and {root}/test/<class>/<image>; set download to true to fetch it"
            )
    try:
        train, test = (dataset(root, train=training, download=download) for training in (True, False))
    except (URLError, ConnectionError, TimeoutError) as error:
        raise FileNotFoundError(
            f"{name} is not in {root} and could not be downloaded ({error}): connect to the network, or put "
            f"torchvision's files there yourself ({files})"
        ) from error
    except RuntimeError as error:
        raise ValueError(
            f"the files of {name} in {files} are incomplete or altered: remove that folder and download it anew"
        ) from error
    splits = [
        SmallSplit(torch.from_numpy(each.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(each.targets))
        for each in (train, test)
    ]
    return SmallData(splits[0], splits[1], list(train.classes), CIFAR_SCALES[name], Augment())


def small_folder(train: Listing, test: Listing, workers: int, scale: Normalisation | None = None) -> SmallData:
    """The images of two listings, all of the size of the first one; grey where that one is, else RGB.

    Without a `scale`, ImageNet's mean and deviation; training images are padded by an eighth of their width for the
    crop (4 pixels of 32), and mirrored.

    Raises UnreadableImage, and ValueError for images of different sizes.
    """
    shape = image_shape(train.path(0))
    usual = IMAGENET_SCALE if shape[0] == 3 else GREY_SCALE
    splits = [SmallSplit(decode_all(each, shape, workers), each.labels) for each in (train, test)]
    return SmallData(splits[0], splits[1], train.classes, scale or usual, Augment(pad=shape[2] // 8))
