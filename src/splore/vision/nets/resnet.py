"""Residual nets for 32 x 32 images (He et al. 2016, "Deep residual learning for image recognition", section 4.2)."""

from torch import Tensor, nn
from torch.nn.functional import relu

from splore.vision.nets.blocks import blocks_per_stage, conv1x1, conv3x3, initialize


class BasicBlock(nn.Module):
    """y = relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)); the shortcut: a 1x1 convolution if the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        y = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem of 16 channels, three stages of n blocks with 16, 32 and 64 channels, the mean, one linear layer.

    Args:
        depth: 6n + 2 weighted layers.
        num_classes: width of the output.
        in_channels: channels of the images.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        n = blocks_per_stage(depth)
        self.conv1 = conv3x3(in_channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.stage1 = _stage(16, 16, n, stride=1)
        self.stage2 = _stage(16, 32, n, stride=2)
        self.stage3 = _stage(32, 64, n, stride=2)
        self.linear = nn.Linear(64, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to scores (N, num_classes)."""
        x = relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.linear(x.mean((2, 3)))


def _stage(in_channels: int, out_channels: int, n: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(n - 1)))


def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """0.27 M parameters with ten classes."""
    return ResNet(20, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """0.86 M parameters with ten classes."""
    return ResNet(56, num_classes, in_channels)
