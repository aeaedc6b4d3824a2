"""Weights in eight bits: a row of a weight is q s, q a signed byte from -127 to 127 and s the row's scale.

The scale is the largest magnitude over 127, rounded up to 16 significant bits. So q s and 127 s are exact in float32:
a weight that has been rounded is rounded to itself, and whoever sees only its numbers, the file or the engine, finds
its bytes and scales again. A row is all that one output channel has: of S and of A those of the channel, of B a
direction of L, of a dense weight its first axis.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from splore.design.layers import LowRankSparse

LARGEST = 127


def weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, int]]:
    """The weights of convolutions and linear layers: the layer's name and itself, the part's name, its rows."""
    for name, module in model.named_modules():
        if isinstance(module, LowRankSparse):
            for part, value in (("A", module.A), ("B", module.B), ("S", module.S)):
                if value is not None:
                    yield name, module, part, module.rank if part == "B" else outputs(module)
        elif isinstance(module, _ConvNd | nn.Linear) and not isinstance(module, _ConvTransposeNd):
            yield name, module, "weight", module.weight.shape[0]


def outputs(layer: LowRankSparse) -> int:
    """The output channels of a decomposed layer."""
    return layer.weight_shape[1 if layer.transposed else 0]


def scales(weight: Tensor, rows: int) -> Tensor:
    """The scale of each of so many rows of a weight, float32; 0 for a row of zeros."""
    exact = weight.detach().reshape(rows, -1).abs().amax(1).float() / LARGEST
    mantissa, exponent = torch.frexp(exact)
    return torch.ldexp((mantissa * 2**16).ceil(), exponent - 16)


def integers(weight: Tensor, scale: Tensor) -> Tensor:
    """q, int8, of the weight's shape, rounded to nearest and half to even."""
    rows = weight.detach().reshape(len(scale), -1)
    q = (rows / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round().clamp(-LARGEST, LARGEST)
    return q.to(torch.int8).view_as(weight)


def real(q: Tensor, scale: Tensor) -> Tensor:
    """q s in float32."""
    return (q.reshape(len(scale), -1).float() * scale[:, None]).view_as(q)


def rounded(weight: Tensor, rows: int) -> Tensor:
    """The nearest weight that eight bits hold, as values; the gradient passes by, as if nothing had been rounded."""
    scale = scales(weight, rows).clamp_min(torch.finfo(torch.float32).tiny)
    zero = torch.zeros(rows, dtype=torch.int32, device=weight.device)
    flat = weight.reshape(rows, -1)
    return torch.fake_quantize_per_channel_affine(flat, scale, zero, 0, -LARGEST, LARGEST).view_as(weight)


@torch.no_grad()
def round_weights(model: nn.Module) -> None:
    """Rounds all weights of convolutions and linear layers to eight bits, in place; they stay float32."""
    for _, module, part, rows in list(weights(model)):
        parameter = getattr(module, part)
        scale = scales(parameter, rows)
        parameter.copy_(real(integers(parameter, scale), scale))
