"""How well a network classifies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Score:
    """Accuracy over a split, each sample counted once.

    Attributes:
        accuracy: top-1 in %.
        top5: top-5 in %, or None with fewer than ten classes.
        loss: mean cross entropy in nats.
        samples: how many samples were seen.
    """

    accuracy: float
    top5: float | None
    loss: float
    samples: int


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Any,  # noqa: ANN401
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
    autocast: Callable[[], torch.autocast] | None = None,
) -> Score:
    """Classifies every sample of a split; the model's training mode is restored.

    Args:
        total: sums a tensor over all processes; each process has its own share of the split.
        autocast: gives a context of lower precision to run in.

    Raises:
        ValueError: the split is empty.
    """
    training = model.training
    model.eval()
    sums: Tensor | None = None
    for x, y in batches.epoch(0):
        if autocast is None:
            outputs = model(x).float()
        else:
            with autocast():
                outputs = model(x)
            outputs = outputs.float()
        best = outputs.topk(min(5, outputs.shape[1]), dim=1).indices == y[:, None]
        loss = F.cross_entropy(outputs, y, reduction="sum")
        row = torch.stack([best[:, 0].sum(), best.sum(), loss, loss.new_tensor(len(y))]).double()
        sums = row if sums is None else sums + row
        classes = outputs.shape[1]
    model.train(training)
    if sums is None:
        raise ValueError("there is no sample to evaluate on")
    first, fifth, loss, samples = total(sums).tolist()
    return Score(100 * first / samples, 100 * fifth / samples if classes >= 10 else None, loss / samples, int(samples))
