"""A small net for the 8 x 8 handwritten digits, wide enough that most of it can go."""

from collections import OrderedDict

from torch import Tensor, nn

from splore.vision.nets.blocks import conv3x3, initialize


class DigitsCNN(nn.Module):
    """Four 3x3 convolutions (64, 128, 128, 128) with batch normalisation and ReLU, a max pool after the second, the
    mean over the image, one linear layer.

    Args:
        num_classes: width of the output.
        in_channels: channels of the images (N, in_channels, H, W), H and W of at least 2.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for i, width in enumerate((64, 128, 128, 128), start=1):
            layers[f"conv{i}"] = conv3x3(channels, width)
            layers[f"bn{i}"] = nn.BatchNorm2d(width)
            layers[f"relu{i}"] = nn.ReLU(inplace=True)
            if i == 2:
                layers["pool"] = nn.MaxPool2d(2)
            channels = width
        self.features = nn.Sequential(layers)
        self.classifier = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to scores (N, num_classes)."""
        return self.classifier(self.features(x).mean((2, 3)))


def digits_cnn(num_classes: int = 10, in_channels: int = 1) -> DigitsCNN:
    """0.37 M parameters with ten classes and one channel."""
    return DigitsCNN(num_classes, in_channels)
