"""What a training loop sees of a data set."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


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

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)
