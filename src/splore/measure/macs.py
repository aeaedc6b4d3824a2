"""Multiply-adds of one image's forward pass, layer by layer.

They are counted where weights are multiplied: in convolutions and linear layers, each time one is called, and in the
projections of `nn.MultiheadAttention`, which uses its layers without calling them. A·B counts as the two convolutions
it stands for, and S as one multiply-add per non-zero and output pixel: that is what an engine that runs the parts
computes, whereas training composes W. All other modules count as nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from splore.design.attention import OpenAttention
from splore.design.layers import LowRankSparse, LowRankSparseConv2d
from splore.design.matrix import Scheme
from splore.forward import evaluating


class Work(NamedTuple):
    """Multiply-adds of a layer as it is, and of the dense layer."""

    macs: int
    dense_macs: int


@torch.no_grad()
def multiply_adds(model: nn.Module, input_shape: tuple[int, ...]) -> dict[int, Work]:
    """The work of the layers that run on one image of `input_shape`, by the `id` of the module.

    The model runs once, in evaluation mode, on zeros; it is left as it was found.

    Raises:
        ValueError: the model doesn't run on such an input.
    """
    work: dict[int, Work] = {}

    def add(module: nn.Module, new: Work) -> None:
        old = work.get(id(module), Work(0, 0))
        work[id(module)] = Work(old.macs + new.macs, old.dense_macs + new.dense_macs)

    def count(module: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
        if isinstance(module, OpenAttention):
            for layer, inputs in module.projected(args, kwargs):
                add(layer, _projection(layer, inputs))
        elif isinstance(module, nn.MultiheadAttention):
            add(module, _in_projection(module, args, kwargs))
        if isinstance(module, nn.MultiheadAttention):
            add(module.out_proj, layer_work(module.out_proj, output[0], output[0]))
        elif isinstance(output, Tensor):
            add(module, layer_work(module, next(iter((*args, *kwargs.values()))), output))

    kinds = LowRankSparse | _ConvNd | nn.Linear | nn.MultiheadAttention
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    like = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), torch.empty(0))
    handles = [layer.register_forward_hook(count, with_kwargs=True) for layer in layers]
    try:
        # In eager mode, for hooks would break the graph of a compiled model.
        with _undisturbed(model), torch.compiler.set_stance("force_eager"):
            model(torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device))
    except Exception as error:
        raise ValueError(f"the model doesn't run on one input of shape {tuple(input_shape)}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return work


def layer_work(layer: nn.Module, x: Tensor, y: Tensor) -> Work:
    """The work of one call of a layer, from its input and its output."""
    # Each entry of a weight meets each output pixel once, or each input pixel where the convolution is transposed and
    # the first axis of the weight is that of the input channels.
    if not isinstance(layer, LowRankSparse):
        assert isinstance(layer, _ConvNd | nn.Linear)
        pixels = (x if isinstance(layer, _ConvTransposeNd) else y).numel() // layer.weight.shape[0]
        return Work(layer.weight.numel() * pixels, layer.weight.numel() * pixels)
    shape, transposed = layer.weight_shape, layer.transposed
    pixels = (x if transposed else y).numel() // shape[0]
    dense = prod(shape) * pixels
    if isinstance(layer, LowRankSparseConv2d) and layer.groups > 1:  # it runs composed
        return Work(int(layer.compose().count_nonzero()) * pixels, dense)
    between, after = pixels, y.numel() // shape[1] if transposed else pixels
    if len(shape) == 4 and layer.scheme is Scheme.SPATIAL:
        # The kh x 1 convolution comes first: between the two, maps have their final height, and the input's width.
        if transposed:
            after = after // y.shape[-1] * x.shape[-1]
        else:
            between = between // y.shape[-1] * x.shape[-1]
    m, k = layer.matrix_shape
    return Work(layer.rank * (k * between + m * after) + int(layer.nnz) * pixels, dense)


def _projection(layer: nn.Module, inputs: list[Tensor]) -> Work:
    """The work of one of an attention's projections, with an input (..., k) for each part of its outputs."""
    tokens = {id(x): x.numel() // x.shape[-1] for x in inputs}
    each = sum(tokens[id(x)] for x in inputs)  # over all parts
    if not isinstance(layer, LowRankSparse):
        macs = layer.get_parameter("weight").numel() // len(inputs) * each
        return Work(macs, macs)
    m, k = layer.matrix_shape
    low_rank = layer.rank * (k * sum(tokens.values()) + m // len(inputs) * each)
    return Work(low_rank + int(layer.nnz) * each // len(inputs), m // len(inputs) * k * each)


def _in_projection(attention: nn.MultiheadAttention, args: tuple, kwargs: dict) -> Work:
    """The work of an attention's projections of its inputs (..., channels), with the weights that it holds itself."""
    inputs = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
    macs = sum(inputs[name].numel() * attention.embed_dim for name in ("query", "key", "value"))
    return Work(macs, macs)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within; afterwards each module's own mode and all buffers are what they were."""
    buffers = [(buffer, buffer.clone(), buffer._version) for buffer in model.buffers()]
    try:
        with evaluating(model):
            yield
    finally:
        for buffer, before, version in buffers:
            if buffer._version != version:
                buffer.copy_(before)
