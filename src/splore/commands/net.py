"""The net of a model file, for the commands that take one."""

from typing import TYPE_CHECKING

from splore.commands.parser import Misuse

if TYPE_CHECKING:
    from torch import nn


def loaded(file: str, factory: str | None) -> tuple["nn.Module", str, int]:
    """The net of a model file, where it came from, and the channels of its images (0 where the file doesn't say).

    `factory` names what builds a net that is neither the zoo's nor a library's.
    """
    from splore.modelfile.file import load, read_structure
    from splore.vision import build

    origin = read_structure(file).origin or {}
    source = str(origin.get("source", ""))
    if factory is None and ":" in source and not source.startswith(("torchvision:", "timm:")):
        raise Misuse(
            f"{file} holds a net of your own: name the function that builds it, --model={source}, if you trust its code"
        )
    wanted = {key: int(origin[key]) for key in ("num_classes", "in_channels") if key in origin}
    net = None if factory is None else build(factory, wanted.get("num_classes", 1000), wanted.get("in_channels", 3))
    return load(file, net), source, wanted.get("in_channels", 0)
