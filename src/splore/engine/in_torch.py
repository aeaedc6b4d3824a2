"""Parts of a model that stay in torch, between NumPy arrays."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from splore.engine import openmp

if TYPE_CHECKING:
    from torch import Tensor, nn


class SegmentInTorch(Protocol):
    """A part of a captured model that is no program: `reasons` says why, by operator. It runs in torch, or in another
    `runtime` that takes torch's operators; the `note` says how long."""

    @property
    def runtime(self) -> str: ...

    @property
    def note(self) -> str: ...

    @property
    def reasons(self) -> Mapping[str, str]: ...

    def faster(self, threads: int, *values: "Tensor") -> "SegmentInTorch":
        """What runs this part faster on values like these."""
        ...

    def digest(self, update: "Callable[[bytes], object]") -> None:
        """Tells all that decides what it gives."""
        ...

    def costs(self, *values: "Tensor") -> Mapping[str, float]:
        """The milliseconds of each operator in torch for values like these."""
        ...

    def __call__(self, *values: "Tensor") -> "Sequence[Tensor]":
        """What this part gives for the values that it reads."""
        ...


def run_torch(module: "nn.Module | SegmentInTorch", values: Sequence, alone: bool = False) -> list:
    """The tensors that a torch module gives for values as NumPy arrays, with the threads that torch is set to, or on
    the calling thread `alone`."""
    import torch
    from torch.utils._pytree import tree_leaves

    def to_numpy(value: Any) -> Any:  # noqa: ANN401
        return value.numpy() if isinstance(value, torch.Tensor) else value

    with torch.no_grad(), openmp.one_thread() if alone or openmp.forked else nullcontext():
        found = module(*as_tensors(values))
    if isinstance(module, torch.nn.Module):
        return [leaf.numpy() for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]
    return [to_numpy(value) for value in found]  # several that only torch reads, as of a split, stay as they are


def as_tensors(values: Sequence) -> list:
    """NumPy arrays as tensors; what else there is stays."""
    import torch

    ready = (np.require(value, requirements=["C", "W"]) if isinstance(value, np.ndarray) else value for value in values)
    return [torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in ready]
