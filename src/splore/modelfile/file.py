"""The model file: one safetensors file that holds a compressed network, and nothing that could run.

Its tensors are described in `splore.modelfile.state`. The safetensors metadata has one entry, "splore", a JSON text
with

- `format` "splore" and `version`;
- `sha256` of the whole file, taken with zeros in the place of these 64 digits;
- `structure`, see `splore.modelfile.structure`, where the network is dense or the version below 3. In any other file
  it is with the small tensors: see `splore.modelfile.small`.

So the file of a dense network is a plain one of its state dict, which other programs read too.

Whether parameters are trained (`requires_grad`) and the training mode are not part of the file.
"""

import json
import os
import re
from dataclasses import asdict, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from splore.design.wrappers import network_within
from splore.files import json_object, sha256, write_whole
from splore.modelfile.built import built
from splore.modelfile.coded import decode
from splore.modelfile.hub import located
from splore.modelfile.masked import take_masked
from splore.modelfile.small import put_together, take_apart
from splore.modelfile.state import restore, to_tensors
from splore.modelfile.structure import ModelFileError, Structure, from_json, join, to_json
from splore.modelfile.values import Values, values_of
from splore.task import Task, task_of

if TYPE_CHECKING:
    from splore.vision import Origin

FORMAT = "splore"
VERSION = 3
"""What is read at most. Version 2 knew blocks of S and coded numbers, version 3 puts small tensors together; a dense
network is written in version 1."""
DENSE_BYTES = 1 << 33
"""What a network that a file names may take unless the caller says otherwise: 8 GiB."""
_UNSIGNED = "0" * 64
"""What stands in the place of the digest while it is taken."""
_DIGEST = re.compile(rb'\\"sha256\\":\\"([0-9a-f]{64})\\"')
"""The digest as it stands in the header, within the JSON text that is itself a JSON string."""


def save(
    model: nn.Module,
    path: str | os.PathLike,
    source: "Origin | None" = None,
    task: Task | None = None,
    values: Literal["float16"] | None = None,
) -> None:
    """Writes a network, decomposed or not, to one file. Whole or not at all: what was at `path` stays until the end.

    Args:
        model: the network; it is left as it is. Of one within `torch.compile`, DataParallel, DDP, `AveragedModel` or
            timm's averages, the network within is written.
        path: the file to write, usually `*.safetensors`.
        source: where the net came from; taken from `model.origin` by default. With it `load` can build the net itself.
        task: the names of its classes and the preprocessing of images; taken from `model.task` by default.
        values: `float16` rounds the weights of convolutions and linear layers to that, in the file; they come back in
            float32. By default nothing is lost, and the weights of a model that `quantize` rounded are written in int8.

    Raises:
        ValueError: the model's state holds something that is not a plain, whole tensor, or NaN in a parameter; or it is
            an average that was begun before a cut.
        OSError: the file could not be written; an earlier file at `path` is whole.
    """
    for name, parameter in model.named_parameters():
        if parameter.isnan().any():
            raise ValueError(f"expected numbers, found NaN in {name!r}: go back to the last good checkpoint")
    kind = values_of(network_within(model)) if values is None else Values(values)
    write_whole(path, "the model file", *_serialised(model, source, task, kind))


def load(path: str | os.PathLike, model: nn.Module | None = None, dense_bytes: int = DENSE_BYTES) -> nn.Module:
    """Reads a network that `save` wrote: the same state, bit for bit, with an attribute `task` where the file has one.

    One that `quantize` made has its `activation_ranges` again.

    Args:
        path: the file; or "user/name" or "user/name@revision" for a repository of the Hugging Face Hub, see
            `splore.modelfile.hub`.
        model: a fresh dense network of the same architecture. Its layers are replaced in place by decomposed ones,
            its tensors are set, on its device and in the file's dtypes, and it is what is returned (unless it is
            itself the one layer to replace). None: the net is built, if it came from the zoo, torchvision or timm.
            With it, a state dict that `torch.nn.utils.prune` has masked is read too, see `splore.from_pruned`.
        dense_bytes: what the dense network may take while it is built: a small file may name a net of any size.

    Raises:
        ModelFileError: the file is missing, truncated, altered, foreign or newer than this splore, or belongs to
            another network. `model` is then untouched.
    """
    try:
        structure, tensors = _read(path)
    except ModelFileError:
        if model is None or not take_masked(path, model):
            raise
        return model
    tensors = decode(structure, tensors)
    net = restore(built(structure, tensors, dense_bytes) if model is None else model, structure, tensors)
    if structure.task is not None:
        net.task = structure.task  # type: ignore[assignment]
    if structure.ranges is not None:
        net.activation_ranges = structure.ranges  # type: ignore[assignment]
    return net


def read_structure(path: str | os.PathLike) -> Structure:
    """The structure of a model file without its network. Raises ModelFileError as `load` does."""
    return _read(path)[0]


def dense_bytes(model: nn.Module) -> int:
    """Bytes of a plain safetensors file of the dense network that `model` stands for."""
    structure, tensors = to_tensors(network_within(model))
    for layer in structure.layers:
        name = layer.names[0]
        weight = torch.empty(layer.shape, dtype=tensors[join(name, "A")].dtype)
        parts = {join(name, part) for part in ("A", "B", "S.values", "S.support", "S.mask", "S.negative_zeros")}
        tensors = {key: t for key, t in tensors.items() if key not in parts} | {join(name, "weight"): weight}
    return len(to_safetensors(tensors))


def _serialised(
    model: nn.Module, source: "Origin | None", task: Task | None, values: Values | None
) -> tuple[bytes, memoryview]:
    """The file in two parts, the first of which ends with the digest."""
    model = network_within(model)
    structure, tensors = to_tensors(model, values)
    structure = replace(
        structure,
        origin=_origin(model) if source is None else asdict(source),
        task=task or task_of(model),
        ranges=getattr(model, "activation_ranges", None),
    )
    text = {"format": FORMAT, "version": VERSION, "sha256": _UNSIGNED}
    try:
        if structure.layers or structure.coded:
            tensors = put_together(tensors, to_json(structure))
        else:
            text |= {"version": 1, "structure": to_json(structure)}
        data = to_safetensors(tensors, {FORMAT: json.dumps(text, separators=(",", ":"))})
    except (KeyError, ValueError, SafetensorError) as error:
        raise ValueError(f"the model's state can't be written as safetensors: {error}") from error
    digest = _DIGEST.search(data)
    assert digest is not None
    signed = data[: digest.start(1)] + sha256([data]).encode()
    return signed, memoryview(data)[digest.end(1) :]


def _origin(model: nn.Module) -> dict | None:
    """What `splore.vision.build` noted on the network; not any other attribute of that name."""
    if not hasattr(model, "origin"):
        return None
    from splore.vision import Origin

    return asdict(model.origin) if isinstance(model.origin, Origin) else None


def _read(path: str | os.PathLike) -> tuple[Structure, dict[str, Tensor]]:
    """The structure and the tensors of a file whose digest is right."""
    path = located(path)
    if not path.is_file():
        found = "something that is not a file" if path.exists() else "nothing"
        raise ModelFileError(f"expected a model file at {str(path)!r}, found {found}: check the path")
    try:
        with safe_open(path, "pt") as file:
            content = _checked(path, (file.metadata() or {}).get(FORMAT))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"expected a whole safetensors file at {str(path)!r}, found one that can't be read ({error}): "
            "it is truncated, altered or of another kind; get the file anew"
        ) from error
    structure = content.get("structure")
    if content["version"] >= 3:
        try:
            structure, tensors = take_apart(tensors)
        except (SafetensorError, ValueError) as error:
            raise ModelFileError(
                f"expected small tensors and their header in {str(path)!r}, found some that can't be read ({error}): "
                "get the file anew"
            ) from error
    return from_json(structure), tensors


def _checked(path: str | os.PathLike, text: str | None) -> dict[str, Any]:
    """What the metadata say, once format, version and digest are right."""
    try:
        content = json_object(text or "")
    except ValueError:
        content = {}
    if content.get("format") != FORMAT:
        raise ModelFileError(
            f"expected a model that splore saved at {str(path)!r}, found a safetensors file without its description: "
            "load it with the program that wrote it"
        )
    version = content.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ModelFileError(
            f"expected a model file of version {VERSION} or below at {str(path)!r}, found {str(version)[:20]}: "
            "it needs a newer splore"
        )
    digest = _digest(path)
    if digest is None or content.get("sha256") != digest:
        raise ModelFileError(
            f"expected the contents that were saved at {str(path)!r}, found others (the SHA-256 differs): "
            "the file was altered or damaged; get it anew"
        )
    return content


def _digest(path: str | os.PathLike) -> str | None:
    """The SHA-256 of a file with zeros in the place of the one that its header states; None where it states none."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(0)
        header = file.read(8 + length)
        stated = _DIGEST.search(header)
        if stated is None:
            return None
        unsigned = header[: stated.start(1)] + _UNSIGNED.encode() + header[stated.end(1) :]
        return sha256(chain([unsigned], iter(lambda: file.read(1 << 20), b"")))
