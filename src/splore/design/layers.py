"""The layers whose weight is learned as W = A·B + S.

With m x k the matrix of the weight (see `splore.design.matrix`):

- `A` (m, r) and `B` (r, k): the low-rank part L = A·B; rank 0 means that there is none;
- `S` (m, k): the sparse part, or None for a layer that is low-rank only;
- `mask` (m, k), bool, stored with the state: where S may be non-zero. It is never inferred from S.

The forward pass composes W and runs one convolution or matrix product: the same function as two branches, at the cost
of one small matrix product more than the dense layer.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _reverse_repeat_tuple

from splore.design.matrix import Scheme, fold, matrix_shape


class LowRankSparse(nn.Module):
    """A layer with the weight W = A·B + S; what the convolution and the linear layer share.

    Build one from a dense layer with `LowRankSparseConv2d.like` or `LowRankSparseLinear.like`; `splore.decompose` does
    so for a whole network.
    """

    A: nn.Parameter
    B: nn.Parameter
    S: nn.Parameter  # None, like its mask, in a layer that is low-rank only
    mask: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        dense: nn.Conv2d | nn.Linear,
        rank: int,
        sparse: bool,
        scheme: Scheme,
    ) -> None:
        super().__init__()
        weight = dense.weight
        self.scheme = scheme
        self.weight_shape = tuple(weight.shape)
        m, k = matrix_shape(weight.shape, scheme)
        if not 0 <= rank <= min(m, k):
            raise ValueError(f"rank must lie between 0 and {min(m, k)} for a {m} x {k} matrix, found {rank}")
        if rank == 0 and not sparse:
            raise ValueError(
                "a layer of rank 0 without a sparse part has no weight: give a rank or keep the sparse part"
            )
        like: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
        self.A = nn.Parameter(torch.zeros(m, rank, **like))
        self.B = nn.Parameter(torch.zeros(rank, k, **like))
        if sparse:
            self.S = nn.Parameter(torch.zeros(m, k, **like))
            self.register_buffer("mask", torch.ones(m, k, dtype=torch.bool, device=weight.device))
        else:
            self.register_parameter("S", None)
            self.register_buffer("mask", None)
        for part in self.parameters():
            part.requires_grad_(weight.requires_grad)  # a frozen layer stays frozen
        self.register_parameter("bias", dense.bias)  # type: ignore[arg-type]
        self.train(dense.training)

    @property
    def rank(self) -> int:
        """r, the rank that the low-rank part can have."""
        return self.A.shape[1]

    @property
    def low_rank(self) -> Tensor:
        """L = A·B as a matrix (m, k)."""
        return self.A @ self.B

    @property
    def matrix(self) -> Tensor:
        """A·B + S as a matrix (m, k)."""
        return self.A @ self.B if self.S is None else torch.addmm(self.S, self.A, self.B)

    @property
    def weight(self) -> Tensor:
        """W = A·B + S in the shape of the dense layer's weight; differentiable."""
        return fold(self.matrix, self.weight_shape, self.scheme)

    @torch.no_grad()
    def set_parts(self, A: Tensor, B: Tensor, S: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Replaces A (m, r), B (r, k) and, where the layer has them, S and its mask (m, k). The rank may change."""
        m, k = matrix_shape(self.weight_shape, self.scheme)
        if A.shape[0] != m or B.shape[1] != k or A.shape[1] != B.shape[0]:
            raise ValueError(
                f"expected A ({m}, r) and B (r, {k}) with one r, found {tuple(A.shape)} and {tuple(B.shape)}"
            )
        self._resize(A.shape[1])
        self.A.copy_(A)
        self.B.copy_(B)
        if S is not None:
            if self.S is None:
                raise ValueError("this layer has no sparse part")
            self.S.copy_(S)
            if mask is not None:
                self.mask.copy_(mask)
                self.S.mul_(self.mask)

    def _resize(self, rank: int) -> None:
        """Gives A and B the places for another rank; nothing happens where they have it."""
        if rank != self.rank:
            m, k = matrix_shape(self.weight_shape, self.scheme)
            self.A = nn.Parameter(self.A.new_empty(m, rank), requires_grad=self.A.requires_grad)
            self.B = nn.Parameter(self.B.new_empty(rank, k), requires_grad=self.B.requires_grad)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:  # noqa: ANN001, ANN002
        # The rank is part of the state: a layer whose singular values were cut loads into one that was not.
        A, B = state_dict.get(prefix + "A"), state_dict.get(prefix + "B")
        if A is not None and B is not None and A.dim() == 2 and A.shape != self.A.shape:
            m, k = matrix_shape(self.weight_shape, self.scheme)
            if A.shape[0] == m and B.shape == (A.shape[1], k):
                self._resize(A.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _describe(self) -> str:
        sparse = "" if self.S is None else ", sparse"
        return f"rank={self.rank}{sparse}, scheme={self.scheme.value}, bias={self.bias is not None}"


class LowRankSparseConv2d(LowRankSparse):
    """`nn.Conv2d` with the weight W = A·B + S.

    Input (N, c, H, W), output (N, n, H', W') as `nn.Conv2d` gives them, with the same strides, paddings ('same' and
    'valid' too), padding modes and dilations. Grouped convolutions are not offered: see `splore.decompose`.
    """

    def __init__(self, dense: nn.Conv2d, rank: int, sparse: bool = True, scheme: Scheme = Scheme.CHANNEL) -> None:
        if dense.groups != 1:
            raise ValueError(f"a grouped convolution can't be decomposed, found groups={dense.groups}")
        super().__init__(dense, rank, sparse, scheme)
        self.in_channels, self.out_channels = dense.in_channels, dense.out_channels
        self.kernel_size, self.stride, self.dilation = dense.kernel_size, dense.stride, dense.dilation
        self.padding, self.padding_mode, self.groups = dense.padding, dense.padding_mode, 1
        self._explicit_padding = _explicit_padding(dense)

    def forward(self, x: Tensor) -> Tensor:
        if self.padding_mode == "zeros":
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)
        x = F.pad(x, self._explicit_padding, mode=self.padding_mode)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation)

    def to_dense(self) -> nn.Conv2d:
        """An `nn.Conv2d` that computes the same function; its weight is A·B + S, rounded once."""
        geometry: dict[str, Any] = {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "padding_mode": self.padding_mode,
        }
        place: dict[str, Any] = {"device": self.A.device, "dtype": self.A.dtype}
        dense = nn.Conv2d(self.in_channels, self.out_channels, bias=self.bias is not None, **geometry, **place)
        return _filled(dense, self)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, {self._describe()}"
        )


class LowRankSparseLinear(LowRankSparse):
    """`nn.Linear` with the weight W = A·B + S: input (..., k), output (..., n)."""

    def __init__(self, dense: nn.Linear, rank: int, sparse: bool = True, scheme: Scheme = Scheme.CHANNEL) -> None:
        super().__init__(dense, rank, sparse, scheme)
        self.in_features, self.out_features = dense.in_features, dense.out_features

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def to_dense(self) -> nn.Linear:
        """An `nn.Linear` that computes the same function; its weight is A·B + S, rounded once."""
        dense = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device=self.A.device, dtype=self.A.dtype
        )
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
    factors = sum(layer.A.numel() + layer.B.numel() for layer in layers)
    without = sum(p.numel() for p in model.parameters()) - sparse
    return without, without - factors + sum(layer.A.shape[0] * layer.B.shape[1] for layer in layers)


def _explicit_padding(conv: nn.Conv2d) -> list[int]:
    """The padding as `F.pad` takes it, last dimension first; 'same' puts an odd one at the end, as `nn.Conv2d` does."""
    if conv.padding == "valid":
        return [0, 0, 0, 0]
    if conv.padding == "same":
        widths = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [side for width in reversed(widths) for side in (width // 2, width - width // 2)]
    return list(_reverse_repeat_tuple(conv.padding, 2))


@torch.no_grad()
def _filled(dense, layer: LowRankSparse):  # noqa: ANN001, ANN202
    dense.weight.copy_(layer.weight)
    dense.weight.requires_grad_(layer.A.requires_grad)
    if layer.bias is not None:
        dense.bias.copy_(layer.bias)
        dense.bias.requires_grad_(layer.bias.requires_grad)
    return dense.train(layer.training)
