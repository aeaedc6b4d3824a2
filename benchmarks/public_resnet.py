"""ResNets for CIFAR-10 with shortcuts that pad, as of He et al. (2016), option A.

For the weights that https://github.com/akamaster/pytorch_resnet_cifar10 ships (BSD-2-Clause), in files such as
resnet20-12fca82f.th; images normalised by ImageNet's mean and deviation.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut that halves the image and pads the channels where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + shortcut)


class ResNet(nn.Module):
    """16, 32 and 64 channels of n blocks each."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = self._stage(16, 16, n), self._stage(16, 32, n), self._stage(32, 64, n)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, n: int) -> nn.Sequential:
        first = Block(inputs, outputs, outputs // inputs)
        return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(n - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def resnet20() -> nn.Module:
    """0.27 M parameters."""
    return ResNet(3)


def resnet56() -> nn.Module:
    """0.85 M parameters."""
    return ResNet(9)
