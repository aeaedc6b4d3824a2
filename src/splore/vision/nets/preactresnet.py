"""Pre-activation residual nets for 32 x 32 images (He et al. 2016, "Identity mappings in deep residual networks")."""

from torch import Tensor, nn
from torch.nn.functional import relu

from splore.vision.nets.blocks import blocks_per_stage, conv1x1, conv3x3, initialize


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
        self.shortcut = conv1x1(in_channels, out_channels, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        a = relu(self.bn1(x))
        y = self.conv2(relu(self.bn2(self.conv1(a))))
        return y + (x if self.shortcut is None else self.shortcut(a))


class PreActResNet(nn.Module):
    """A stem of 16 channels, three stages of n blocks with 16, 32 and 64 channels, a last activation, a linear layer.

    Args:
        depth: 6n + 2 weighted layers.
        num_classes: width of the output.
        in_channels: channels of the images.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        n = blocks_per_stage(depth)
        self.conv1 = conv3x3(in_channels, 16)
        self.stage1 = _stage(16, 16, n, stride=1)
        self.stage2 = _stage(16, 32, n, stride=2)
        self.stage3 = _stage(32, 64, n, stride=2)
        self.bn = nn.BatchNorm2d(64)
        self.linear = nn.Linear(64, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to scores (N, num_classes)."""
        x = self.stage3(self.stage2(self.stage1(self.conv1(x))))
        return self.linear(relu(self.bn(x)).mean((2, 3)))


def _stage(in_channels: int, out_channels: int, n: int, stride: int) -> nn.Sequential:
    first = PreActBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(PreActBlock(out_channels, out_channels, 1) for _ in range(n - 1)))


def preactresnet20(num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """0.27 M parameters with ten classes."""
    return PreActResNet(20, num_classes, in_channels)


def preactresnet56(num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """0.86 M parameters with ten classes."""
    return PreActResNet(56, num_classes, in_channels)


def preactresnet110(num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """1.73 M parameters with ten classes."""
    return PreActResNet(110, num_classes, in_channels)
