"""Matrices and images as small PNG pictures within the page."""

import base64
import io
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splore.design.layers import LowRankSparse, decomposed_layers

LEVELS = 15
"""Shades of each sign; few enough that a picture of noise stays small."""
POSITIVE, NEGATIVE = (38, 148, 98), (150, 92, 190)
"""A green and a violet that the colour-blind tell apart, of equal weight on white and on black."""
PIXELS = 1_200_000
"""Pixels of all pictures of a page together."""


@dataclass(frozen=True)
class LayerPicture:
    """W = A·B + S of one layer.

    Attributes:
        layer: the layer's name.
        shape: rows and columns of the matrix.
        rank: of A·B.
        nnz: entries that S holds, or None without a sparse part.
        block: rows and columns of the matrix that one pixel stands for: it shows their largest entry.
        limit: the magnitude that is drawn in full colour.
        parts: the pictures of W, A·B and S, by name, as data URIs; one alone where W has but one part.
    """

    layer: str
    shape: tuple[int, int]
    rank: int
    nnz: int | None
    block: tuple[int, int]
    limit: float
    parts: dict[str, str]


@torch.no_grad()
def layer_pictures(model: nn.Module, pixels: int = PIXELS) -> list[LayerPicture]:
    """A picture of each decomposed layer, of at most so many pixels together."""
    layers = decomposed_layers(model)
    pictures = []
    for name, layer in layers.items():
        W = layer.matrix.float()
        m, k = W.shape
        block = _block(m, k, pixels // (3 * len(layers)))
        limit = max(float(W.abs().flatten().kthvalue(max(int(0.995 * W.numel()), 1)).values), 1e-12)
        pictures.append(
            LayerPicture(
                layer=name,
                shape=(m, k),
                rank=layer.rank,
                nnz=None if layer.S is None else int(layer.nnz),
                block=block,
                limit=limit,
                parts={part: matrix_uri(largest(matrix, block) / limit) for part, matrix in _parts(layer).items()},
            )
        )
    return pictures


def largest(matrix: Tensor, block: tuple[int, int]) -> Tensor:
    """The entry of the greatest magnitude in each block of rows and columns, with its sign."""
    high, low = (F.max_pool2d(each[None, None], block, ceil_mode=True)[0, 0] for each in (matrix, -matrix))
    return torch.where(high >= low, high, -low)


def matrix_uri(matrix: Tensor) -> str:
    """A matrix of values from -1 to 1 as a picture: the sign is its colour, the magnitude its opacity.

    Zero is transparent, so that one picture serves on light and on dark paper.
    """
    from PIL import Image

    index = (matrix.clamp(-1, 1) * LEVELS).round().to(torch.int16) + LEVELS
    picture = Image.fromarray(index.to(torch.uint8).numpy())
    picture = picture.convert("L")
    picture.putpalette([part for level in range(2 * LEVELS + 1) for part in (NEGATIVE, POSITIVE)[level > LEVELS]])
    opacity = bytes(round(255 * abs(level - LEVELS) / LEVELS) for level in range(2 * LEVELS + 1))
    return _uri(picture, transparency=opacity)


def image_uri(image: Tensor, side: int = 96) -> str:
    """An image (C, H, W) of values from 0 to 1, of one or three channels, at most `side` pixels wide and high."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    picture = Image.fromarray((pixels[0] if len(pixels) == 1 else pixels[:3].permute(1, 2, 0)).contiguous().numpy())
    picture.thumbnail((side, side))
    return _uri(picture)


def _parts(layer: LowRankSparse) -> dict[str, Tensor]:
    if layer.S is None:
        return {"W = A·B": layer.low_rank.float()}
    if layer.rank == 0:
        return {"W = S": layer.S.float()}
    return {"W": layer.matrix.float(), "A·B": layer.low_rank.float(), "S": layer.S.float()}


def _block(m: int, k: int, pixels: int) -> tuple[int, int]:
    """The smallest squares, or strips where the matrix is narrow, that leave at most so many pixels."""
    side = 1
    while -(-m // min(side, m)) * -(-k // min(side, k)) > pixels:
        side += 1
    return min(side, m), min(side, k)


def _uri(picture, **options: bytes) -> str:  # noqa: ANN001
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
