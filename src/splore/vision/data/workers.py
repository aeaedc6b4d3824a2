"""Data sets too large for the memory, and users' own: worker processes read while the device computes."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from splore.vision.data.class_folders import Listing
from splore.vision.data.images import Normalisation, UnreadableImage, leave_interrupts_to_parent, read_image
from splore.vision.data.order import TestOrder, TrainOrder, mixed_seed


class Samples(Protocol):
    """A map-style data set: pairs of an image (C, H, W) and a label."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


class ImageSamples:
    """The images of a listing, decoded when asked for and passed through a torchvision v2 transform; uint8."""

    def __init__(self, listing: Listing, transform: Any) -> None:  # noqa: ANN401 - any callable on a tensor
        self.listing = listing
        self.transform = transform

    def __len__(self) -> int:
        return len(self.listing.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(read_image(self.listing.path(index))), int(self.listing.labels[index])


class WorkerBatches:
    """Batches of a split that worker processes read, in advance and in order.

    Args:
        samples: where the images come from.
        order: which samples make up which step.
        num_classes: labels must lie in 0 ... num_classes - 1.
        seed: of the random draws within a sample.
        device: where the batches are wanted.
        workers: processes that read; 0 reads in this one.
        scale: normalisation, done on the device; None takes the images as they come.
        memory_format: layout of the batches in memory.

    Every sample is read under random states (Python, NumPy, torch) seeded with (seed, epoch, index): what augments it
    does not depend on the worker it falls to. The workers are started by the first epoch and kept; steps before
    `start` are not read. One epoch can be read at a time.
    """

    def __init__(
        self,
        samples: Samples,
        order: TrainOrder | TestOrder,
        num_classes: int,
        seed: int,
        device: torch.device,
        workers: int,
        scale: Normalisation | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.samples = order.samples
        self._steps = _Steps(order)
        self._device = device
        self._factors = scale.factors(device) if scale else None
        self._memory_format = memory_format
        self._turn = 0
        self._loader: DataLoader[Any] = DataLoader(
            cast(Any, SampleReader(samples, num_classes, seed)),  # its keys are (epoch, index)
            batch_sampler=cast(Any, self._steps),
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=leave_interrupts_to_parent,
            generator=torch.Generator(),  # else each epoch would draw from the global random state
        )

    def __len__(self) -> int:
        """Steps of an epoch; the same on all ranks."""
        return len(self._steps.order)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from step `start` on; see `splore.vision.Batches`.

        Raises UnreadableImage (a ValueError) with the path of an image that cannot be read, BadSample (another) for a
        sample that is not an image with a label of the data set.
        """
        self._turn += 1
        turn = self._turn
        self._steps.epoch, self._steps.start = epoch, start
        for batch in self._loader:
            if turn != self._turn:
                raise RuntimeError("another epoch of these batches was begun; only one can be read at a time")
            if isinstance(batch, ValueError):
                try:
                    raise batch
                finally:
                    del batch  # or its traceback would hold this frame, and with it the workers, in a cycle
            images, labels = (each.to(self._device, non_blocking=True) for each in batch)
            if self._factors:
                factor, shift = self._factors
                images = (images * factor).sub_(shift)
            yield images.contiguous(memory_format=self._memory_format), labels


class _Steps:
    """The keys (epoch, index) of each step of an epoch, for the workers."""

    def __init__(self, order: TrainOrder | TestOrder) -> None:
        self.order = order
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, start = self.epoch, self.start
        indices = self.order.indices(epoch)
        for step in range(start, len(self.order)):
            places = torch.arange(*self.order.span(step)) % self.order.samples
            yield [(epoch, index) for index in indices[places].tolist()]


class BadSample(ValueError):
    """A user's data set gave something else than an image with a label."""


class SampleReader:
    """Reads whole batches in a worker. What is wrong with the data comes back as a value, not as an exception: the
    message then reaches the user without the worker's traceback."""

    def __init__(self, samples: Samples, num_classes: int, seed: int) -> None:
        self.samples = samples
        self.num_classes = num_classes
        self.seed = seed

    def __getitems__(self, keys: list[tuple[int, int]]) -> Any:  # noqa: ANN401 - the name that DataLoader looks for
        try:
            batch = [self.read(epoch, index) for epoch, index in keys]
            shapes = {tuple(image.shape) for image, _ in batch}
            if len(shapes) > 1:
                raise BadSample(f"expected images of one shape in a batch, found {sorted(shapes)[:3]}")
            return default_collate(batch)
        except (UnreadableImage, BadSample) as error:
            return error

    def read(self, epoch: int, index: int) -> tuple[Tensor, int]:
        """One sample, drawn as (seed, epoch, index) has it. Raises BadSample."""
        with _seeded(mixed_seed(self.seed, epoch, index)):
            image, label = self.samples[index]
        if not isinstance(image, Tensor) or image.ndim != 3:
            found = f"a tensor of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise BadSample(f"sample {index}: expected an image as a tensor (C, H, W), found {found}")
        if not 0 <= int(label) < self.num_classes:
            raise BadSample(f"sample {index}: expected a label in 0 ... {self.num_classes - 1}, found {label}")
        return image, int(label)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's (CPU) random states seeded within the block, and as they were after it."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def _as_it_is(batch: Any) -> Any:  # noqa: ANN401
    return batch
