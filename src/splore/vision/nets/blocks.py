"""What the small nets of this folder share: their 3x3 convolution, their shortcut and their starting weights."""

from torch import nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A padded 3x3 convolution; without a bias, since a batch normalisation follows each."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """The projection on a shortcut whose shape changes."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


def blocks_per_stage(depth: int) -> int:
    """n of a CIFAR residual net of depth 6n + 2: three stages of n basic blocks. ValueError for any other depth."""
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"a CIFAR residual net has a depth of 6n + 2 (8, 14, 20, ...), found {depth}")
    return (depth - 2) // 6


def initialize(net: nn.Module) -> None:
    """Draw the weights that these nets start from, in place.

    Convolutions: N(0, 2 / fan_out), fan_out = out_channels * k * k (He et al. 2015, "Delving deep into rectifiers").
    Linear layers: N(0, 0.01^2) and no bias. Batch normalisations keep the scale 1 and the shift 0.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
