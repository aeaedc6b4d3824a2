"""What L and S are like in a network that is being trained: figures for the displays, not the exact cost."""

import torch
from torch import nn

from splore.design.layers import decomposed_layers, parameter_counts


@torch.no_grad()
def kept_share(model: nn.Module) -> float:
    """Parameters that are not a zero of S, over those of the dense net; waits for the device once."""
    without, dense = parameter_counts(model)
    return (without + int(sum(layer.nnz for layer in decomposed_layers(model).values()))) / dense


@torch.no_grad()
def layer_scalars(model: nn.Module) -> dict[str, float]:
    """The rank of L, and the density and energy of S, by layer, under names that trackers group."""
    scalars: dict[str, float] = {}
    for name, layer in decomposed_layers(model).items():
        scalars[f"rank/{name}"] = layer.rank
        if layer.S is not None:
            scalars[f"density/{name}"] = float(layer.nnz) / layer.S.numel()
            scalars[f"energy/{name}"] = float(layer.S.square().sum())
    return scalars
