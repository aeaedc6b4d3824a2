"""Data sets whose samples are read as they are needed: ImageNet and folders like it, and a user's own."""

from dataclasses import dataclass

from torch import Tensor

from splore.task import Preprocessing
from splore.vision.data.class_folders import Listing
from splore.vision.data.images import IMAGENET_SCALE, Normalisation, pixel_scale
from splore.vision.data.workers import BadSample, ImageSamples, SampleReader, Samples
from splore.vision.nets.own import call, import_callable, takes

RESIZED, CROPPED = 256, 224
"""Pixels of an image's shorter side before the central crop, and of the crop's side."""


@dataclass(frozen=True)
class LargeData:
    """A data set that is read while training; `scale` is None where the images come normalised.

    `plain` is what is learned by as the test images are given, where that can be told apart; `resized` is the shorter
    side before the central crop.
    """

    train: Samples
    plain: Samples
    test: Samples
    classes: list[str]
    image_shape: tuple[int, int, int]
    scale: Normalisation | None
    resized: int | None = None


def large_folder(
    train: Listing, test: Listing, augment: str = "usual", size: int | None = None, trained: Preprocessing | None = None
) -> LargeData:
    """Images of any size, with ImageNet's usual augmentation: a random crop of 8 to 100 % of the area at an aspect of
    3/4 to 4/3, resized to 224 x 224, mirrored by chance; for the test the shorter side resized to 256 and the central
    224 x 224.

    Args:
        train, test: the images.
        augment: usual; none, the test's way; mirror; shift, a random crop of the resized image; shift+mirror; or
            randaugment (Cubuk et al., 2020) after the usual way.
        size: the crop's side in place of 224, or of what `trained` says; the shorter side grows with it.
        trained: sizes and normalisation to take in place of ImageNet's.
    """
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise ImportError('folders of images are read by torchvision: pip install "splore[vision]"') from error
    crop, resized = (
        ((CROPPED, CROPPED), RESIZED) if trained is None else (trained.size, trained.shorter_side or RESIZED)
    )
    if size is not None:
        crop, resized = (size, size), round(resized / min(crop) * size)
    mirror, larger = v2.RandomHorizontalFlip(), v2.Resize(resized, antialias=True)
    central = [larger, v2.CenterCrop(crop)]
    ways = {
        "usual": [v2.RandomResizedCrop(crop, antialias=True), mirror],
        "none": central,
        "mirror": [*central, mirror],
        "shift": [larger, v2.RandomCrop(crop)],
        "shift+mirror": [larger, v2.RandomCrop(crop), mirror],
        "randaugment": [v2.RandomResizedCrop(crop, antialias=True), mirror, v2.RandAugment()],
    }
    return LargeData(
        ImageSamples(train, v2.Compose(ways[augment])),
        ImageSamples(train, v2.Compose(central)),
        ImageSamples(test, v2.Compose(central)),
        train.classes,
        (3, *crop),
        IMAGENET_SCALE if trained is None else pixel_scale(trained.mean, trained.deviation),
        resized,
    )


def own(spec: str, root: str | None) -> LargeData:
    """What the factory "package.module:name" returns: two map-style data sets, for training and for the test.

    Each gives pairs of an image, a float tensor (C, H, W) normalised already, and a label 0 ... classes - 1. The first
    has a list `classes` of names, a number `num_classes` or a list `targets` of all labels. The factory is given `root`
    where its signature has it. Whatever it draws from Python's, NumPy's or torch's random states repeats exactly.

    Raises ValueError for a factory that is not found or returns something else.
    """
    factory = import_callable(spec)
    pair = call(spec, factory, **({"root": root} if takes(factory, "root") else {}))
    if not isinstance(pair, tuple) or len(pair) != 2 or not all(_map_style(each) for each in pair):
        raise ValueError(
            f"{spec} must return two data sets with __len__ and __getitem__, (train, test); found {_described(pair)}"
        )
    train, test = pair
    classes = _classes(spec, train)
    image: Tensor = SampleReader(test, len(classes), seed=0).read(epoch=0, index=0)[0]
    if not image.is_floating_point():
        raise BadSample(
            f"{spec}: expected normalised images as floats, found {image.dtype}; convert them in the data set"
        )
    channels, height, width = image.shape
    return LargeData(train, train, test, classes, (channels, height, width), scale=None)


def _map_style(dataset: object) -> bool:
    return hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and not isinstance(dataset, (str, Tensor))


def _described(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(type(each).__name__ for each in value) + ")"
    return type(value).__name__


def _classes(spec: str, train: object) -> list[str]:
    """The names of the classes, or their numbers where there are no names."""
    names = getattr(train, "classes", None)
    if names is not None:
        return [str(name) for name in names]
    count = getattr(train, "num_classes", None)
    if count is None and (targets := getattr(train, "targets", None)) is not None:
        count = 1 + max(int(label) for label in targets)
    if count is None:
        raise ValueError(
            f"{spec}: cannot tell the number of classes; give the training data set a list `classes` of their names "
            "or a number `num_classes`"
        )
    return [str(label) for label in range(int(count))]
