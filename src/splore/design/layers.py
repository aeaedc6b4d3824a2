"""The layers whose weight is learned as W = A·B + S, as `splore.design.low_rank_sparse` says.

The forward pass composes W and runs one convolution or matrix product: the same function as two branches, at the cost
of one small matrix product more than the dense layer.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _reverse_repeat_tuple

from splore.design.low_rank_sparse import LowRankSparse
from splore.design.matrix import Scheme

__all__ = ["LowRankSparse", "LowRankSparseConv2d", "LowRankSparseLinear", "decomposed_layers", "parameter_counts"]


class LowRankSparseConv2d(LowRankSparse):
    """`nn.Conv2d` with the weight W = A·B + S.

    Input (N, c, H, W), output (N, n, H', W') as `nn.Conv2d` gives them, with the same strides, paddings ('same' and
    'valid' too), padding modes and dilations. Grouped convolutions are not offered: see `splore.decompose`.
    """

    def __init__(
        self, dense: nn.Conv2d, rank: int, sparse: bool = True, scheme: Scheme = Scheme.CHANNEL, block: int = 1
    ) -> None:
        if dense.groups != 1:
            raise ValueError(f"a grouped convolution can't be decomposed, found groups={dense.groups}")
        super().__init__(dense, rank, sparse, scheme, block)
        self.in_channels, self.out_channels = dense.in_channels, dense.out_channels
        self.kernel_size, self.stride, self.dilation = dense.kernel_size, dense.stride, dense.dilation
        self.padding, self.padding_mode, self.groups = dense.padding, dense.padding_mode, 1
        self._explicit_padding = explicit_padding(dense)

    def forward(self, x: Tensor) -> Tensor:
        if self.padding_mode == "zeros":
            return F.conv2d(x, self.compose(), self.bias, self.stride, self.padding, self.dilation)
        x = F.pad(x, self._explicit_padding, mode=self.padding_mode)
        return F.conv2d(x, self.compose(), self.bias, self.stride, 0, self.dilation)

    def to_dense(self) -> nn.Conv2d:
        """An `nn.Conv2d` that computes the same function; its weight is A·B + S, rounded once."""
        geometry: dict[str, Any] = {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "padding_mode": self.padding_mode,
        }
        place: dict[str, Any] = {"device": self.reference.device, "dtype": self.reference.dtype}
        dense = nn.Conv2d(self.in_channels, self.out_channels, bias=self.bias is not None, **geometry, **place)
        return _filled(dense, self)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, {self._describe()}"
        )


class LowRankSparseLinear(LowRankSparse):
    """`nn.Linear` with the weight W = A·B + S: input (..., k), output (..., n)."""

    def __init__(
        self, dense: nn.Linear, rank: int, sparse: bool = True, scheme: Scheme = Scheme.CHANNEL, block: int = 1
    ) -> None:
        super().__init__(dense, rank, sparse, scheme, block)
        self.in_features, self.out_features = dense.in_features, dense.out_features

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.compose(), self.bias)

    def to_dense(self) -> nn.Linear:
        """An `nn.Linear` that computes the same function; its weight is A·B + S, rounded once."""
        place: dict[str, Any] = {"device": self.reference.device, "dtype": self.reference.dtype}
        dense = nn.Linear(self.in_features, self.out_features, self.bias is not None, **place)
        return _filled(dense, self)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._describe()}"


def decomposed_layers(model: nn.Module) -> dict[str, LowRankSparse]:
    """The decomposed layers of a model by name, each once, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankSparse)}


def check_finite(model: nn.Module) -> None:
    """Raises ValueError, with the place, for NaN or infinity in a decomposed layer: no cut can weigh such an entry."""
    for name, layer in decomposed_layers(model).items():
        for part, values in layer.named_parameters():
            if not values.isfinite().all():
                count = int((~values.isfinite()).sum())
                raise ValueError(
                    f"expected finite numbers, found NaN or infinity in {count:,} of {values.numel():,} entries of "
                    f"{part} in {name!r}: go back to the last good checkpoint"
                )


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Parameters that `model` holds without any entry of S, and those of the dense net that it stands for."""
    layers = decomposed_layers(model).values()
    sparse = sum(layer.S.numel() for layer in layers if layer.S is not None)
    factors = sum(part.numel() for layer in layers for part in layer.factors)
    without = sum(p.numel() for p in model.parameters()) - sparse
    return without, without - factors + sum(math.prod(layer.weight_shape) for layer in layers)


def explicit_padding(conv: nn.Conv2d) -> list[int]:
    """The padding as `F.pad` takes it, last dimension first; 'same' puts an odd one at the end, as `nn.Conv2d` does."""
    if conv.padding == "valid":
        return [0, 0, 0, 0]
    if conv.padding == "same":
        widths = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [side for width in reversed(widths) for side in (width // 2, width - width // 2)]
    return list(_reverse_repeat_tuple(conv.padding, 2))


@torch.no_grad()
def _filled(dense, layer: LowRankSparse):  # noqa: ANN001, ANN202
    dense.weight.copy_(layer.compose())
    dense.weight.requires_grad_(layer.reference.requires_grad)
    if layer.bias is not None:
        dense.bias.copy_(layer.bias)
        dense.bias.requires_grad_(layer.bias.requires_grad)
    return dense.train(layer.training)
