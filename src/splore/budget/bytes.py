"""Budgets of bytes: what the model file will take, with the types of its values and the coding of its positions."""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from splore.budget.account import check_amount, tangent
from splore.design.decompose import materialise
from splore.design.layers import decomposed_layers
from splore.design.prices import Prices
from splore.modelfile.file import save
from splore.modelfile.packed import pack

POSITION = 1.0
"""Bytes of the position of an entry in a layer that has none to go by."""


@dataclass(frozen=True)
class Bytes:
    """A budget of bytes of the file that `splore.save` writes: a number, or a share (a float) of the dense net's file.

    An entry of S costs its value and its position, as the file codes it at the density at hand; a number in A or B
    costs its value alone.

    Raises ValueError for what is neither.
    """

    amount: int | float
    tolerance: float = 0.005

    def __post_init__(self) -> None:
        check_amount(self.amount, "bytes", shares=True)

    def prices(self, model: nn.Module) -> Prices:
        """The account of a network in bytes of its file."""
        entry, direction = {}, {}
        for name, layer in decomposed_layers(model).items():
            packed, size = pack(layer), layer.reference.element_size()
            if packed is not None:
                count = packed.support.count
                entry[name] = packed.nbytes / count if count else size + POSITION
                direction[name] = float(size * sum(layer.S.shape))
        return tangent("bytes", self.measure(model), model, entry, direction)

    def measure(self, model: nn.Module) -> float:
        """The bytes of the file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            save(model, path)
            return path.stat().st_size

    def allowed(self, model: nn.Module) -> float:
        """How many bytes the file may have."""
        if not isinstance(self.amount, float):
            return self.amount
        return self.amount * self.measure(materialise(copy.deepcopy(model)))
