"""The nets of the matrix, each with the image that it is tried on: as small as it takes, for the time's sake."""

import torch
from torch import nn

from splore.vision import build

CLASSES = 10


class UNet(nn.Module):
    """Two levels down and up again, by transposed convolutions and skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_double(3, 16), _double(16, 32), _double(32, 64)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)])
        self.join = nn.ModuleList([_double(64, 32), _double(32, 16)])
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down[0](x)
        b = self.down[1](nn.functional.max_pool2d(a, 2))
        c = self.down[2](nn.functional.max_pool2d(b, 2))
        b = self.join[0](torch.cat([self.up[0](c), b], 1))
        return self.head(self.join[1](torch.cat([self.up[1](b), a], 1)))


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers = (nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
    again = (nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
    return nn.Sequential(*layers, *again)


def super_resolution() -> nn.Module:
    """Sub-pixel convolution: three times as high and wide (ESPCN)."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 5, padding=2), nn.Tanh(), nn.Conv2d(64, 32, 3, padding=1), nn.Tanh(),
        nn.Conv2d(32, 27, 3, padding=1), nn.PixelShuffle(3),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, CLASSES)
    )


class Segmenter(nn.Module):
    """torchvision's LR-ASPP on MobileNetV3: a dict with one map."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.segmentation import lraspp_mobilenet_v3_large

        self.net = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)["out"]


OWN = {"unet": UNet, "super_resolution": super_resolution, "mlp": mlp, "lraspp": Segmenter}

S, M, L = (3, 32, 32), (3, 64, 64), (3, 96, 96)
NETS: dict[str, tuple[int, int, int]] = {
    "digits_cnn": (1, 8, 8), "vgg16": S, "vgg19": S, "resnet20": S, "resnet56": S, "preactresnet20": S,
    "preactresnet56": S, "mlp": (1, 28, 28), "unet": M, "super_resolution": (3, 48, 48), "lraspp": M,
    **{
        f"torchvision:{name}": M
        for name in (
            "alexnet", "vgg11", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "squeezenet1_1",
            "densenet121", "googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5",
            "efficientnet_b0", "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny", "swin_t", "swin_v2_t",
        )
    },
    "torchvision:inception_v3": L, "torchvision:vit_b_32": (3, 224, 224), "torchvision:maxvit_t": (3, 224, 224),
    **{
        f"timm:{name}": M
        for name in (
            "resnet10t", "resnet26d", "seresnet18", "mobilenetv4_conv_small", "efficientnet_lite0", "ghostnet_100",
            "hardcorenas_a", "rexnet_100", "repvgg_a0", "dla34", "hrnet_w18_small", "poolformer_s12", "tinynet_e",
            "lcnet_050", "convnextv2_atto", "mobilevit_xxs", "edgenext_xx_small", "densenet121", "cspresnet50",
        )
    },
    **{
        f"timm:{name}": (3, 224, 224)
        for name in (
            "vit_tiny_patch16_224", "deit_tiny_patch16_224", "resmlp_12_224", "gmlp_s16_224", "mixer_s32_224",
            "levit_128s", "pit_ti_224",
        )
    },
}  # fmt: skip


def build_net(name: str) -> nn.Module:
    """The net with random weights; batch normalisations have statistics that do something, and what would start as
    zeros, as the last layer of some transformers, does not."""
    model = OWN[name]() if name in OWN else build(name, CLASSES, NETS[name][0])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model
