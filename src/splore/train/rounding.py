"""Fake quantisation: forward passes in which weights and inputs of layers are rounded as the engine rounds them.

The weights of convolutions and linear layers are rounded to eight bits part by part, A, B and S each, and a layer's
input to the bytes of its range; gradients pass the rounding by, and stop where an input is out of its range (Jacob et
al., 2018). Parameters stay what they are, and so do optimisers, masks and the l1: everything is done by hooks.

What the engine does beyond: it folds batch norm first, which moves no rounding of a weight, and it rounds B x, and what
only additions and pools read. These roundings are left out here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from splore.design.eight_bits import rounded, weights

STEPS = 255


@contextmanager
def rounding(model: nn.Module, inputs: Mapping[str, tuple[float, float]]) -> Iterator[None]:
    """Within, the layers of `model` that are named compute in eight bits, `inputs` being the ranges of their inputs.

    In training and in evaluation alike. A layer without a range computes as ever.
    """
    parts: dict[str, list[tuple[str, int]]] = {}
    for name, _, part, rows in weights(model):
        parts.setdefault(name, []).append((part, rows))
    holds = [_Hold(model.get_submodule(name), parts[name], inputs[name]) for name in parts if name in inputs]
    try:
        yield
    finally:
        for hold in holds:
            hold.remove()


def in_bytes(x: Tensor, low: float, high: float) -> Tensor:
    """The nearest of 256 steps from low to high, one of which is zero, for each number; differentiable within them."""
    scale = torch.tensor(max((high - low) / STEPS, 1e-20), dtype=torch.float32).item()
    zero = min(max(round(-low / scale), 0), STEPS)
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, STEPS).to(x.dtype)


class _Hold:
    """Rounds one layer's weights and input while its forward runs."""

    def __init__(self, layer: nn.Module, parts: list[tuple[str, int]], span: tuple[float, float]) -> None:
        self.layer, self.parts, self.span = layer, parts, span
        self.own: dict[str, nn.Parameter | None] = {}
        self.handles = [
            layer.register_forward_pre_hook(self._before),
            layer.register_forward_hook(self._after, always_call=True),
        ]

    def _before(self, layer: nn.Module, args: tuple) -> tuple:
        for part, rows in self.parts:
            weight = layer._parameters[part]
            self.own[part] = weight
            assert weight is not None
            layer._parameters[part] = rounded(weight.float(), rows).to(weight.dtype)  # type: ignore[assignment]
        return (in_bytes(args[0], *self.span), *args[1:])

    def _after(self, layer: nn.Module, *_: object) -> None:
        while self.own:
            part, weight = self.own.popitem()
            layer._parameters[part] = weight

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
