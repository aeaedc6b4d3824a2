"""Networks of a given structure with random weights: what a benchmark of speed needs of a trained one."""

from dataclasses import dataclass

import torch
from torch import nn

from splore.design.layers import LowRankSparseConv2d, LowRankSparseLinear
from splore.design.ranks import largest_useful_rank
from splore.vision import build

SIZES = {"vgg19": 32, "preactresnet56": 32, "resnet50": 224}  # pixels, unless --size says otherwise
NAMES = {"resnet50": "torchvision:resnet50"}


@dataclass(frozen=True)
class Structure:
    """The share of the dense network's parameters that is kept, and how much of that is in the low-rank part.

    `rank` is the rank of each layer, as far as it makes the layer smaller, or, below 1, the share of the layer's
    weights that A and B take. The sparse part takes what is left, with one density for all layers.
    """

    kept: float
    rank: float
    of_sparse: bool = False  # `kept` is the density of the sparse part instead
    block: int = 1  # neighbouring input channels that S keeps or cuts together

    def __post_init__(self) -> None:
        if not 0 < self.kept <= 1:
            raise ValueError(f"kept must lie between 0 and 1, found {self.kept}")
        if self.rank < 0 or (self.rank >= 1 and self.rank != int(self.rank)):
            raise ValueError(f"rank must be a whole number, or a share below 1, found {self.rank}")


@torch.no_grad()
def network(name: str, structure: Structure, seed: int = 0) -> tuple[nn.Module, float]:
    """The net in eval mode with random weights of this structure, and the share of parameters that it really keeps.

    Every linear layer and every ungrouped convolution is decomposed. Batch normalisations are given statistics that do
    something, and the weights a size at which values stay near one.
    """
    torch.manual_seed(seed)
    model = build(NAMES.get(name, name), 1000 if ":" in NAMES.get(name, name) else 10)
    dense_size = sum(parameter.numel() for parameter in model.parameters())
    wanted = structure.kept * dense_size
    layers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and getattr(module, "groups", 1) == 1
    }
    ranks = {path: _rank(structure.rank, *module.weight.flatten(1).shape) for path, module in layers.items()}
    rest = dense_size - sum(module.weight.numel() for module in layers.values())
    low_rank = sum(ranks[path] * sum(module.weight.flatten(1).shape) for path, module in layers.items())
    density = (wanted - rest - low_rank) / sum(module.weight.numel() for module in layers.values())
    if structure.of_sparse:
        density = structure.kept
    if density < 0:
        raise ValueError(
            f"the low-rank part alone keeps more than {structure.kept:.3g} of the parameters: lower the rank"
        )
    kept = rest
    for path, module in layers.items():
        layer = _layer(module, ranks[path], density, structure.block)
        kept += sum(part.numel() for part in (layer.A, layer.B) if part is not None) + int(layer.mask.sum())
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval(), kept / dense_size


def images(name: str, batch: int, size: int | None = None, seed: int = 0) -> torch.Tensor:
    """Random images (batch, 3, H, W) of the size that the net is for."""
    side = size or SIZES.get(name, 224)
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def _rank(rank: float, m: int, k: int) -> int:
    wanted = int(rank) if rank >= 1 else round(rank * m * k / (m + k))
    return min(wanted, largest_useful_rank((m, k)))


def _layer(
    dense: nn.Conv2d | nn.Linear, rank: int, density: float, block: int
) -> LowRankSparseConv2d | LowRankSparseLinear:
    """A random layer; each of its parts gives half of the variance."""
    layer = (LowRankSparseConv2d if isinstance(dense, nn.Conv2d) else LowRankSparseLinear)(dense, rank)
    m, k = layer.S.shape
    mask = _mask(m, dense.weight.shape[1], dense.weight[0, 0].numel(), density, block)
    A, B = torch.randn(m, rank) / max(1, rank) ** 0.5, torch.randn(rank, k) / k**0.5
    layer.set_parts(A, B, torch.randn(m, k) / max(1.0, density * k) ** 0.5, mask)
    return layer


def _mask(m: int, channels: int, taps: int, density: float, block: int) -> torch.Tensor:
    """A random mask (m, channels taps) of whole blocks, smaller ones at the edge: one output channel, so many input
    channels, one tap."""
    groups = -(-channels // block)
    kept = torch.zeros(m * groups * taps, dtype=torch.bool)
    kept[torch.randperm(len(kept))[: round(density * len(kept))]] = True
    entries = kept.view(m, groups, 1, taps).expand(m, groups, block, taps).reshape(m, groups * block, taps)
    return entries[:, :channels].reshape(m, channels * taps)
