"""The net of a model file, for the commands that take one."""

from collections.abc import Sequence
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


def image_of(net: "nn.Module", source: str, channels: int, given: Sequence[int] | None) -> tuple[int, int, int]:
    """(C, H, W) of the images for a net: those given, those of its file's preprocessing, or the usual ones."""
    from splore.task import task_of
    from splore.vision import usual_image

    if given is not None:
        return checked_image(given)
    task = task_of(net)
    if task is not None and task.preprocessing is not None:
        return task.preprocessing.shape
    return usual_image(source, channels)


def checked_image(given: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W) as it was given. Raises Misuse where it is none."""
    if len(given) != 3 or min(given) < 1:
        raise Misuse(f"--image is channels, height and width, found {list(given)}")
    return given[0], given[1], given[2]


def is_program(file: str) -> bool:
    """Whether a file is a program of the engine, by what it holds; what can't be read is none."""
    from safetensors import SafetensorError, safe_open

    from splore.engine.program_file import PROGRAM

    try:
        with safe_open(file, "numpy") as opened:
            return PROGRAM in (opened.metadata() or {})
    except (OSError, SafetensorError):
        return False
