"""A kernel seen as a matrix: the two schemes in which W = A·B + S is written.

A convolution kernel of shape (n, c, kh, kw) becomes

- `CHANNEL`: the matrix n x (c kh kw). A·B is then a kh x kw convolution to r channels followed by a 1 x 1.
- `SPATIAL`: the matrix (n kw) x (c kh). A·B is then a kh x 1 convolution to r channels followed by a 1 x kw
  (Jaderberg et al., 2014); for n close to c it costs fewer parameters per rank.

A weight of `nn.Linear` is a matrix already, and both schemes leave it as it is; kernels of one and of three dimensions
are laid out by channels in both. The weight (c, n, ...) of a transposed convolution is seen as (n, c, ...). That of a
grouped convolution has the c of one group: the groups share B. Which matricisation the paper uses is not known to us:
all of this is our choice.
"""

from enum import Enum
from math import prod

from torch import Size, Tensor


class Scheme(str, Enum):
    """How a kernel is laid out as a matrix."""

    CHANNEL = "channel"
    SPATIAL = "spatial"


def unfold(weight: Tensor, scheme: Scheme, transposed: bool = False) -> Tensor:
    """The matrix of a weight: (n, c, kh, kw) -> (n, c kh kw) or (n kw, c kh); (n, k) -> (n, k)."""
    if transposed:
        weight = weight.transpose(0, 1)
    if weight.dim() != 4 or scheme is Scheme.CHANNEL:
        return weight.flatten(1)
    n, c, kh, kw = weight.shape
    return weight.permute(0, 3, 1, 2).reshape(n * kw, c * kh)


def fold(matrix: Tensor, shape: Size | tuple[int, ...], scheme: Scheme, transposed: bool = False) -> Tensor:
    """The weight of a matrix: the inverse of `unfold` for a weight of this shape."""
    if transposed:
        return fold(matrix, (shape[1], shape[0], *shape[2:]), scheme).transpose(0, 1)
    if len(shape) != 4 or scheme is Scheme.CHANNEL:
        return matrix.view(shape)
    n, c, kh, kw = shape
    return matrix.view(n, kw, c, kh).permute(0, 2, 3, 1)


def matrix_shape(shape: Size | tuple[int, ...], scheme: Scheme, transposed: bool = False) -> tuple[int, int]:
    """Rows and columns of the matrix of a weight of this shape."""
    if transposed:
        shape = (shape[1], shape[0], *shape[2:])
    if len(shape) != 4 or scheme is Scheme.CHANNEL:
        return shape[0], prod(shape[1:])
    n, c, kh, kw = shape
    return n * kw, c * kh
