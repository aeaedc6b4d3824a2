"""What the parts of a network cost in a currency, and budgets in it: parameters here, others in `splore.budget`.

However a network is paid for, a budget is divided by one account, linear in the ranks and the entries of S:

    cost = held + sum over layers of  entry * nnz(S) + direction * rank(L)

In parameters it is exact: an entry costs 1, a singular direction of an m x k matrix m + k. In other currencies it is
the tangent at the network as it stands, and is drawn anew as the network changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from splore.design.layers import decomposed_layers, parameter_counts
from splore.design.ranks import check_params


@dataclass(frozen=True)
class Prices:
    """The account of a network, in one currency.

    Attributes:
        unit: what the currency counts, for people.
        held: the cost of all but L and S of the layers that have an S.
        entry: the cost of an entry of S, by layer.
        direction: the cost of a rank of L, by layer.
    """

    unit: str
    held: float
    entry: Mapping[str, float]
    direction: Mapping[str, float]

    def of_ranks(self, model: nn.Module) -> float:
        """The cost of all but the entries of S."""
        layers = decomposed_layers(model)
        return self.held + sum(price * layers[name].rank for name, price in self.direction.items())

    def of(self, model: nn.Module) -> float:
        """The cost of a network."""
        layers = decomposed_layers(model)
        entries = {name: int(layers[name].nnz) for name in self.entry}
        return self.of_ranks(model) + sum(price * entries[name] for name, price in self.entry.items())


class Limit(Protocol):
    """A budget: how much of a currency a network may cost."""

    @property
    def tolerance(self) -> float:
        """The share of the budget that may be left over where it can't be met exactly; 0 where it can."""
        ...

    def prices(self, model: nn.Module) -> Prices:
        """The account of a network, which gives what it truly costs as it stands."""
        ...

    def measure(self, model: nn.Module) -> float:
        """What a network truly costs as it stands."""
        ...

    def allowed(self, model: nn.Module) -> float:
        """How much a network may cost."""
        ...


@dataclass(frozen=True)
class Params:
    """A budget of parameters: a number, or a share (a float) of the dense net's.

    Raises ValueError for what is neither.
    """

    amount: int | float

    def __post_init__(self) -> None:
        check_params(self.amount)

    @property
    def tolerance(self) -> float:
        """Parameters are counted exactly."""
        return 0.0

    def prices(self, model: nn.Module) -> Prices:
        """The account of a network in parameters."""
        held, _ = parameter_counts(model)
        layers = {name: layer for name, layer in decomposed_layers(model).items() if layer.S is not None}
        held -= sum(part.numel() for layer in layers.values() for part in layer.factors)
        direction = {name: float(sum(layer.S.shape)) for name, layer in layers.items()}
        return Prices("parameters", held, dict.fromkeys(layers, 1.0), direction)

    def measure(self, model: nn.Module) -> float:
        """How many parameters a network holds."""
        return self.prices(model).of(model)

    def allowed(self, model: nn.Module) -> float:
        """How many parameters a network may hold."""
        return int(self.amount * parameter_counts(model)[1]) if isinstance(self.amount, float) else self.amount


@dataclass(frozen=True)
class Priced:
    """A budget by an account that is held fixed: a step on the way to one whose prices move."""

    account: Prices
    amount: float
    tolerance: float = 0.0

    def prices(self, model: nn.Module) -> Prices:
        """The account."""
        return self.account

    def measure(self, model: nn.Module) -> float:
        """What a network costs by the account."""
        return self.account.of(model)

    def allowed(self, model: nn.Module) -> float:
        """The amount."""
        return self.amount


def check_within(model: nn.Module, prices: Prices, allowed: float, without_L: bool = False) -> None:
    """Raises ValueError for a budget below what a model costs without any entry of S, or `without_L`, of L and S."""
    least = prices.held if without_L else prices.of_ranks(model)
    if allowed >= least:
        return
    cut, advice = ("L and S", "") if without_L else ("S", "lower the ranks, ")
    raise ValueError(
        f"a budget of {said(allowed)} {prices.unit} can't be met by cutting {cut}: without any {cut} the net holds "
        f"{said(least)}; raise the budget, {advice}or decompose the layers that are still dense"
    )


def said(amount: float) -> str:
    """An amount of a currency, for people."""
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"
