"""What the currencies share: an account that is drawn at the network as it stands."""

from collections.abc import Mapping

from torch import nn

from splore.design.layers import decomposed_layers
from splore.design.prices import Prices


def tangent(
    unit: str,
    cost: float,
    model: nn.Module,
    entry: Mapping[str, float],
    direction: Mapping[str, float],
) -> Prices:
    """The account with these prices that gives `cost` for `model`; what they don't explain is held."""
    layers = decomposed_layers(model)
    parts = sum(entry[name] * int(layers[name].nnz) + direction[name] * layers[name].rank for name in entry)
    return Prices(unit, cost - parts, entry, direction)


def check_amount(amount: float, unit: str, shares: bool) -> None:
    """Raises ValueError for an amount that no budget has; `shares` says whether a float is one of the dense net's."""
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < float("inf"):
        raise ValueError(f"a budget is a number of {unit} above 0, found {amount!r}")
    if shares and isinstance(amount, float) and amount > 1:
        raise ValueError(f"a share of the dense net's {unit} is at most 1, found {amount}; give a number as an int")
