"""A network as other runtimes compute it fastest: dense layers, and two in the place of one that is low-rank only."""

import copy
from itertools import chain
from typing import Any

import torch
from torch import nn

from splore.design.layers import LowRankSparse, LowRankSparseConv2d, LowRankSparseLinear
from splore.design.matrix import Scheme
from splore.design.select import replace


def cheapest(model: nn.Module) -> nn.Module:
    """A copy without decomposed layers that computes the same, in evaluation mode and without gradients.

    A runtime with dense kernels multiplies by every zero of S, so a layer with a sparse part becomes the dense one,
    A·B + S folded. One whose S is empty, or not there, becomes two, B and then A, where these multiply less.
    """
    model = copy.deepcopy(model)
    owned = {child for each in model.modules() if isinstance(each, nn.MultiheadAttention) for child in each.modules()}
    layers = [module for module in model.modules() if isinstance(module, LowRankSparse)]
    others: dict[nn.Module, nn.Module] = {
        layer: in_two(layer) if layer not in owned and _pays(layer) else layer.to_dense()  # type: ignore[operator]
        for layer in layers
    }
    model = replace(model, others).eval()
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.requires_grad_(False)
    return model


def in_two(layer: LowRankSparse) -> nn.Sequential:
    """Two layers, B and then A, that compute what a decomposed layer without a sparse part does."""
    if isinstance(layer, LowRankSparseConv2d):
        convolutions = _in_two_convolutions(layer)
        bias, second = layer.bias, convolutions[1]
    else:
        assert isinstance(layer, LowRankSparseLinear)
        place = {"device": layer.A.device, "dtype": layer.A.dtype}
        first = nn.Linear(layer.in_features, layer.rank, bias=False, **place)
        second = nn.Linear(layer.rank, layer.out_features, bias=layer.bias is not None, **place)
        bias, convolutions = layer.bias, nn.Sequential(first, second)
        _fill(first, layer.B)
        _fill(second, layer.A)
    if bias is not None:
        second.bias.data.copy_(bias.data)  # type: ignore[union-attr, operator]
    return convolutions.train(layer.training)


def _in_two_convolutions(layer: LowRankSparseConv2d) -> nn.Sequential:
    """c x kh x kw to r, then 1 x 1; or, with the spatial scheme, kh x 1 to r, then 1 x kw."""
    n, c, (kh, kw) = layer.out_channels, layer.in_channels, layer.kernel_size
    spatial = layer.scheme is Scheme.SPATIAL
    padding = (layer.padding, layer.padding) if isinstance(layer.padding, str) else layer.padding
    kernels = ((kh, 1), (1, kw)) if spatial else ((kh, kw), (1, 1))

    def convolution(which: int, inputs: int, outputs: int, bias: bool) -> nn.Conv2d:
        def sides(values: tuple, rest: Any) -> tuple:  # noqa: ANN401
            """Of both sides what this convolution does: all by the first one, or one side each."""
            if not spatial:
                return tuple(values) if which == 0 else (rest, rest)
            return (values[0], rest) if which == 0 else (rest, values[1])

        named = isinstance(layer.padding, str)
        return nn.Conv2d(
            inputs,
            outputs,
            kernels[which],
            stride=sides(layer.stride, 1),
            padding=layer.padding if named else sides(padding, 0),  # type: ignore[arg-type]
            dilation=sides(layer.dilation, 1),
            bias=bias,
            padding_mode=layer.padding_mode,
            device=layer.A.device,
            dtype=layer.A.dtype,
        )

    first, second = convolution(0, c, layer.rank, False), convolution(1, layer.rank, n, layer.bias is not None)
    if spatial:
        _fill(first, layer.B.view(layer.rank, c, kh, 1))
        _fill(second, layer.A.view(n, kw, layer.rank).permute(0, 2, 1)[:, :, None, :])
    else:
        _fill(first, layer.B.view(layer.rank, c, kh, kw))
        _fill(second, layer.A[:, :, None, None])
    return nn.Sequential(first, second)


def _pays(layer: LowRankSparse) -> bool:
    """Whether a layer is low-rank only, and A and B together are smaller than the weight.

    Groups share B, so A would have to be grouped; a layer with a forward of its own keeps it.
    """
    if getattr(layer, "groups", 1) != 1 or layer.shell is not None:
        return False
    if not isinstance(layer, LowRankSparseConv2d | LowRankSparseLinear):
        return False
    empty = layer.S is None or not torch.count_nonzero(layer.S)
    return bool(empty and layer.rank and sum(part.numel() for part in layer.factors) < layer.low_rank.numel())


@torch.no_grad()
def _fill(layer: nn.Conv2d | nn.Linear, weight: torch.Tensor) -> None:
    layer.weight.copy_(weight)
