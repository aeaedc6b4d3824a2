"""How well a network classifies."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splore.design.wrappers import check_average, is_average
from splore.forward import Epochs, batches_of, evaluating, run, split


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
    loader: Iterable | Epochs,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
    autocast: Callable[[], torch.autocast] | None = None,
) -> Score:
    """Classifies every sample of a split, in evaluation mode; every module's own mode is restored.

    Args:
        model: gives logits (N, classes); or a tuple that begins with them, or a dict with them at `logits` or first.
        loader: gives batches of inputs and labels (N,), as tuples or as dicts with the usual keys (see
            `splore.forward`); they are moved to the model's device.
        total: sums a tensor over all processes; each process has its own share of the split.
        autocast: gives a context of lower precision to run in.

    Raises:
        ValueError: the split is empty, or a batch or what the model returns is not as described; or the model is an
            average that was begun before a cut.
    """
    if is_average(model):
        check_average(model)
    sums: Tensor | None = None
    classes = 0
    with evaluating(model):
        for batch in batches_of(loader):
            inputs, labels = split(batch)
            with autocast() if autocast else nullcontext():
                logits = _logits(run(model, inputs))
            row, classes = _counts(logits.float(), labels), logits.shape[1]
            sums = row if sums is None else sums + row
    if sums is None:
        raise ValueError("there is no sample to evaluate on: the loader gave no batch")
    first, fifth, loss, samples = total(sums).tolist()
    return Score(100 * first / samples, 100 * fifth / samples if classes >= 10 else None, loss / samples, int(samples))


def _counts(logits: Tensor, labels: Tensor | None) -> Tensor:
    """How many samples are right, right among the best five, their summed loss, and their number."""
    if not isinstance(labels, Tensor) or labels.shape != logits.shape[:1] or labels.is_floating_point():
        found = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else str(labels)
        raise ValueError(
            f"expected labels, one whole number for each of the {len(logits)} samples of a batch, found {found:.80}: "
            "the loader is to give (inputs, labels), or dicts with a key such as 'label'"
        )
    labels = labels.to(logits.device)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    loss = F.cross_entropy(logits, labels.long(), reduction="sum")
    return torch.stack([best[:, 0].sum(), best.sum(), loss, loss.new_tensor(len(labels))]).double()


def _logits(outputs: object) -> Tensor:
    """The logits (N, classes) among what a model returned."""
    if isinstance(outputs, Mapping) and outputs:
        outputs = outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))
    elif isinstance(outputs, tuple | list) and outputs:
        outputs = outputs[0]
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        found = f"a tensor of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"expected a model that returns logits of shape (N, classes), found {found}")
    return outputs
