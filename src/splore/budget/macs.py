"""Budgets of multiply-adds of an image, as `splore.cost` counts them."""

from dataclasses import dataclass

from torch import nn

from splore.budget.account import check_amount, tangent
from splore.design.layers import decomposed_layers
from splore.design.prices import Prices
from splore.measure.macs import Work, multiply_adds

TINY = 1e-9
"""What an entry of a layer costs that does not run: next to nothing."""


@dataclass(frozen=True)
class MACs:
    """A budget of multiply-adds for one image of `input_shape`: a number, or a share (a float) of the dense net's.

    An entry of S costs one for every output pixel of its layer.

    Raises ValueError for what is neither.
    """

    amount: int | float
    input_shape: tuple[int, ...]
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        check_amount(self.amount, "multiply-adds", shares=True)

    def prices(self, model: nn.Module) -> Prices:
        """The account of a network in multiply-adds; ValueError where it doesn't run on such an image."""
        work = multiply_adds(model, self.input_shape)
        entry, direction = {}, {}
        for name, layer in decomposed_layers(model).items():
            if layer.S is None:
                continue
            found = work.get(id(layer), Work(0, 0))
            pixels = found.dense_macs / layer.S.numel()
            in_L = found.macs - pixels * int(layer.nnz)
            entry[name] = pixels or TINY
            direction[name] = (in_L / layer.rank if layer.rank else pixels * sum(layer.S.shape)) or TINY
        return tangent("multiply-adds", self.measure(model), model, entry, direction)

    def measure(self, model: nn.Module) -> float:
        """The multiply-adds of an image."""
        return sum(found.macs for found in multiply_adds(model, self.input_shape).values())

    def allowed(self, model: nn.Module) -> float:
        """How many multiply-adds a network may take."""
        if not isinstance(self.amount, float):
            return self.amount
        return self.amount * sum(found.dense_macs for found in multiply_adds(model, self.input_shape).values())
