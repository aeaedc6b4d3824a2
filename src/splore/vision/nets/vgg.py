"""VGG-16 and VGG-19 for 32 x 32 images (Simonyan and Zisserman 2015), with batch normalisation and one linear layer."""

from collections import OrderedDict

from torch import Tensor, nn

from splore.vision.nets.blocks import conv3x3, initialize

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five stages; a max pool ends each and halves the image."""


class VGG(nn.Module):
    """Stages of 3x3 convolution, batch normalisation and ReLU, each ended by a 2x2 max pool; then one linear layer.

    Args:
        convs: convolutions in each of the five stages.
        num_classes: width of the output.
        in_channels: channels of the images.

    The images (N, in_channels, H, W) need H and W of at least 32; larger ones are averaged before the linear layer.
    """

    def __init__(self, convs: tuple[int, ...], num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for stage, (width, count) in enumerate(zip(WIDTHS, convs, strict=True), start=1):
            for i in range(1, count + 1):
                layers[f"conv{stage}_{i}"] = conv3x3(channels, width)
                layers[f"bn{stage}_{i}"] = nn.BatchNorm2d(width)
                layers[f"relu{stage}_{i}"] = nn.ReLU(inplace=True)
                channels = width
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        self.features = nn.Sequential(layers)
        self.classifier = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to scores (N, num_classes)."""
        return self.classifier(self.features(x).mean((2, 3)))


def vgg16(num_classes: int = 10, in_channels: int = 3) -> VGG:
    """13 convolutions; 14.72 M parameters with ten classes."""
    return VGG((2, 2, 3, 3, 3), num_classes, in_channels)


def vgg19(num_classes: int = 10, in_channels: int = 3) -> VGG:
    """16 convolutions; 20.04 M parameters with ten classes."""
    return VGG((2, 2, 4, 4, 4), num_classes, in_channels)
