"""Plain nets of 3x3 convolutions: VGG-11, VGG-16 and VGG-19 for 32 x 32 images, and a small net for 8 x 8 digits.

VGG is that of Simonyan and Zisserman (2015) with batch normalisation and one linear layer.
"""

from collections import OrderedDict
from collections.abc import Iterable

from torch import Tensor, nn

POOL = 0
"""In the place of a width: a 2x2 max pool, which halves the image."""


class PlainNet(nn.Module):
    """3x3 convolutions, each with batch normalisation and ReLU, and max pools; the mean over the image; a linear layer.

    Args:
        layers: the name and the width of each convolution `conv{name}`, or `POOL`.
        num_classes: width of the output.
        in_channels: channels of the images (N, in_channels, H, W); every pool needs two pixels either way.
    """

    def __init__(self, layers: Iterable[tuple[str, int]], num_classes: int, in_channels: int) -> None:
        super().__init__()
        features: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for name, width in layers:
            if width == POOL:
                features[f"pool{name}"] = nn.MaxPool2d(2)
                continue
            features[f"conv{name}"] = conv3x3(channels, width)
            features[f"bn{name}"] = nn.BatchNorm2d(width)
            features[f"relu{name}"] = nn.ReLU(inplace=True)
            channels = width
        self.features = nn.Sequential(features)
        self.classifier = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to scores (N, num_classes)."""
        return self.classifier(self.features(x).mean((2, 3)))


def vgg11(num_classes: int = 10, in_channels: int = 3) -> PlainNet:
    """8 convolutions; 9.23 M parameters with ten classes."""
    return PlainNet(_vgg(1, 1, 2, 2, 2), num_classes, in_channels)


def vgg16(num_classes: int = 10, in_channels: int = 3) -> PlainNet:
    """13 convolutions; 14.72 M parameters with ten classes."""
    return PlainNet(_vgg(2, 2, 3, 3, 3), num_classes, in_channels)


def vgg19(num_classes: int = 10, in_channels: int = 3) -> PlainNet:
    """16 convolutions; 20.04 M parameters with ten classes."""
    return PlainNet(_vgg(2, 2, 4, 4, 4), num_classes, in_channels)


def digits_cnn(num_classes: int = 10, in_channels: int = 1) -> PlainNet:
    """Wide enough for 8 x 8 digits that most of it can go: 0.37 M parameters with ten classes and one channel."""
    return PlainNet((("1", 64), ("2", 128), ("", POOL), ("3", 128), ("4", 128)), num_classes, in_channels)


def _vgg(*convs: int) -> list[tuple[str, int]]:
    """Five stages of so many convolutions, each ended by a pool."""
    layers = []
    for stage, (width, count) in enumerate(zip((64, 128, 256, 512, 512), convs, strict=True), start=1):
        layers += [(f"{stage}_{i}", width) for i in range(1, count + 1)] + [(f"{stage}", POOL)]
    return layers


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A padded 3x3 convolution; without a bias, since a batch normalisation follows each."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def initialize(net: nn.Module) -> None:
    """Draw the weights that the nets of this folder start from, in place.

    Convolutions: N(0, 2 / fan_out), fan_out = out_channels * k * k (He et al. 2015, "Delving deep into rectifiers").
    Linear layers: N(0, 0.01^2) and no bias. Batch normalisations keep the scale 1 and the shift 0.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
