"""A detector whose backbone and head run in the engine, and whose boxes are made by torchvision as before.

    python examples/detection.py

The net is a Faster R-CNN with random weights. What a detector does between its nets depends on what it finds: anchors,
proposals, the choice among overlapping boxes. That stays in torch, and costs little.
"""

from collections import OrderedDict

import torch
import torchvision
from torch import Tensor, nn

import splore


class Compiled(nn.Module):
    """A part of a detector in the engine: it takes and gives what the part did, and plans new sizes when they come."""

    def __init__(self, part: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.out_channels = getattr(part, "out_channels", None)  # the detector asks its backbone
        self.engine = splore.compile(part, example)

    def forward(self, x: Tensor) -> Tensor | OrderedDict[str, Tensor]:
        return self.engine(x)


@torch.no_grad()
def main() -> None:
    """Compresses a detector, moves its parts into the engine, and compares what both find."""
    torch.manual_seed(0)
    detector = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=128, max_size=192
    ).eval()
    parts = nn.ModuleList([detector.backbone, detector.roi_heads.box_head])
    splore.decompose(parts, splore.Design(rank=0.05))
    splore.prune(parts, params=0.3)  # train before and after, as in examples/train.py

    x, regions = torch.rand(2, 3, 128, 192), torch.rand(16, detector.backbone.out_channels, 7, 7)
    backbone, head = Compiled(detector.backbone, x), Compiled(detector.roi_heads.box_head, regions)
    for name, found, expected in (
        *((f"map {level}", *each) for level, each in pairs(backbone(x), detector.backbone(x)).items()),
        ("head", head(regions), detector.roi_heads.box_head(regions)),
    ):
        error = float((found - expected).abs().max() / expected.abs().max())
        print(f"{name}: differs from torch by {error:.1e} of the largest number")
        assert error < 1e-4

    detector.backbone, detector.roi_heads.box_head = backbone, head
    for found in detector([torch.rand(3, 128, 160), torch.rand(3, 128, 192)]):
        print(f"{len(found['boxes'])} boxes")


def pairs(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The tensors of two dicts that have one name."""
    return {name: (a[name], b[name]) for name in b}


if __name__ == "__main__":
    main()
