"""Batch-norm statistics measured again after the weights before them have changed."""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn


@torch.no_grad()
def recalibrate(model: nn.Module, loader: Iterable, batches: int | None = None) -> int:
    """Sets the running mean and variance of every batch norm to the average over batches of `loader`, in place.

    A cut changes the distribution of what each batch norm receives; with stale statistics accuracy can fall to chance
    although the weights are good. No weight changes and no gradient is taken; dropout stays off.

    Args:
        model: any network; its training mode is restored.
        loader: gives tensors of inputs, or tuples that begin with one, on the model's device.
        batches: how many batches to average over at most; all of the loader when None.

    Returns:
        The number of batches seen; 0 when the model has no batch norm.

    Raises:
        ValueError: the loader gave no batch. The statistics are then what they were, as after any other error.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    seen = 0
    try:
        for batch in islice(loader, batches):
            model(batch if isinstance(batch, Tensor) else batch[0])
            seen += 1
        if not seen:
            raise ValueError("recalibrate needs at least one batch, and the loader gave none")
    except BaseException:
        for buffer, value in before:
            buffer.copy_(value)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return seen
