"""What the processes that share a run agree on; with one process each of these is as simple as it sounds."""

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from splore.measure.accuracy import Score, evaluate
from splore.vision import Batches


def average_statistics(model: nn.Module, accelerator: Accelerator) -> None:
    """Averages the batch-norm statistics that each process has gathered on its share of the images."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(accelerator.reduce(buffer, "mean"))


def common_score(model: nn.Module, batches: Batches, accelerator: Accelerator) -> Score:
    """The score over a split of which each process has its share; the same on all."""
    average_statistics(model, accelerator)

    def total(sums: Tensor) -> Tensor:
        return accelerator.reduce(sums)

    # What is compiled is the training step: a few batches are not worth the compilation of another mode.
    with torch.compiler.set_stance("force_eager"):
        return evaluate(model, batches, total, accelerator.autocast)


def first_says(answer: bool, accelerator: Accelerator) -> bool:
    """The first process's answer, on all."""
    return bool(broadcast(torch.tensor(int(answer), device=accelerator.device)))
