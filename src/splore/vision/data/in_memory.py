"""Small data sets: all images in the memory of the training device, augmented there a batch at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from splore.vision.data.images import Normalisation
from splore.vision.data.order import TestOrder, TrainOrder, generator


@dataclass(frozen=True)
class Augment:
    """How training images vary: a crop of the image's own size out of the padded image, and a mirror image."""

    pad: int = 4
    """Black pixels added on each side before the crop; 0 turns the crop off."""
    flip: bool = True
    """Mirror every other image left to right, by chance."""

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ValueError(f"the padding must be 0 pixels or more, found {self.pad}")


class MemoryBatches:
    """Batches of a split that is held as one uint8 tensor on the device.

    Args:
        images: (samples, C, H, W), uint8.
        labels: (samples,), int64.
        order: which samples make up which step.
        scale: normalisation of the pixel values.
        device: where the images are held and the batches are made.
        memory_format: layout of the batches in memory.
        augment: how training images vary; None leaves them as they are.

    The random draws of an epoch are made at its start, one for each place in the order, and copied over once: a step
    is a slice of them, one gather of pixels and the normalisation, and the host waits for nothing.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        order: TrainOrder | TestOrder,
        scale: Normalisation,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
        augment: Augment | None = None,
    ) -> None:
        self.samples, channels, self._height, self._width = images.shape
        self._order = order
        self._augment = augment
        pad = augment.pad if augment else 0
        self._pixels = F.pad(images, (pad, pad, pad, pad)).to(device)
        self._labels = labels.to(device)
        self._channel = torch.arange(channels, device=device)[None, :, None, None]
        self._factor, self._shift = scale.factors(device)
        self._device = device
        self._memory_format = memory_format

    def __len__(self) -> int:
        """Steps of an epoch; the same on all ranks."""
        return len(self._order)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from step `start` on; see `splore.vision.Batches`."""
        spans = [self._order.span(step) for step in range(start, len(self))]
        if not spans:
            return
        # Places beyond the last sample are the first ones again.
        places = torch.arange(max(self.samples, max(last for _, last in spans))) % self.samples
        index = self._to_device(self._order.indices(epoch)[places])
        rows, columns = self._windows(epoch, places)
        for first, last in spans:
            chosen = index[first:last]
            if rows is None or columns is None:
                pixels = self._pixels[chosen]
            else:
                y, x = rows[first:last, None, :, None], columns[first:last, None, None, :]
                pixels = self._pixels[chosen[:, None, None, None], self._channel, y, x]
            pixels = (pixels * self._factor).sub_(self._shift)
            yield pixels.contiguous(memory_format=self._memory_format), self._labels[chosen]

    def _windows(self, epoch: int, places: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The rows (places, H) and columns (places, W) of the padded image that each crop takes; a flip counts its
        columns backwards."""
        if self._augment is None or not isinstance(self._order, TrainOrder):
            return None, None
        draws = generator(self._order.seed, epoch, 1)
        top, left = torch.randint(2 * self._augment.pad + 1, (2, self.samples), generator=draws)[:, places]
        flip = torch.randint(2, (self.samples,), generator=draws)[places]
        top, left, flip = (self._to_device(each)[:, None] for each in (top, left, flip))
        y = torch.arange(self._height, device=self._device)
        x = torch.arange(self._width, device=self._device)
        if self._augment.flip:
            x = torch.where(flip.bool(), self._width - 1 - x, x)
        return top + y, left + x

    def _to_device(self, values: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return values.to(self._device)
        return values.pin_memory().to(self._device, non_blocking=True)
