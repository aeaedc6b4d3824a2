"""Checkpoints of other programs that hold masks: those of `torch.nn.utils.prune`."""

import os

from torch import nn

from splore.design.pruned import from_pruned, has_masks
from splore.modelfile.structure import ModelFileError


def take_masked(path: str | os.PathLike, model: nn.Module) -> bool:
    """Takes a state dict that `torch.nn.utils.prune` has masked into a dense network; False where the file is none.

    Raises ModelFileError where it is of another network.
    """
    from splore.vision import read_weights

    try:
        state = read_weights(path)
    except (ValueError, OSError):
        return False
    if not has_masks(state):
        return False
    try:
        from_pruned(model, state)
    except ValueError as error:
        raise ModelFileError(str(error)) from error
    return True
