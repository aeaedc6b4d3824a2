"""Masked fine-tuning: entries of S that were cut stay exactly zero, whatever the optimiser does."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from splore.design.layers import LowRankSparse, decomposed_layers
from splore.train.optimizer import Present, hooked
from splore.train.shards import local, shard_like


class MaskHold:
    """Holds the masks of a model's sparse parts through the steps of an optimiser. Built by `hold_masks`.

    The gradient of a cut entry is set to zero as soon as the backward pass has written it, so that clipping, gradient
    scalers and running averages never see it; after a step the entry itself is. Masks that change on the way are
    taken as they are; `remove` ends it.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.optimizer = hooked(optimizer)
        present = Present(model, self.optimizer)
        if isinstance(model, DistributedDataParallel):  # which makes parameters and buffers equal: now the masks too
            for layer in decomposed_layers(model).values():
                if layer.mask is not None:
                    torch.distributed.broadcast(layer.mask, group=model.process_group, group_src=0)
        self.holds = [_Hold(each, self.optimizer) for each in decomposed_layers(model).values() if each.S is not None]
        self.handles: list[Any] = [
            self.optimizer.register_step_pre_hook(present),
            self.optimizer.register_step_post_hook(self._mask_values),
            *(hold.handle for hold in self.holds),
        ]

    def refresh(self) -> None:
        """Clears cut entries from S and from the optimiser's running state: at once, not first at the next gradient."""
        for hold in self.holds:
            hold.take_mask()

    def remove(self) -> None:
        """Lets the optimiser step without the masks again."""
        for handle in self.handles:
            handle.remove()

    def _mask_values(self, *_: object) -> None:
        for hold in self.holds:
            hold.mask_values()


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers as wide as numbers of so many bytes."""


def _clear(tensor: Tensor, keep: Tensor) -> None:
    """Sets the entries to zero, infinite and NaN ones too, where `keep`, int8, is 0 and not -1.

    As bits: several times as fast on a CPU as a fill by a mask, which branches at each entry.
    """
    part = local(tensor)
    part.view(_BITS[part.itemsize]).bitwise_and_(keep)


class _Hold:
    """The mask of one layer; `keep` is 0 where an entry is to stay zero and -1 elsewhere, or None where none is."""

    def __init__(self, layer: LowRankSparse, optimizer: Optimizer) -> None:
        self.layer, self.optimizer = layer, optimizer
        frozen = not layer.S.requires_grad
        layer.S.requires_grad_(True)  # a hook can't be registered otherwise; the layer may be thawed later
        self.handle = layer.S.register_post_accumulate_grad_hook(self._mask_gradient)
        layer.S.requires_grad_(not frozen)
        self.take_mask()

    @torch.no_grad()
    def take_mask(self) -> None:
        S, self.mask = self.layer.S, self.layer.mask
        self.version = self.mask._version
        self.keep: Tensor | None = None
        if not self.mask.all():  # waits for the device, and only when a mask has changed
            self.keep = local(shard_like(-self.mask.to(torch.int8), S))
            state = self.optimizer.state.get(S, {}).values()
            for value in (S, *(v for v in state if isinstance(v, Tensor) and v.shape == S.shape)):
                _clear(value, self.keep)

    def _current(self) -> Tensor | None:
        if self.layer.mask is not self.mask or self.mask._version != self.version:
            self.take_mask()
        return self.keep

    @torch.no_grad()
    def _mask_gradient(self, S: Tensor) -> None:
        keep = self._current()
        if keep is not None and S.grad is not None:
            _clear(S.grad, keep)

    @torch.no_grad()
    def mask_values(self) -> None:
        keep = self._current()
        if keep is not None:
            _clear(self.layer.S, keep)


def hold_masks(model: nn.Module, optimizer: Optimizer) -> MaskHold:
    """From now on every step of `optimizer` leaves the cut entries of S exactly zero. One line before the loop.

    Args:
        model: a decomposed network; DDP, FSDP2 and `torch.compile` may have wrapped it.
        optimizer: the one that trains it, or a wrapper that has it as `.optimizer`.

    Raises:
        ValueError: the optimiser does not hold the model's present parameters; before a step, too, if ranks change.
    """
    return MaskHold(model, optimizer)
