"""The one training loop: dense or W = A·B + S, from scratch or fine-tuning, the loop is the same.

What differs hangs on the optimiser as hooks (the proximal step, the masks) or is an argument (the loss). The learning
rate, the order of the samples and their augmentation are functions of the position alone, so a loop that starts from a
checkpoint takes the very steps that an uninterrupted one would have taken.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from splore.train.passes import Graphed, Passes


class TrainingBatches(Protocol):
    """The training split as the loop reads it; `splore.vision.Batches` says more of it."""

    def __len__(self) -> int:
        """Steps of an epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The inputs and labels of one epoch from step `start` on, a function of epoch and step alone."""
        ...


class Diverged(RuntimeError):
    """The loss, or a weight, is no longer a finite number."""


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has stopped at a step's end."""


@dataclass
class Position:
    """Where a stage is: the epoch, the steps of it already taken, and what they summed up to.

    `sums` is (loss * samples, correct, samples) of the epoch so far on this process, kept on the device.
    """

    epoch: int = 0
    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))


def warm_cosine(progress: float, peak: float, warmup: float, final: float = 0.0) -> float:
    """The rate at a progress from 0 to 1: up to `peak` over the share `warmup`, then half a cosine to `final`."""
    if progress < warmup:
        return peak * progress / warmup
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1 - warmup, 1e-12)))


def fit(
    model: nn.Module,
    batches: TrainingBatches,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    *,
    epochs: int,
    learning_rate: Callable[[float], float],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    position: Position,
    first_epoch: int = 0,
    compiled_batch: int = 0,
    graphs: bool = False,
    begin_epoch: Callable[[int], None] = lambda epoch: None,
    after_step: Callable[[Position], None] = lambda position: None,
    end_epoch: Callable[[Position], None] = lambda position: None,
) -> None:
    """Trains `model` from `position` to the end of `epochs`, moving `position` along.

    Args:
        model: as `accelerator.prepare` gave it, like `optimizer`.
        batches: the training split.
        learning_rate: the rate at a progress from 0 to 1 of the whole stage.
        loss: of (outputs, labels, inputs), a scalar.
        first_epoch: number of the stage's first epoch in the order of the data, so that stages see different orders.
        compiled_batch: a smaller batch, such as an epoch's last one, does not go through what is compiled: it is not
            worth a compilation of its own, nor one for all sizes, which every step would then go through.
        graphs: replay the passes of batches of that size as a CUDA graph.
        begin_epoch: called before an epoch's first step, not when one is resumed in its middle.
        after_step: called after each step with the new position: reports, checkpoints.
        end_epoch: called after an epoch's last step, with `sums` of the whole epoch, before they are cleared.
    """
    steps = len(batches)
    passes = Passes(model, loss, accelerator)
    graphed = Graphed(passes, compiled_batch) if graphs else None
    position.sums = position.sums.to(accelerator.device)
    while position.epoch < epochs:
        if position.step == 0:
            begin_epoch(position.epoch)
        if graphed:
            graphed.renew()
        model.train()
        for x, y in batches.epoch(first_epoch + position.epoch, position.step):
            rate = learning_rate((position.epoch * steps + position.step) / (epochs * steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.compiler.set_stance("force_eager") if len(y) < compiled_batch else nullcontext():
                value, outputs = (graphed or passes)(x, y)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                correct = (outputs.argmax(1) == y).sum()
                samples = torch.full_like(correct, len(y))
                position.sums += torch.stack([value.double() * len(y), correct, samples])
            position.step += 1
            after_step(position)
        end_epoch(position)
        position.epoch, position.step = position.epoch + 1, 0
        position.sums = torch.zeros_like(position.sums)


def check_not_diverged(model: nn.Module, sums: Tensor) -> None:
    """Raises Diverged when the summed loss, a parameter or a statistic is NaN or infinite. Waits for the device."""
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    norms = torch._foreach_norm([*(p.detach() for p in model.parameters()), *statistics], 2)
    total = sums[0] + sum(norm.double() for norm in norms)
    if not math.isfinite(total.item()):
        raise Diverged(
            "the loss or a weight became NaN or infinite: lower the learning rate (train.lr), warm up for longer "
            "(train.warmup_epochs) or train in float32 (hardware.precision: fp32)"
        )


class Clock:
    """Says when something that is to be done every so many seconds is due."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last = time.monotonic()

    def due(self) -> bool:
        """True at most once in the interval."""
        now = time.monotonic()
        if now - self.last < self.seconds:
            return False
        self.last = now
        return True
