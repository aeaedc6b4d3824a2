"""What a training step minimises: the cross entropy, and with a teacher its softened outputs too."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of outputs (N, classes), labels (N,) and images (N, C, H, W): a scalar."""


def cross_entropy(smoothing: float) -> Loss:
    """The mean cross entropy in nats, with a share of the target spread over all classes."""
    return lambda outputs, labels, images: F.cross_entropy(outputs, labels, label_smoothing=smoothing)


def distilled(
    loss: Loss, teacher: nn.Module, share: float, temperature: float, autocast: Callable[[], torch.autocast]
) -> Loss:
    """(1 - share) of `loss`, and `share` of the divergence from the teacher's softened outputs (Hinton et al., 2015).

    The teacher is put into eval mode; `autocast` gives the context that it runs in.
    """
    teacher.eval().requires_grad_(False)

    def both(outputs: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad(), autocast():
            target = teacher(images)
        soft = F.kl_div(
            F.log_softmax(outputs / temperature, 1),
            F.log_softmax(target.float() / temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - share) * loss(outputs, labels, images) + share * temperature**2 * soft

    return both
