"""What a network is for: the names of its classes, and how an image becomes its input.

A model file and a program file carry it, so that whoever runs the network needs no other source. This module imports no
torch.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from splore.files import numbers, typed

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Preprocessing:
    """From the pixels of an image to what a network takes: resized, cropped, scaled to 0 ... 1, normalised.

    Raises ValueError for values that no image can have.

    Attributes:
        size: height and width of the input, in pixels.
        mean, deviation: of each channel, for pixels scaled to 0 ... 1; their number is that of the channels, 1 or 3.
        shorter_side: what the shorter side of an image is resized to, in pixels, before the central crop of `size`;
            None where images come in that size.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    shorter_side: int | None = None

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size must be height and width in pixels, found {self.size}")
        if len(self.mean) != len(self.deviation) or len(self.mean) not in (1, 3):
            raise ValueError(
                f"expected a mean and a deviation for 1 or 3 channels, found {len(self.mean)} and {len(self.deviation)}"
            )
        if not all(np.isfinite(self.mean)) or not all(0 < each < np.inf for each in self.deviation):
            raise ValueError(f"expected finite means and deviations above 0, found {self.mean} and {self.deviation}")
        if self.shorter_side is not None and self.shorter_side < max(self.size):
            raise ValueError(f"a crop of {self.size} doesn't fit a shorter side of {self.shorter_side} pixels")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the input."""
        return len(self.mean), *self.size

    def __call__(self, image: "NDArray[np.uint8] | Image") -> NDArray[np.float32]:
        """The input (C, H, W) for one image: a Pillow image, or 8-bit pixels (H, W) or (H, W, C).

        Raises:
            ValueError: it is no such image, or of another size where nothing is resized.
            ImportError: it is to be resized or changed in colour, and Pillow is not installed.
        """
        pixels = np.asarray(self._fitted(image))
        pixels = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
        height, width = self.size
        top, left = (round((has - wants) / 2) for has, wants in zip(pixels.shape[1:], self.size, strict=True))
        cropped = pixels[:, top : top + height, left : left + width].astype(np.float32) / np.float32(255)
        mean, deviation = (np.array(each, np.float32)[:, None, None] for each in (self.mean, self.deviation))
        return np.ascontiguousarray((cropped - mean) / deviation)

    def _fitted(self, image: "NDArray[np.uint8] | Image") -> "NDArray[np.uint8] | Image":
        """The image in the network's colours, resized; as it is where nothing is left to do."""
        channels, colours = len(self.mean), "RGB" if len(self.mean) == 3 else "L"
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,)):
                found = f"{image.dtype} of shape {image.shape}"
                raise ValueError(f"expected 8-bit pixels (height, width) or (height, width, 1 or 3), found {found}")
            fits = image.shape[:2] == self.size and (image.shape[2:] or (1,)) == (channels,)
            if fits and self.shorter_side in (None, min(self.size)):
                return image
            coloured = _pillow().fromarray(image[:, :, 0] if image.shape[2:] == (1,) else image).convert(colours)
        else:
            coloured = image.convert(colours)
        width, height = coloured.size
        if self.shorter_side is None:
            if (height, width) != self.size:
                raise ValueError(f"expected an image of {self.size} pixels, found {(height, width)}")
            return coloured
        width, height = (max(self.shorter_side * side // min(coloured.size), 1) for side in coloured.size)
        return coloured.resize((width, height), _pillow().Resampling.BILINEAR)


@dataclass(frozen=True)
class Task:
    """What a network is for.

    Attributes:
        classes: their names, in the order of the outputs; empty where they have none.
        preprocessing: how an image becomes the input; None where it is not known.
    """

    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None

    def to_json(self) -> dict[str, Any]:
        """The task in types that JSON has."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> "Task":
        """The task that `to_json` gave. Raises ValueError where it is none."""
        try:
            found = typed(value, dict)
            classes = tuple(typed(name, str) for name in typed(found["classes"], list))
            steps = found["preprocessing"]
            return cls(classes, None if steps is None else _preprocessing(typed(steps, dict)))
        except KeyError as error:
            raise ValueError(f"{error} is missing in the description of the task") from error


def task_of(model: object) -> Task | None:
    """The task that a model carries at `task`; not any other attribute of that name."""
    found = getattr(model, "task", None)
    return found if isinstance(found, Task) else None


def _preprocessing(value: dict[str, Any]) -> Preprocessing:
    height, width = numbers(value["size"], least=1)
    side = value["shorter_side"]
    return Preprocessing(
        (height, width), _floats(value["mean"]), _floats(value["deviation"]), None if side is None else typed(side, int)
    )


def _floats(value: object) -> tuple[float, ...]:
    found: Sequence[object] = typed(value, list)
    if not all(type(each) in (int, float) for each in found):
        raise ValueError(f"expected numbers, found {found!r:.80}")
    return tuple(float(each) for each in found)  # type: ignore[arg-type]


def _pillow() -> Any:  # noqa: ANN401
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("images are resized, and changed in colour, by Pillow: pip install pillow") from error
    return Image
