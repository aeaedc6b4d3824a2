"""The layers whose weight is learned as W = A·B + S, as `splore.design.low_rank_sparse` says.

The forward pass composes W and runs one convolution or matrix product: the same function as two branches, at the cost
of one small matrix product more than the dense layer.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from splore.design.low_rank_sparse import LowRankSparse
from splore.design.matrix import Scheme
from splore.design.wrappers import check_here, check_not_flat

__all__ = ["LowRankSparse", "LowRankSparseConv2d", "LowRankSparseLinear", "decomposed_layers", "parameter_counts"]


class LowRankSparseConv2d(LowRankSparse):
    """`nn.Conv2d` with the weight W = A·B + S.

    Input (N, c, H, W), output (N, n, H', W') as `nn.Conv2d` gives them, with the same strides, paddings ('same' and
    'valid' too), padding modes, dilations and groups.
    """

    def __init__(
        self, dense: nn.Conv2d, rank: int, sparse: bool = True, scheme: Scheme = Scheme.CHANNEL, block: int = 1
    ) -> None:
        super().__init__(dense, rank, sparse, scheme, block)
        self.in_channels, self.out_channels = dense.in_channels, dense.out_channels
        self.kernel_size, self.stride, self.dilation = dense.kernel_size, dense.stride, dense.dilation
        self.padding, self.padding_mode, self.groups = dense.padding, dense.padding_mode, dense.groups
        self._explicit_padding = explicit_padding(dense.padding, dense.kernel_size, dense.dilation)

    def forward(self, x: Tensor) -> Tensor:
        if self.shell is not None:
            return super().forward(x)
        return self._conv_forward(x, self.compose(), self.bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode == "zeros":
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        x = F.pad(x, self._explicit_padding, mode=self.padding_mode)
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)

    def _dense(self) -> nn.Conv2d:
        geometry: dict[str, Any] = {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "padding_mode": self.padding_mode,
        }
        return nn.Conv2d(self.in_channels, self.out_channels, **geometry, device="meta")

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, {self._describe()}"
        )


class LowRankSparseLinear(LowRankSparse):
    """`nn.Linear` with the weight W = A·B + S: input (..., k), output (..., n)."""

    def __init__(
        self, dense: nn.Linear, rank: int, sparse: bool = True, scheme: Scheme = Scheme.CHANNEL, block: int = 1
    ) -> None:
        super().__init__(dense, rank, sparse, scheme, block)
        self.in_features, self.out_features = dense.in_features, dense.out_features

    def forward(self, x: Tensor) -> Tensor:
        if self.shell is not None:
            return super().forward(x)
        return F.linear(x, self.compose(), self.bias)

    def _dense(self) -> nn.Linear:
        return nn.Linear(self.in_features, self.out_features, device="meta")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._describe()}"


def layer_of(dense: nn.Linear | _ConvNd, rank: int, sparse: bool, scheme: Scheme, block: int = 1) -> LowRankSparse:
    """The layer that takes the place of a dense one, its parts still zero."""
    if isinstance(dense, nn.Conv2d):
        return LowRankSparseConv2d(dense, rank, sparse, scheme, block)
    if isinstance(dense, nn.Linear):
        return LowRankSparseLinear(dense, rank, sparse, scheme, block)
    return LowRankSparse(dense, rank, sparse, scheme, block)


def decomposed_layers(model: nn.Module) -> dict[str, LowRankSparse]:
    """The decomposed layers of a model by name, each once, in the model's order.

    Raises:
        ValueError: the model is, or holds, one that FSDP1 has wrapped, or its parameters are shards of DeepSpeed's.
    """
    found = {}
    for name, module in model.named_modules():
        check_not_flat(module)
        if isinstance(module, LowRankSparse):
            check_here(name, module.reference)
            found[name] = module
    return found


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


def explicit_padding(padding: Sequence[int] | int | str, sides: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """A convolution's padding as `F.pad` takes it, last dimension first; 'same' puts an odd one at the end, as PyTorch.

    `sides` are those of the kernel.
    """
    if padding == "same":
        widths = [d * (k - 1) for d, k in zip(dilation, sides, strict=True)]
        return [side for width in reversed(widths) for side in (width // 2, width - width // 2)]
    each = [0 if isinstance(padding, str) else padding] * len(sides) if isinstance(padding, str | int) else padding
    return [side for side in reversed(each) for _ in range(2)]
