"""The weight A·B + S of a decomposed layer, as others read it.

It is computed at each reading, so what is written into it would be lost without a word. This tensor knows its layer:
a write is carried over into S, or refused where S can't take it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Owner(Protocol):
    """The layer that a weight was composed by."""

    def absorb(self, weight: Tensor) -> None:
        """Makes `weight` the layer's weight, by its S. Raises ValueError where S can't take it."""
        ...


class ComposedWeight(Tensor):
    """A composed weight, or a view of one; everything else that is computed from it is a plain tensor.

    Attributes:
        owner: the layer.
        composed: the whole weight, in the same memory.
    """

    owner: Owner
    composed: Tensor

    @staticmethod
    def of(composed: Tensor, owner: Owner) -> Tensor:
        """`composed`, knowing its layer; a tensor that is no plain one (a shard, a trace's) is given back as it is."""
        if (
            type(composed) is not Tensor
            or torch.compiler.is_compiling()
            or torch._C._functorch.peek_interpreter_stack()
        ):
            return composed
        return _marked(composed, owner, composed)

    def is_of(self, owner: Owner) -> bool:
        """Whether it is the whole weight of this layer, and no view of another form."""
        return self.owner is owner and _places(self) == _places(self.composed)

    def set_(self, *_: object) -> Tensor:  # type: ignore[override]
        """Refused: PyTorch tells no subclass of it."""
        raise ValueError("a weight A·B + S can't be given other memory: write into it, as by copy_")

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Sequence[type], args: Sequence = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        name = getattr(func, "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            weights = {id(t): (t, t._version) for t in _weights((*args, *(kwargs or {}).values()))}
            whole = [weight for weight, _ in weights.values() if _places(weight) == _places(weight.composed)]
            if name in ("__deepcopy__", "__reduce_ex__"):  # a copy knows no layer
                return getattr(args[0].as_subclass(Tensor), name)(*args[1:])
            result = func(*args, **(kwargs or {}))
            for weight, version in weights.values():
                if weight._version != version and func is not Tensor.requires_grad_:
                    weight.owner.absorb(weight.composed)
            for weight in whole:
                if weight.data_ptr() != weight.composed.data_ptr():  # it was given other memory, as by `.data =`
                    weight.owner.absorb(weight.as_subclass(Tensor))
                    weight.composed = weight.detach().as_subclass(Tensor)
            if isinstance(result, np.ndarray):
                result.flags.writeable = False  # for what is written there, nobody sees
            return _views(result, [weight for weight, _ in weights.values()])


def _marked(tensor: Tensor, owner: Owner, composed: Tensor) -> Tensor:
    weight = tensor.as_subclass(ComposedWeight)
    weight.owner, weight.composed = owner, composed
    return weight


def _places(tensor: Tensor) -> tuple[object, ...]:
    """Where the entries of a tensor lie."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _weights(values: Sequence) -> Iterator[ComposedWeight]:
    for value in values:
        if isinstance(value, ComposedWeight):
            yield value
        elif isinstance(value, list | tuple):
            yield from _weights(value)


def _views(result: Any, weights: Sequence[ComposedWeight]) -> Any:  # noqa: ANN401
    """The result, of which a tensor in the memory of one of the weights knows its layer too."""
    if type(result) in (list, tuple):
        return type(result)(_views(each, weights) for each in result)
    if type(result) is Tensor and result.layout == torch.strided and result.device.type != "meta":
        for weight in weights:
            if result.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr() != 0:
                return _marked(result, weight.owner, weight.composed)
    return result
