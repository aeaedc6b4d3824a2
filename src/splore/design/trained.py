"""What a trained network keeps of its weights: A, B and S of every layer, by its data where there are inputs.

With a budget, ranks and entries compete over the whole net (see `splore.design.allocate`). An error of one layer's
outputs, as a share of their energy, does not weigh the same in every layer: how much it does is measured, by cutting
one layer at a time to what a first division of the budget gives it, and looking at the network's outputs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from splore.design.allocate import share
from splore.design.blocks import Blocks
from splore.design.calibrate import TINY, Moments, column_scale, fitted, moments
from splore.design.matrix import Scheme, fold, unfold
from splore.design.start import from_trained
from splore.forward import Epochs, batches_of, evaluating, run, split

PROBES = 2
"""Batches on which the weight of each layer's errors is measured."""

Layers = Mapping[str, nn.Linear | _ConvNd]
Parts = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""A (m, r), B (r, k), S (m, k) or None, and a mask (m, k) or None for an open one."""


@dataclass(frozen=True)
class Inputs:
    """Batches of inputs, and the moments of what each layer is given for them."""

    batches: list
    seen: dict[str, Moments]


def matrix_of(layer: nn.Linear | _ConvNd, scheme: Scheme) -> Tensor:
    """The matrix (m, k) of a dense layer's weight."""
    return unfold(layer.weight.detach(), scheme, isinstance(layer, _ConvTransposeNd))


def inputs_of(model: nn.Module, layers: Layers, scheme: Scheme, loader: Iterable | Epochs) -> Inputs:
    """The batches of a loader, all of them, and the moments that they give; see `moments` for the errors."""
    batches = list(batches_of(loader))
    return Inputs(batches, moments(model, layers, scheme, batches))


def parts_to_density(
    matrices: Mapping[str, Tensor],
    ranks: Mapping[str, int],
    blocks: Mapping[str, Blocks],
    sparse: bool,
    density: float,
    inputs: Inputs | None,
) -> dict[str, Parts]:
    """The parts of each matrix (m, k) by a rank and a density of S; with its mask open."""
    parts: dict[str, Parts] = {}
    for name, W in matrices.items():
        if inputs is None:
            parts[name] = *from_trained(W, ranks[name], sparse, density, blocks[name]), None
            continue
        seen = inputs.seen.get(name)
        scale = column_scale(W, seen)
        A, B, S = from_trained(W * scale, ranks[name], sparse, density, blocks[name])
        parts[name] = *fitted(W, A, B / scale, None if S is None else S != 0, seen), None
    return parts


def parts_to_budget(
    model: nn.Module,
    layers: Layers,
    matrices: Mapping[str, Tensor],
    blocks: Mapping[str, Blocks],
    scheme: Scheme,
    budget: int,
    most: Mapping[str, int],
    inputs: Inputs | None,
) -> dict[str, Parts]:
    """The parts of all matrices that together take `budget` parameters, with masks; `most` has the largest ranks."""
    seen = {} if inputs is None else inputs.seen
    scales = {name: column_scale(W, seen.get(name)) for name, W in matrices.items()}

    def divided() -> dict[str, Parts]:
        splits = share({name: W * scales[name] for name, W in matrices.items()}, budget, most, blocks)
        return {
            name: (*fitted(matrices[name], x.A, x.B / scales[name], x.mask, seen.get(name)), x.mask)
            for name, x in splits.items()
        }

    parts = divided()
    if inputs is None:
        return parts
    for name, weight in _weights(model, layers, matrices, scheme, parts, inputs).items():
        scales[name] = scales[name] * weight**0.5
    return divided()


@torch.no_grad()
def _weights(
    model: nn.Module,
    layers: Layers,
    matrices: Mapping[str, Tensor],
    scheme: Scheme,
    parts: Mapping[str, Parts],
    inputs: Inputs,
) -> dict[str, float]:
    """How much an error of each layer, as a share of its outputs' energy, moves the outputs of the network."""
    found: dict[str, float] = {}
    with evaluating(model), torch.compiler.set_stance("force_eager"):
        exact = _outputs(model, inputs)
        energy = sum((y - y.mean(0)).square().sum().item() for y in exact)
        for name, seen in inputs.seen.items():
            layer, (A, B, S, _) = layers[name], parts[name]
            W = A @ B if S is None else A @ B + S
            error = seen.error(matrices[name] - W) / max(seen.error(matrices[name]), TINY)
            before = [p.clone() for p in layer.parameters()]
            try:
                layer.weight.copy_(fold(W, layer.weight.shape, scheme, isinstance(layer, _ConvTransposeNd)))
                if layer.bias is not None and seen.has_bias:
                    layer.bias.add_(seen.shift(matrices[name] - W, len(layer.bias)))
                moved = _outputs(model, inputs)
            finally:
                for parameter, value in zip(layer.parameters(), before, strict=True):
                    parameter.copy_(value)
            change = sum((y - x).square().sum().item() for x, y in zip(exact, moved, strict=True)) / max(energy, TINY)
            if error > 1e-9 and change > 0:  # of a layer that lost nothing, nothing is learned
                found[name] = change / error
    usual = sorted(found.values())[len(found) // 2] if found else 1.0
    return {name: found.get(name, usual) for name in layers}


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    found = [y for batch in inputs.batches[:PROBES] for y in _tensors(run(model, split(batch)[0]))]
    if not found:
        raise ValueError("expected a model that returns floating-point tensors, found none to calibrate by")
    return found


def _tensors(outputs: object) -> list[Tensor]:
    """The floating-point tensors among what a model returned."""
    if isinstance(outputs, Tensor):
        return [outputs.float()] if outputs.is_floating_point() else []
    values = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, tuple | list) else []
    return [y for value in values for y in _tensors(value)]
