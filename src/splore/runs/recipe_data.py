"""The images of a run, as its recipe names them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataRecipe:
    """The images.

    Attributes:
        name: digits, cifar10, cifar100, imagenet, folder, or package.module:factory for a dataset of your own.
        root: folder that holds the images; not needed for digits.
        batch_size: images per step over all processes together.
        download: fetch the data set into root when it is not there (CIFAR only).
        workers: processes that decode images from folders; as many as there are cores when null.
        size: height and width that images of folders are brought to, in pixels; when null, small ones stay as they are,
            and larger ones become 224, or what the net's weights were trained with (see normalisation).
        augment: how training images vary: usual (the data set's own way), none, mirror, shift (crops of the padded, or
            of the resized, image), shift+mirror, or randaugment (folders of larger images).
        validation: share of the training images that is held back and evaluated in place of the test images while
            training; the test images are then for the table of stages alone.
        normalisation: of the pixels: data (the data set's usual one), net (what timm or torchvision trained the net
            with), or auto (net with pretrained or weights, where they know it, else data).
    """

    name: str = "digits"
    root: str | None = None
    batch_size: int = 128
    download: bool = False
    workers: int | None = None
    size: int | None = None
    augment: Literal["usual", "none", "mirror", "shift", "shift+mirror", "randaugment"] = "usual"
    validation: float = 0.0
    normalisation: Literal["auto", "data", "net"] = "auto"


def check_data(data: DataRecipe) -> None:
    """Raises ValueError for values that no images can be given by."""
    at_least = [("batch_size", data.batch_size, 2), ("workers", data.workers or 0, 0), ("size", data.size or 8, 8)]
    for name, value, least in at_least:
        if value < least:
            raise ValueError(f"data.{name} must be at least {least}, found {value}")
    if not 0 <= data.validation < 1:
        raise ValueError(f"data.validation must be at least 0 and below 1, found {data.validation}")
