"""Reading images, one or all of a split of small ones; and the normalisation of their pixels."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from splore.vision.data.class_folders import Listing

FEW = 4096
"""Images that are decoded sooner than worker processes have started."""
CHUNK = 512
"""Images that a worker decodes at a time."""


class UnreadableImage(ValueError):
    """A file that was listed as an image could not be decoded; the message names its path."""


def read_image(path: str, channels: int = 3) -> Tensor:
    """The image as (channels, H, W), uint8: RGB, or grey for one channel. Raises UnreadableImage."""
    image = _read_with_torchvision(path, channels)
    return _read_with_pillow(path, channels) if image is None else image


def _read_with_torchvision(path: str, channels: int) -> Tensor | None:
    """The faster way, by a third for JPEG; None for what it cannot read, or where torchvision has no decoders: later
    releases than 0.29 are to leave them out."""
    try:
        from torchvision.io import ImageReadMode, decode_image, read_file

        mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
        image = decode_image(read_file(path), mode=mode)
    except (ImportError, RuntimeError):
        return None
    return image if image.ndim == 3 else None  # a GIF has a time axis


def _read_with_pillow(path: str, channels: int) -> Tensor:
    """The way for everything else (CMYK, TIFF, ...); it also says better what is wrong with a file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB" if channels == 3 else "L"))
    except Exception as error:  # its decoders raise errors of many kinds for a damaged file
        reason = "it is not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UnreadableImage(f"cannot read the image {path}: {reason}; replace or remove it") from error
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], channels).permute(2, 0, 1).contiguous()


def image_shape(path: str) -> tuple[int, int, int]:
    """(C, H, W) of an image from its header alone; C is 1 for a grey one, else 3. Raises UnreadableImage."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            grey = image.mode in ("1", "L", "I", "I;16", "F")
            return (1 if grey else 3), image.height, image.width
    except OSError as error:
        raise UnreadableImage(f"cannot read the image {path}: it is not an image; replace or remove it") from error


def decode_all(listing: Listing, shape: tuple[int, int, int], workers: int) -> Tensor:
    """All images of a split (samples, C, H, W), uint8, decoded in `workers` processes where that is worth it.

    Raises UnreadableImage, and ValueError for an image of another size than `shape`, each with the path.
    """
    count = len(listing.labels)
    images = torch.empty((count, *shape), dtype=torch.uint8)
    chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    reader: DataLoader[Any] = DataLoader(
        cast(Any, _Decoder(listing, shape)),  # its keys are ranges, one to a batch
        batch_size=None,
        sampler=chunks,
        num_workers=workers if count > FEW else 0,
        worker_init_fn=leave_interrupts_to_parent,
        generator=torch.Generator(),  # else this would draw from the global random state
    )
    for chunk, decoded in zip(chunks, reader, strict=True):
        if isinstance(decoded, ValueError):
            try:
                raise decoded
            finally:
                del decoded  # or its traceback would hold this frame, and with it the workers, in a cycle
        images[chunk.start : chunk.stop] = decoded
    return images


class _Decoder:
    """Decodes a range of the images; what is wrong with one comes back as a value, free of a worker's traceback."""

    def __init__(self, listing: Listing, shape: tuple[int, int, int]) -> None:
        self.listing = listing
        self.shape = shape

    def __getitem__(self, chunk: Sequence[int]) -> Tensor | ValueError:
        try:
            return torch.stack([self._decode(self.listing.path(index)) for index in chunk])
        except ValueError as error:
            return error

    def _decode(self, path: str) -> Tensor:
        image = read_image(path, self.shape[0])
        if image.shape[1:] != self.shape[1:]:
            raise ValueError(
                f"the images differ in size: expected {self.shape[1]} x {self.shape[2]} as the first one has, found "
                f"{image.shape[1]} x {image.shape[2]} in {path}; make them equal, or read them as 'imagenet', which "
                "resizes to 224 x 224"
            )
        return image


def leave_interrupts_to_parent(worker: int) -> None:
    """Let a worker process ignore Ctrl-C: the run that started it ends it, without a traceback from each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class Normalisation:
    """Normalisation of pixel values as they are stored: (pixel - mean) / std for each channel."""

    mean: tuple[float, ...]
    """One for each channel, or one for all."""
    std: tuple[float, ...]

    def factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(factor, shift), each (C, 1, 1): pixel * factor - shift is the normalised value."""
        mean = torch.tensor(self.mean, dtype=torch.float64).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float64).view(-1, 1, 1)
        return (1 / std).float().to(device), (mean / std).float().to(device)


def pixel_scale(mean: tuple[float, ...], std: tuple[float, ...]) -> Normalisation:
    """The normalisation of 8-bit pixels by a mean and a deviation given for pixels in 0 ... 1, as is usual."""
    return Normalisation(tuple(255 * value for value in mean), tuple(255 * value for value in std))


IMAGENET_SCALE = pixel_scale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY_SCALE = pixel_scale((0.449,), (0.226,))
CIFAR_SCALES = {
    "cifar10": pixel_scale((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": pixel_scale((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
