"""Multiply-adds of one image's forward pass, layer by layer.

They are counted where weights are multiplied: in convolutions and linear layers, each time one is called, and in the
projections of `nn.MultiheadAttention`, which uses its layers without calling them. A·B counts as the two convolutions
it stands for, and S as one multiply-add per non-zero and output pixel: that is what an engine that runs the parts
computes, whereas training composes W. All other modules count as nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from splore.design.layers import LowRankSparse
from splore.design.matrix import Scheme, matrix_shape
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
        inputs = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        if isinstance(module, nn.MultiheadAttention):
            add(module, _in_projection(module, *(inputs[name] for name in ("query", "key", "value"))))
            add(module.out_proj, layer_work(module.out_proj, output[0], output[0]))
        elif isinstance(output, Tensor):
            add(module, layer_work(module, next(iter(inputs.values())), output))

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
    if isinstance(layer, LowRankSparse):
        pixels = y.numel() // layer.weight_shape[0]
        between = pixels
        if len(layer.weight_shape) == 4 and layer.scheme is Scheme.SPATIAL:
            # The kh x 1 convolution comes first: its output has the final height but still the width of the input.
            between = pixels // y.shape[-1] * x.shape[-1]
        nnz = int(layer.nnz)
        m, k = matrix_shape(layer.weight_shape, layer.scheme)
        return Work(layer.rank * (k * between + m * pixels) + nnz * pixels, m * k * pixels)
    assert isinstance(layer, _ConvNd | nn.Linear)
    # Each entry of a weight meets each output pixel once, or each input pixel where the convolution is transposed and
    # the first axis of the weight is that of the input channels.
    pixels = (x if isinstance(layer, _ConvTransposeNd) else y).numel() // layer.weight.shape[0]
    return Work(layer.weight.numel() * pixels, layer.weight.numel() * pixels)


def _in_projection(attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Work:
    """The work of an attention's projections of its inputs (..., channels), with the weights that it holds itself."""
    macs = sum(x.numel() * attention.embed_dim for x in (query, key, value))
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
