"""The budgets of a recipe's cut: one currency, one budget, and more of the same currency."""

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from splore.budget.bytes import Bytes
from splore.budget.macs import MACs
from splore.budget.milliseconds import Milliseconds
from splore.design.prices import Limit, Params

if TYPE_CHECKING:
    from splore.runs.recipe import CutRecipe, Recipe

CURRENCIES = ("params", "bytes", "macs", "ms")
"""What the budget of a cut can be in, by its key."""


def currency_of(cut: "CutRecipe") -> str | None:
    """The key of the budget that is set; None where there is none."""
    return next((name for name in CURRENCIES if getattr(cut, name) is not None), None)


def budget_of(recipe: "Recipe", input_shape: tuple[int, ...]) -> Limit | None:
    """The budget of a recipe's cut, for a net that takes images of `input_shape`; None where there is none.

    Bytes and milliseconds are those of what the run ends with: of eight bits, where it quantises. Raises ValueError for
    an amount that no budget has.
    """
    cut = recipe.cut
    currency = currency_of(cut)
    values: Literal["int8"] | None = "int8" if recipe.quantize.images else None
    if currency is None:
        return None
    size = float(getattr(cut, currency))
    if currency == "ms":
        return Milliseconds(size, input_shape, cut.batch, cut.threads, values=values)
    if currency == "macs":
        return MACs(size, input_shape)
    return Bytes(size, values=values) if currency == "bytes" else Params(size)


def as_it_is(budget: Limit) -> Limit:
    """A budget by the values that a net has, in place of those that it will have."""
    return replace(budget, values=None) if isinstance(budget, Bytes | Milliseconds) else budget


def check_budgets(cut: "CutRecipe", method: str) -> None:
    """Raises ValueError for budgets that no cut can have."""
    given = [f"cut.{name}" for name in (*CURRENCIES, "energy") if getattr(cut, name) is not None]
    if len(given) > 1:
        raise ValueError(f"give {' or '.join(given)} and set the others to null: {len(given)} are set")
    currency = currency_of(cut)
    if cut.budgets and currency is None:
        raise ValueError(f"cut.budgets are more of the budget that is set: give one of {', '.join(CURRENCIES)} in cut")
    if method == "low-rank" and currency not in (None, "params"):
        raise ValueError(f"low rank alone meets a budget by its ranks, in parameters: give cut.params, not {given[0]}")
    for amount in cut.budgets:
        if not amount > 0 or (currency != "ms" and amount > 1):
            raise ValueError(f"cut.budgets are shares above 0 and at most 1, or milliseconds, found {amount}")
    if cut.ms is not None and not 0 < cut.ms < float("inf"):
        raise ValueError(f"cut.ms must be above 0, found {cut.ms}")
