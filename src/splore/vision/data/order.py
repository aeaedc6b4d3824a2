"""Which samples make up which step: the order of an epoch, and each rank's share of a batch.

Everything here is arithmetic on (seed, epoch, step, rank); nothing is remembered between calls.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def mixed_seed(*parts: int) -> int:
    """One 64-bit seed from several whole numbers >= 0; different numbers or another order give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def generator(*parts: int) -> torch.Generator:
    """A random generator of its own on the CPU, seeded with `mixed_seed`."""
    return torch.Generator().manual_seed(mixed_seed(*parts))


@dataclass(frozen=True)
class TrainOrder:
    """A shuffled epoch, cut into batches of which every rank takes an equal part.

    Rank k takes the k-th of `world_size` equal slices of each batch, so the ranks together see what a single one
    would. A last batch that does not divide is filled up with samples from the start of the epoch, to two at least on
    every rank; one of a single sample is left out, as no batch statistics could be taken of it. The number of steps is
    therefore the same for any number of ranks.
    """

    samples: int
    batch_size: int
    """Of all ranks together."""
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        _check(self.samples, self.batch_size, self.rank, self.world_size)
        if self.batch_size % self.world_size or self.batch_size < 2 * self.world_size:
            raise ValueError(
                f"batch_size counts the samples of all {self.world_size} ranks together: it must be a multiple of "
                f"{self.world_size} and at least {2 * self.world_size}, found {self.batch_size}"
            )
        if self.samples < 2:
            raise ValueError(f"expected at least 2 training samples, found {self.samples}")

    def __len__(self) -> int:
        full, rest = divmod(self.samples, self.batch_size)
        return full + (rest > 1)

    def indices(self, epoch: int) -> Tensor:
        """The samples of an epoch (samples,), int64, in the order in which they are seen."""
        return torch.randperm(self.samples, generator=generator(self.seed, epoch, 0))

    def span(self, step: int) -> tuple[int, int]:
        """[first, last) of this rank in the order at `step`; places from `samples` on mean its start again."""
        first = step * self.batch_size
        batch = min(self.batch_size, self.samples - first)
        share = max(-(-batch // self.world_size), 2)
        return first + self.rank * share, first + (self.rank + 1) * share


@dataclass(frozen=True)
class TestOrder:
    """The samples as they stand, cut into batches; every sample falls to exactly one rank, once.

    A last batch is split as evenly as it goes, so that ranks may count different numbers of samples. One of fewer
    samples than ranks is joined to the batch before it: all ranks make the same number of steps.
    """

    __test__ = False  # the name is no test case

    samples: int
    batch_size: int
    """Of all ranks together."""
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        _check(self.samples, self.batch_size, self.rank, self.world_size)
        if min(self.samples, self.batch_size) < self.world_size:
            raise ValueError(
                f"{self.world_size} ranks cannot share {self.samples} test samples in batches of {self.batch_size}: "
                "use fewer ranks or a larger batch"
            )

    def __len__(self) -> int:
        full, rest = divmod(self.samples, self.batch_size)
        return full + (rest >= self.world_size)

    def indices(self, epoch: int) -> Tensor:
        """The samples (samples,), int64, in the order in which they are seen; the same in every epoch."""
        return torch.arange(self.samples)

    def span(self, step: int) -> tuple[int, int]:
        """[first, last) of this rank in the order at `step`."""
        first = step * self.batch_size
        batch = (self.samples if step == len(self) - 1 else first + self.batch_size) - first
        return first + batch * self.rank // self.world_size, first + batch * (self.rank + 1) // self.world_size


def _check(samples: int, batch_size: int, rank: int, world_size: int) -> None:
    if samples < 1:
        raise ValueError("expected samples, found none")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in 0 ... {world_size - 1}, found {rank}")
