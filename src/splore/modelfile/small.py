"""The small tensors of a model file, and its structure, put together: one by one their names would take more than they.

An entry in the header of a safetensors file takes some 90 bytes, what the structure says of a layer more than 200. So
tensors of less than `SMALL` bytes lie one after another in the tensor `splore.small`. Which they are is said by the
header that a safetensors file of them alone would have, with the structure as its metadata: it is deflated (zlib), and
the file has it as the tensor `splore.header`.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from splore.files import json_object, typed

HEADER, DATA = "splore.header", "splore.small"
SMALL = 1 << 12
"""Bytes of a tensor that stands for itself: its entry is then a fortieth of it at the most."""
_MOST = 1 << 27
"""Bytes of a header at the most, more than safetensors would read: a few bytes may inflate to any number."""


def put_together(tensors: Mapping[str, Tensor], structure: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of the file. Raises what `safetensors.torch.save` does."""
    small = {name: t for name, t in tensors.items() if t.nbytes < SMALL or name in (HEADER, DATA)}
    whole = save(small, {"structure": json.dumps(structure, separators=(",", ":"))})
    start = 8 + int.from_bytes(whole[:8], "little")
    parts = {HEADER: zlib.compress(whole[8:start], 9), DATA: whole[start:]}
    large = {name: t for name, t in tensors.items() if name not in small}
    return large | {name: torch.from_numpy(np.frombuffer(part, np.uint8).copy()) for name, part in parts.items()}


def take_apart(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The structure and the tensors that `put_together` was given.

    Raises:
        ValueError, SafetensorError: the file's tensors are not so.
    """
    large = dict(tensors)
    deflated, data = (large.pop(name, torch.empty(0)) for name in (HEADER, DATA))
    if deflated.dtype != torch.uint8 or data.dtype != torch.uint8:
        raise ValueError(f"expected bytes in {HEADER!r} and {DATA!r}")
    inflater = zlib.decompressobj()
    try:
        header = inflater.decompress(deflated.numpy().tobytes(), _MOST)
    except zlib.error as error:
        raise ValueError(f"{HEADER!r} can't be inflated: {error}") from error
    if not inflater.eof:
        raise ValueError(f"{HEADER!r} is cut off, or inflates to more than {_MOST >> 20} MiB")
    small = load(len(header).to_bytes(8, "little") + header + data.numpy().tobytes())
    texts = typed(json_object(header.decode()).get("__metadata__"), dict)
    return json_object(typed(texts.get("structure"), str)), small | large
