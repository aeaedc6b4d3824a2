"""Small decomposed layers with random parts, and their dense twins."""

import torch
from torch import nn

from splore.design.layers import LowRankSparseConv2d, LowRankSparseLinear
from splore.design.matrix import Scheme, matrix_shape

SCHEMES = [*Scheme]
MODES = ["zeros", "reflect", "replicate", "circular"]
TOLERANCE = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
}


def filled(layer, density=0.4):
    """The layer with random parts, of a scale that keeps outputs near 1, and a mask."""
    m, k = matrix_shape(layer.weight_shape, layer.scheme)
    A, B = torch.randn(m, layer.rank), torch.randn(layer.rank, k) / k**0.5
    if layer.S is None:
        layer.set_parts(A, B)
    else:
        mask = torch.rand(m, k) < density
        layer.set_parts(A, B, torch.randn(m, k) * mask / k**0.5, mask)
    return layer


def conv(rank=2, sparse=True, scheme=Scheme.CHANNEL, dtype=torch.float32, channels=(3, 4), kernel=(3, 2), **geometry):
    dense = nn.Conv2d(*channels, kernel, dtype=dtype, **geometry)
    return filled(LowRankSparseConv2d(dense, rank, sparse, scheme))


def linear(rank=2, sparse=True, dtype=torch.float32, features=(6, 5), bias=True):
    return filled(LowRankSparseLinear(nn.Linear(*features, bias=bias, dtype=dtype), rank, sparse))


def by_definition(matrix, shape, scheme):
    """The kernel (n, c, kh, kw) of a matrix, entry by entry."""
    if len(shape) == 2:
        return matrix
    _, _, kh, kw = shape
    n, c, i, j = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
    if scheme is Scheme.CHANNEL:
        return matrix[n, (c * kh + i) * kw + j]
    return matrix[n * kw + j, c * kh + i]


def twin(layer):
    """A plain PyTorch layer that is given A·B + S as its weight, without use of the layer's own folding."""
    matrix = layer.matrix.detach()
    weight = by_definition(matrix, layer.weight_shape, layer.scheme)
    if weight.dim() == 2:
        dense = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, dtype=matrix.dtype)
    else:
        dense = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            bias=layer.bias is not None, padding_mode=layer.padding_mode, dtype=matrix.dtype,
        )  # fmt: skip
    dense.weight.data.copy_(weight)
    if layer.bias is not None:
        dense.bias.data.copy_(layer.bias)
    return dense


def state_copy(module):
    return {name: value.clone() for name, value in module.state_dict().items()}
