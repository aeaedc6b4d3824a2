"""The dense network that a model file names, from the zoo, torchvision or timm, built within bounds.

A small file may name a net of any size: tensors are counted as they are made, before anything is written into them.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from splore.modelfile.state import check_network
from splore.modelfile.structure import ModelFileError, Structure

if TYPE_CHECKING:
    from splore.vision import Origin

_SCRATCH = 1 << 26
"""Bytes that a network may take while it is built beside what the file holds."""


def built(structure: Structure, tensors: dict[str, Tensor], most: int) -> nn.Module:
    """The dense network that the file names, of so many bytes at the most. Raises ModelFileError where it can't be."""
    from splore.vision import Origin, rebuild

    if structure.origin is None:
        raise ModelFileError("the file doesn't say how its network is built: pass the dense network as `model`")
    try:
        origin = Origin(**structure.origin)
        skeleton = _without_storage(rebuild, origin)
        if skeleton is not None:
            check_network(skeleton, structure, tensors)
        with _Bounded(min(most, _expected_bytes(structure, tensors))):
            return rebuild(origin)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"the network of the file can't be built ({error})") from error


def _expected_bytes(structure: Structure, tensors: dict[str, Tensor]) -> int:
    """What the dense network of a file takes at the most while it is built, in float32, whatever it is stored in."""
    stored = sum(tensor.numel() for tensor in tensors.values())
    return 8 * (stored + sum(math.prod(layer.shape) for layer in structure.layers)) + _SCRATCH


class _Bounded(TorchFunctionMode):
    """Refuses tensors that are made beyond so many bytes in all, before anything is written into them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = self.most = most

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        made = func(*args, **(kwargs or {}))
        if func is torch.empty:
            self.left -= made.nbytes
            if self.left < 0:
                raise ModelFileError(
                    f"expected a network that takes at most {self.most >> 20} MiB, by what the file holds or by "
                    "`dense_bytes`, found that the file names a larger one: get the file anew, or pass the network"
                )
        return made


def _without_storage(build: Callable[..., nn.Module], origin: "Origin") -> nn.Module | None:
    """The network on 'meta', to see first whether the file fits it; None where it can't be built there."""
    try:
        with torch.device("meta"):
            return build(origin)
    except (ImportError, ValueError):
        raise
    except Exception:  # what a constructor that reads its own tensors raises on 'meta' is anything
        return None
