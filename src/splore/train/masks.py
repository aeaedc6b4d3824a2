"""Masked fine-tuning: entries of S that were cut stay exactly zero, whatever the optimiser does."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from splore.design.layers import decomposed_layers
from splore.train.shards import local, shard_like


class MaskHold:
    """Holds the masks of a model's sparse parts through the steps of an optimiser, by hooks on it.

    Before a step the gradients of cut entries are set to zero, so that no momentum gathers there; after it the entries
    themselves are. Built by `hold_masks`; `remove` ends it.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.layers = [layer for layer in decomposed_layers(model).values() if layer.S is not None]
        self.optimizer = optimizer
        self.refresh()
        self.handles = [
            optimizer.register_step_pre_hook(self._mask_gradients),
            optimizer.register_step_post_hook(self._mask_values),
        ]

    @torch.no_grad()
    def refresh(self) -> None:
        """To be called when masks have changed: clears cut entries from S and from the optimiser's running state."""
        self.masks = [local(shard_like(layer.mask, layer.S)) for layer in self.layers]
        for layer, mask in zip(self.layers, self.masks, strict=True):
            local(layer.S).mul_(mask)
            for value in self.optimizer.state.get(layer.S, {}).values():
                if isinstance(value, Tensor) and value.shape == layer.S.shape:
                    local(value).mul_(mask)

    def remove(self) -> None:
        """Lets the optimiser step without the masks again."""
        for handle in self.handles:
            handle.remove()

    @torch.no_grad()
    def _mask_gradients(self, *_: object) -> None:
        pairs = zip(self.layers, self.masks, strict=True)
        held = [(local(layer.S.grad), mask) for layer, mask in pairs if layer.S.grad is not None]
        if held:
            torch._foreach_mul_([gradient for gradient, _ in held], [mask for _, mask in held])

    @torch.no_grad()
    def _mask_values(self, *_: object) -> None:
        if self.layers:
            torch._foreach_mul_([local(layer.S) for layer in self.layers], self.masks)


def hold_masks(model: nn.Module, optimizer: Optimizer) -> MaskHold:
    """From now on every step of `optimizer` leaves the cut entries of S exactly zero. One line before the loop."""
    return MaskHold(model, optimizer)
