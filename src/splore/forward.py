"""Forward passes outside of training: evaluation mode, and what a batch of any usual loader gives to a model."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

INPUTS = ("x", "input", "inputs", "image", "images", "img", "data", "features", "pixel_values")
LABELS = ("y", "label", "labels", "target", "targets")
"""The keys under which the batches of a loader that gives dicts have a model's input and the classes."""


@runtime_checkable
class Epochs(Protocol):
    """Batches that are given in an order of each epoch's own."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of one epoch."""
        ...


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within; afterwards, and after an error too, every module is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def batches_of(loader: Iterable | Epochs) -> Iterable:
    """The batches of a loader; those of the first epoch where it has epochs."""
    return loader.epoch(0) if isinstance(loader, Epochs) else loader


def split(batch: object) -> tuple[object, Tensor | None]:
    """The inputs and the labels of a batch: a tuple or list begins with them, a dict has the labels at a usual key.

    Anything else is inputs without labels.
    """
    if isinstance(batch, Mapping):
        key = next((key for key in LABELS if key in batch), None)
        return {name: value for name, value in batch.items() if name != key}, None if key is None else batch[key]
    if isinstance(batch, tuple | list) and batch:
        return batch[0], batch[1] if len(batch) > 1 else None
    return batch, None


def run(model: nn.Module, inputs: object) -> Any:  # noqa: ANN401 - a model may return anything
    """What a model returns for the inputs of a batch, on its own device.

    Inputs are a tensor, a tuple of arguments, or a dict: its entries that `forward` has parameters for are passed by
    name; where there are none, the entry at a usual key (see `INPUTS`), or the only one, is the argument.

    Raises:
        ValueError: inputs of another kind, or a dict that has nothing that the model takes.
    """
    inputs = _moved(inputs, next((t.device for t in chain(model.parameters(), model.buffers())), None))
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, tuple | list) and inputs and all(isinstance(each, Tensor) for each in inputs):
        return model(*inputs)
    if not isinstance(inputs, Mapping) or not inputs:
        raise ValueError(
            "expected batches of a tensor, of a tuple or list that begins with inputs, or of a dict, found inputs of "
            f"type {type(inputs).__name__}"
        )
    named = _named(model, inputs)
    return model(**named) if named else model(_argument(inputs))


def one_input(model: nn.Module, inputs: object) -> Tensor:
    """The one tensor that `run` gives a model for the inputs of a batch. Raises ValueError where it gives others."""
    if isinstance(inputs, Mapping) and inputs:
        inputs = list(_named(model, inputs).values()) or _argument(inputs)
    if isinstance(inputs, tuple | list) and len(inputs) == 1:
        inputs = inputs[0]
    if not isinstance(inputs, Tensor):
        raise ValueError(
            f"expected batches that are, or begin with, one tensor of inputs, found {type(inputs).__name__}"
        )
    return inputs


def _argument(inputs: Mapping) -> Any:  # noqa: ANN401
    """The entry of a dict that is the argument of a model which has no parameters of such names."""
    key = next((key for key in (*INPUTS, *(inputs if len(inputs) == 1 else ())) if key in inputs), None)
    if key is None:
        raise ValueError(
            f"the model takes none of {sorted(map(str, inputs))}: name the entry of the batch as the parameter of "
            f"its forward, or one of {', '.join(INPUTS)}"
        )
    return inputs[key]


def _named(model: nn.Module, inputs: Mapping) -> dict[str, Any]:
    """The entries that a model's `forward` has parameters for; empty where these are not all that it needs."""
    signature = inspect.signature(getattr(model, "_orig_mod", model).forward)  # of what torch.compile wrapped
    rest = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in signature.parameters.values())
    named = {name: value for name, value in inputs.items() if rest or name in signature.parameters}
    try:
        signature.bind(**named)
    except TypeError:
        return {}
    return named


def _moved(inputs: object, device: torch.device | None) -> Any:  # noqa: ANN401
    """The inputs with every tensor in them on the device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device, non_blocking=True)
    if isinstance(inputs, Mapping):
        return {name: _moved(value, device) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return [_moved(value, device) for value in inputs]
    return inputs
