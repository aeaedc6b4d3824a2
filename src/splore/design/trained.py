"""What a trained network keeps of its weights: A, B and S of every layer, by its data where there are inputs.

With a budget, ranks and entries compete over the whole net (see `splore.design.allocate`). An error of one layer's
outputs, as a share of their energy, does not weigh the same in every layer: how much it does is measured, by cutting
one layer at a time to what a first division of the budget gives it, and looking at the network's outputs. Several
divisions are tried, each fitted to the inputs: S by magnitude or by the data, whichever leaves the network nearer to
the given one on inputs that were held back, and L of two sizes beside S, where that is clearly nearer.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from splore.design.allocate import CAUTION, share
from splore.design.blocks import Blocks
from splore.design.calibrate import Moments, column_scale, fitted, moments
from splore.design.matrix import Scheme, unfold
from splore.design.start import from_trained
from splore.design.trial import Layers, Parts, Trial
from splore.forward import Epochs, batches_of

PROBES = 2
"""Batches on which the weight of each layer's errors is measured."""

HELD_BACK = 4
"""One in so many batches is not fitted to, but tells which division of a budget is best."""

CAUTIONS = (CAUTION, 1.0)
"""What is tried in place of S alone: some L, and more of it. One that is not clearly better is not taken."""


@dataclass(frozen=True)
class Inputs:
    """Batches of inputs, the moments of what each layer is given for them, and batches that are not among them."""

    batches: list
    held_back: list
    seen: dict[str, Moments]


def matrix_of(layer: nn.Linear | _ConvNd, scheme: Scheme) -> Tensor:
    """The matrix (m, k) of a dense layer's weight."""
    return unfold(layer.weight.detach(), scheme, isinstance(layer, _ConvTransposeNd))


def inputs_of(model: nn.Module, layers: Layers, scheme: Scheme, loader: Iterable | Epochs) -> Inputs:
    """The batches of a loader, all of them, and the moments that they give; see `moments` for the errors."""
    batches = list(batches_of(loader))
    few = -(-len(batches) // HELD_BACK) if len(batches) > 1 else 0
    fitted, held_back = batches[: len(batches) - few], batches[len(batches) - few :]
    return Inputs(fitted, held_back or fitted, moments(model, layers, scheme, fitted))


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

    def divided(caution: float = CAUTION) -> dict[str, Parts]:
        splits = share({name: W * scales[name] for name, W in matrices.items()}, budget, most, blocks, caution)
        return {
            name: (*fitted(matrices[name], x.A, x.B / scales[name], x.mask, seen.get(name)), x.mask)
            for name, x in splits.items()
        }

    parts = divided()
    if inputs is None:
        return parts
    trial = Trial(model, layers, matrices, scheme, seen)
    for name, weight in trial.weights(parts, inputs.batches[:PROBES]).items():
        scales[name] = scales[name] * weight**0.5

    def by_magnitude() -> dict[str, Parts]:
        splits = share(matrices, budget, most, blocks, math.inf)
        # Squares of the inputs alone mislead where inputs are alike.
        whole = {name: each for name, each in seen.items() if each.products.dim() > 1}
        return {
            name: (*fitted(matrices[name], x.A, x.B, x.mask, whole.get(name)), x.mask) for name, x in splits.items()
        }

    tried = [(parts, trial.divergence(parts, inputs.held_back)) for parts in (by_magnitude(), divided(math.inf))]
    best, least = min(tried, key=lambda each: each[1].mean().item())
    for caution in CAUTIONS:
        parts = divided(caution)
        found = trial.divergence(parts, inputs.held_back)
        if _clearly_less(found, least):
            best, least = parts, found
    return best


def _clearly_less(found: Tensor, least: Tensor) -> bool:
    """Whether a mean is below another, of the same samples, by more than two standard errors of the difference."""
    gain = (least - found).double()
    return len(gain) > 1 and gain.mean().item() > 2 * gain.std().item() / math.sqrt(len(gain))
