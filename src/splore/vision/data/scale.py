"""The normalisation of pixel values, and the values that are usual."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """Normalisation of pixel values as they are stored: (pixel - mean) / std for each channel."""

    mean: tuple[float, ...]
    """One for each channel, or one for all."""
    std: tuple[float, ...]

    def factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(factor, shift), each (C, 1, 1): pixel * factor - shift is the normalised value."""
        mean = torch.tensor(self.mean, dtype=torch.float64).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float64).view(-1, 1, 1)
        return (1 / std).float().to(device), (mean / std).float().to(device)


def pixel_scale(mean: tuple[float, ...], std: tuple[float, ...]) -> Scale:
    """The normalisation of 8-bit pixels by a mean and a deviation given for pixels in 0 ... 1, as is usual."""
    return Scale(tuple(255 * value for value in mean), tuple(255 * value for value in std))


IMAGENET_SCALE = pixel_scale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY_SCALE = pixel_scale((0.449,), (0.226,))
CIFAR_SCALES = {
    "cifar10": pixel_scale((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": pixel_scale((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
