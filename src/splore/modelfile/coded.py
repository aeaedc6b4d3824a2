"""The weights among the tensors of a model file that are coded: see `splore.modelfile.values`. S is packed apart."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from splore.design.eight_bits import weights
from splore.modelfile.structure import ModelFileError, Structure, join
from splore.modelfile.values import Values, coded, decoded, scale_name

WRITTEN = (torch.int8, torch.float16)
"""The types of coded numbers."""

COMPILED = "_orig_mod."
"""What `torch.compile` puts before the names within a child that it has wrapped; the file has them without."""


def code(model: nn.Module, tensors: dict[str, Tensor], values: Values | None) -> dict[str, Values]:
    """Codes the weights among the tensors, but for S; returns the names of those that are coded, and how."""
    kinds: dict[str, Values] = {}
    for path, _, part, rows in weights(model):
        name = join(path.replace(COMPILED, ""), part)
        found = coded(tensors[name], rows, values) if name in tensors and scale_name(name) not in tensors else None
        if found is not None:
            kinds[name], tensors[name] = found.values, found.numbers
            if found.scale is not None:
                tensors[scale_name(name)] = found.scale
    return kinds


def decode(structure: Structure, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file with coded ones in float32 again, but for the values of an S.

    Raises:
        ModelFileError: a tensor is not coded as the structure says.
    """
    plain = dict(tensors)
    try:
        for name in structure.coded:
            if not name.endswith("S.values"):
                plain[name] = decoded(plain[name], plain.pop(scale_name(name), None))
    except (KeyError, ValueError) as error:
        raise ModelFileError(f"the file's weights are not coded as it says ({error}): get the file anew") from error
    return plain
