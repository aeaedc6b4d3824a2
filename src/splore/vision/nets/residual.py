"""Residual nets for 32 x 32 images: three stages of n blocks with 16, 32 and 64 channels, and 6n + 2 weighted layers.

`ResNet` is that of He et al. (2016), "Deep residual learning for image recognition", section 4.2, with a 1x1
convolution on shortcuts whose shape changes; `PreActResNet` that of He et al. (2016), "Identity mappings in deep
residual networks".
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from splore.vision.nets.plain import conv3x3, initialize


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
            self.shortcut = nn.Sequential(_conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        y = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class PreActBlock(nn.Module):
    """y = conv(relu(bn(conv(a)))) + x with a = relu(bn(x)): nothing stands on the path that is added to.

    Where the shape changes, a 1x1 convolution of `a` takes the place of x.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = _conv1x1(in_channels, out_channels, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        a = relu(self.bn1(x))
        y = self.conv2(relu(self.bn2(self.conv1(a))))
        return y + (x if self.shortcut is None else self.shortcut(a))


class ResNet(nn.Module):
    """A stem of 16 channels, the stages, the mean, one linear layer: `depth` weighted layers."""

    def __init__(self, depth: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.stage1, self.stage2, self.stage3 = _stages(BasicBlock, depth)
        self.linear = nn.Linear(64, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to scores (N, num_classes)."""
        x = self.stage1(relu(self.bn1(self.conv1(x))))
        return self.linear(self.stage3(self.stage2(x)).mean((2, 3)))


class PreActResNet(nn.Module):
    """A stem of 16 channels, the stages, a last activation, the mean, one linear layer: `depth` weighted layers."""

    def __init__(self, depth: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, 16)
        self.stage1, self.stage2, self.stage3 = _stages(PreActBlock, depth)
        self.bn = nn.BatchNorm2d(64)
        self.linear = nn.Linear(64, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to scores (N, num_classes)."""
        x = self.stage3(self.stage2(self.stage1(self.conv1(x))))
        return self.linear(relu(self.bn(x)).mean((2, 3)))


def _stages(block: type[BasicBlock] | type[PreActBlock], depth: int) -> list[nn.Sequential]:
    """The three stages of a net of depth 6n + 2, n blocks each; ValueError for any other depth."""
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"a CIFAR residual net has a depth of 6n + 2 (8, 14, 20, ...), found {depth}")
    more = (depth - 2) // 6 - 1
    return [
        nn.Sequential(block(before, width, stride), *(block(width, width, 1) for _ in range(more)))
        for before, width, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
    ]


def _conv1x1(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    """The projection on a shortcut whose shape changes."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """0.27 M parameters with ten classes."""
    return ResNet(20, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """0.86 M parameters with ten classes."""
    return ResNet(56, num_classes, in_channels)


def preactresnet20(num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """0.27 M parameters with ten classes."""
    return PreActResNet(20, num_classes, in_channels)


def preactresnet56(num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """0.86 M parameters with ten classes."""
    return PreActResNet(56, num_classes, in_channels)


def preactresnet110(num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """1.73 M parameters with ten classes."""
    return PreActResNet(110, num_classes, in_channels)
