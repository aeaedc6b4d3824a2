"""The numbers of a weight as the model file keeps them: as they are, in eight bits, or as float16.

Eight bits are exact: a weight is written so where it is q s to the bit, with a byte q for each number and a scale s for
each of its rows, as `splore.quantize` leaves it (see `splore.design.eight_bits`). float16 rounds what is written.
"""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from splore.design.eight_bits import integers, real, scales


class Values(str, Enum):
    """How numbers are written that are float32 in the network."""

    INT8 = "int8"
    FLOAT16 = "float16"


@dataclass(frozen=True)
class Coded:
    """A weight as the file has it: `numbers` of its shape, and the `scale` of each row where these are int8."""

    values: Values
    numbers: Tensor
    scale: Tensor | None


def values_of(model: nn.Module) -> Values | None:
    """How the weights of a model are written unless something else is asked for: in eight bits once it is quantised."""
    return None if getattr(model, "activation_ranges", None) is None else Values.INT8


def coded(weight: Tensor, rows: int, values: Values | None, mask: Tensor | None = None) -> Coded | None:
    """A float32 weight on the CPU so coded, or None where it is to stay as it is; a mask says what of it counts.

    Raises:
        ValueError: numbers that float16 does not reach.
    """
    weight = weight.detach().cpu()
    if values is None or weight.dtype != torch.float32 or not weight.numel():
        return None
    if mask is not None:
        weight = weight.masked_fill(~mask.cpu(), 0)
    if values is Values.FLOAT16:
        half = weight.half()
        if (half.isinf() & weight.isfinite()).any():
            raise ValueError(
                f"expected numbers that float16 holds, found {weight.abs().max():g}: write them as they are"
            )
        return Coded(values, half, None)
    scale = scales(weight, rows)
    q = integers(weight, scale)
    exact = torch.equal(real(q, scale).view(torch.int32), weight.view(torch.int32))
    return Coded(values, q, scale) if exact else None


def scale_name(weight: str) -> str:
    """Where the scales of the int8 weight of this name stand; those of the values of an S by its name."""
    return f"{weight.removesuffix('.values')}.scale"


def decoded(numbers: Tensor, scale: Tensor | None) -> Tensor:
    """The weight in float32 again.

    Raises:
        ValueError: no such numbers, or scales that are not those of rows.
    """
    if numbers.dtype == torch.float16 and scale is None:
        return numbers.float()
    if numbers.dtype != torch.int8 or scale is None or scale.dtype != torch.float32 or scale.dim() != 1:
        found = "none" if scale is None else f"{scale.dtype} of shape {tuple(scale.shape)}"
        raise ValueError(f"expected int8 with float32 scales, or float16 alone, found {numbers.dtype} with {found}")
    if not len(scale) or numbers.numel() % len(scale):
        raise ValueError(f"expected a scale for each row of {tuple(numbers.shape)}, found {len(scale)}")
    return real(numbers, scale)
