"""Budgets of bytes: what the model file will take, with the types of its values and the coding of its positions."""

import copy
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from splore.budget.account import check_amount, tangent
from splore.design.decompose import materialise
from splore.design.eight_bits import round_weights, weights
from splore.design.layers import decomposed_layers
from splore.design.prices import Prices
from splore.design.wrappers import network_within
from splore.modelfile.file import save
from splore.modelfile.packed import pack
from splore.modelfile.values import Values, values_of

POSITION = 1.0
"""Bytes of the position of an entry in a layer that has none to go by."""

VALUE, SCALE = {Values.INT8: 1, Values.FLOAT16: 2}, 4
"""Bytes of a float32 number that is coded, and of the scale that a row of A and a direction of L have in int8."""

RANGES = ("", ".alone", ".pre")
"""The names of one layer's ranges of activations in the file of a net in eight bits. Few layers have them all, which
leaves room for those of the input, of pools and of additions."""


@dataclass(frozen=True)
class Bytes:
    """A budget of bytes of the file that `splore.save` writes: a number, or a share (a float) of the dense net's file.

    An entry of S costs its value and its position, as the file codes it at the density at hand, and in blocks its share
    of the block's; a number in A or B costs its value alone. The dense net's file is that of the type it is trained in.

    Attributes:
        amount: the number, or the share.
        tolerance: how far below the budget the file may stay, as a share of it.
        values: `float16` where the file will be saved so, `int8` where the net will be quantised; by default as `save`
            would write the net at hand. In `int8` some bytes are set aside for the ranges of activations.

    Raises ValueError for what is neither.
    """

    amount: int | float
    tolerance: float = 0.005
    values: Literal["float16", "int8"] | None = None

    def __post_init__(self) -> None:
        check_amount(self.amount, "bytes", shares=True)
        if self.values not in (None, "float16", "int8"):
            raise ValueError(f"expected the values of the file to be float16, int8 or None, found {self.values!r}")

    def prices(self, model: nn.Module) -> Prices:
        """The account of a network in bytes of its file."""
        net, kind = self._as_written(model)
        entry, direction = {}, {}
        written = decomposed_layers(net).values()
        for (name, layer), twin in zip(decomposed_layers(model).items(), written, strict=True):
            packed = pack(twin, kind)
            if packed is None:
                continue
            coded = kind if layer.reference.dtype is torch.float32 else None
            size = layer.reference.element_size() if coded is None else VALUE[coded]
            scales = 0 if packed.scale is None else packed.scale.nbytes
            m, k = layer.S.shape
            count = int(layer.nnz)  # of the net at hand: what rounds to zero has its share of what the others cost
            entry[name] = (packed.nbytes - scales) / count if count else size + POSITION / layer.blocks.size
            direction[name] = float(size * (m + k))
            if coded is Values.INT8:
                direction[name] += SCALE * (1 + m / max(layer.rank, 1))
        return tangent("bytes", _file_bytes(net, kind), model, entry, direction)

    def measure(self, model: nn.Module) -> float:
        """The bytes of the file."""
        return _file_bytes(*self._as_written(model))

    def allowed(self, model: nn.Module) -> float:
        """How many bytes the file may have."""
        if not isinstance(self.amount, float):
            return self.amount
        dense = materialise(copy.deepcopy(network_within(model)))
        vars(dense).pop("activation_ranges", None)  # which would have it written in int8
        return self.amount * _file_bytes(dense, None)

    def _as_written(self, model: nn.Module) -> tuple[nn.Module, Values | None]:
        """The network as the file will have it, and how its numbers are coded there."""
        net = network_within(model)
        kind = values_of(net) if self.values is None else Values(self.values)
        if kind is Values.INT8:
            net = copy.deepcopy(net)
            round_weights(net)
        if self.values == "int8":
            draw = random.Random(0)  # digits of no pattern, since the file has them deflated
            net.activation_ranges = {  # type: ignore[assignment]
                f"{name}{end}": (-round(draw.random(), 7), round(draw.random(), 7))
                for name, *_ in weights(net)
                for end in RANGES
            }
        return net, kind


def _file_bytes(net: nn.Module, kind: Values | None) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(net, path, values="float16" if kind is Values.FLOAT16 else None)
        return path.stat().st_size
