"""Batch-norm statistics measured again after the weights before them have changed."""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import nn

from splore.forward import Epochs, batches_of, evaluating, run, split


@torch.no_grad()
def recalibrate(model: nn.Module, loader: Iterable | Epochs, batches: int | None = None) -> int:
    """Sets the running mean and variance of every batch norm to the average over batches of `loader`, in place.

    A cut changes the distribution of what each batch norm receives; with stale statistics accuracy can fall to chance
    although the weights are good. No weight changes and no gradient is taken; dropout stays off.

    Args:
        model: any network; its training mode is restored.
        loader: training inputs, augmented as in training: plain ones have other statistics, and took 2.5 points from a
            dense ResNet-20. Gives tensors of inputs, tuples that begin with them, or dicts with the usual keys (see
            `splore.forward`); they are moved to the model's device.
        batches: how many batches to average over at most; all of the loader when None.

    Returns:
        The number of batches seen; 0 when the model has no batch norm.

    Raises:
        ValueError: the loader gave no batch, or batches of another kind. After any error the
            statistics are what they were.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    seen = 0
    try:
        # Eagerly: this mixture of modes is not worth a compilation.
        with evaluating(model), torch.compiler.set_stance("force_eager"):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain average over the batches
                norm.training = True
            for batch in islice(batches_of(loader), batches):
                run(model, split(batch)[0])
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
    return seen
