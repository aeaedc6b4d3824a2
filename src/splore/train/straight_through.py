"""S behind a threshold while it is trained, with gradients that pass straight through to what lies below it.

A proximal step makes zeros that stay where they are drawn to; a cut makes zeros for good. Here each entry has a latent
value, which the optimiser steps, and S is what the latent values are above a threshold t:

    S = sign(z) (|z|^3 - t^3)^(1/3)  where |z| > t,  0 elsewhere

The gradient by S is taken for that by z everywhere, so that an entry at zero comes back when the loss wants it to. One
t for all layers rises so that the share that it lets through falls along a cubic. Threshold and gradient are those of
Feather (Glentis Georgoulakis, Retsinas & Maragos, arXiv 2310.02448), without its scaling of the gradients below t.
"""

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from splore.design.blocks import Blocks
from splore.train.shards import local, whole

RISE = 0.8
"""The share of the steps over which the threshold lets ever fewer entries through."""

EVERY = 16
"""Steps from one threshold to the next: finding it takes a look at every entry."""

LATENT, TAKEN, THRESHOLD = "latent", "straight_through_steps", "threshold"
"""What the optimiser's state holds of each sparse part beside its own, so that a checkpoint of it holds all."""


class StraightThrough:
    """Keeps latent values of sparse parts in the state of their optimiser, and in the parts what is above a threshold.

    Args:
        optimizer: the one that steps the parts.
        parts: the sparse parts, each m x k.
        blocks: how each is divided; blocks go through the threshold as a whole, by the root mean square of theirs.
        density: share of the entries, or blocks, that are let through in the end.
        steps: of the whole training.
    """

    def __init__(
        self, optimizer: Optimizer, parts: list[Tensor], blocks: list[Blocks], density: float, steps: int
    ) -> None:
        self.optimizer, self.parts, self.blocks = optimizer, parts, blocks
        self.density, self.steps = density, steps
        self.every = max(min(EVERY, steps // 100), 1)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the latent values into the parts; call before the optimiser's step."""
        for S in self.parts:
            latent = self.optimizer.state.get(S, {}).get(LATENT)
            if latent is not None:
                S.copy_(latent)

    @torch.no_grad()
    def apply(self) -> None:
        """Takes the latent values out of the parts, and lets through what is above the threshold; call after it."""
        states = [self.optimizer.state.get(S, {}) for S in self.parts]
        taken = 1 + max((state.get(TAKEN, 0) for state in states), default=0)
        threshold = max((state.get(THRESHOLD, 0.0) for state in states), default=0.0)
        if taken % self.every == 0:
            threshold = self._threshold(taken)
        for S, blocks, state in zip(self.parts, self.blocks, states, strict=True):
            if LATENT in state:
                state[LATENT].copy_(S)
            elif S.grad is not None:
                state = self.optimizer.state[S]
                state[LATENT] = S.detach().clone()
            else:
                continue  # not stepped yet: optimisers take a state that is not empty for one that they have begun
            state[TAKEN], state[THRESHOLD] = taken, threshold
            if threshold:
                part = local(S)
                part.copy_(above(part, blocks, threshold))

    def remove(self) -> None:
        """Drops the latent values: the parts stay what they are."""
        for S in self.parts:
            for name in (LATENT, TAKEN, THRESHOLD):
                self.optimizer.state.get(S, {}).pop(name, None)

    def _threshold(self, taken: int) -> float:
        """The threshold that lets through the share that is due, of all parts together."""
        left = 1 - min(taken / self.steps / RISE, 1.0)
        share = self.density + (1 - self.density) * left**3
        sizes = [_sizes(whole(S.detach()), blocks) for S, blocks in zip(self.parts, self.blocks, strict=True)]
        flat = torch.cat([each.flatten() for each in sizes]) if sizes else torch.zeros(0)
        below = math.floor((1 - share) * len(flat))
        return float(flat.kthvalue(below).values) if below else 0.0


def above(latent: Tensor, blocks: Blocks, threshold: float) -> Tensor:
    """What of latent values (m, k) a threshold above 0 lets through, (m, k): all of it far above, zero below it."""
    share = (1 - (threshold / _sizes(latent, blocks)).pow(3)).clamp_min(0).pow(1 / 3)
    return (latent * blocks.spread(share)).to(latent.dtype)


def _sizes(S: Tensor, blocks: Blocks) -> Tensor:
    """The magnitude of each entry, or the root mean square of each block, in float32 at least."""
    S = S.float() if S.itemsize < 4 else S
    if blocks.size == 1:
        return S.abs()
    return blocks.norms(S) / blocks.sizes(S.new_empty(1, S.shape[1])).to(S).sqrt()
