"""A data set and a net of your own for `splore run examples/own_recipe.yaml`; both are named there as module:function.

The command looks for modules in the folder that it is called from, and among those that are installed.
"""

import torch
from torch import Tensor, nn


class Stripes:
    """Grey images (1, 16, 16) of stripes in one of four directions, under noise; drawn from a seed, never stored.

    A run needs of a map-style data set a length, pairs of an image (a normalised float tensor) and a label, and on
    the training split the names of the classes.
    """

    classes = ("horizontal", "vertical", "rising", "falling")

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.seed = samples, seed

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        draw = torch.Generator().manual_seed(self.seed + index)
        label, phase = index % 4, 6.28 * torch.rand((), generator=draw)
        y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        along = (y, x, x + y, x - y)[label]
        image = torch.sin(along + phase) + torch.randn(16, 16, generator=draw)
        return image.unsqueeze(0), label


def stripes() -> tuple[Stripes, Stripes]:
    """The training and the test split. A parameter `root`, were there one, would be given data.root."""
    return Stripes(1024, seed=0), Stripes(256, seed=1_000_000)


def net(num_classes: int, in_channels: int) -> nn.Module:
    """Three convolutions and a linear layer; the arguments are those that a run offers to whoever has them."""
    widths, layers = (in_channels, 16, 32, 64), []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * widths[-1], num_classes))
