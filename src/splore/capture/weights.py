"""Weights on their way into a program: from layers, from dense tensors, scaled row by row, folded to dense."""

from dataclasses import replace

import numpy as np
from torch import Tensor

from splore.design.layers import LowRankSparse
from splore.design.matrix import Scheme
from splore.engine.weight import Floats, Indices, Weight

DENSE_FROM = 0.75
"""Stored share of a matrix from which a program holds it dense.

From a half on that is smaller, for an entry costs a value and an index; but the engine, which tries both, runs entries
faster until here.
"""


class Spatial(Weight):
    """A weight whose low-rank part is A (n kw, r), B (r, c kh): a kh x 1 convolution, then a 1 x kw one.

    It lives only until the capture writes the program, as separate convolutions; see `splore.capture.fuse`.
    """


def from_layer(layer: LowRankSparse, groups: int = 1) -> Weight:
    """The weight of a decomposed layer, part by part; folded to dense where they hold nearly as much as that, and for
    a convolution of several groups.
    """
    spatial = layer.scheme is Scheme.SPATIAL and len(layer.weight_shape) == 4
    n = layer.weight_shape[0]
    dense = _numpy(layer.compose()).reshape(n, -1)
    S = None if layer.S is None else _numpy(layer.fold(layer.S)).reshape(n, -1)
    stored = sum(part.numel() for part in layer.factors) + (0 if S is None else np.count_nonzero(S) / DENSE_FROM)
    if groups > 1 or stored >= dense.size:
        return from_dense(dense, groups)
    sparse = Weight() if S is None else Weight(None, None, None, *csr(S))
    if layer.rank == 0:
        return sparse
    if S is not None and not S.any():
        sparse = Weight()
    # A spatial matrix of a 1 x 1 kernel is the channel matrix.
    kind = Spatial if spatial and layer.weight_shape[2:] != (1, 1) else Weight
    return kind(None, _numpy(layer.A), _numpy(layer.B), sparse.values, sparse.columns, sparse.rows)


def from_dense(matrix: Floats, groups: int = 1) -> Weight:
    """The weight of a dense matrix (n, k): sparse where most of it is zero, as in a pruned network."""
    matrix = np.ascontiguousarray(matrix, np.float32)
    if groups == 1 and np.count_nonzero(matrix) < DENSE_FROM * matrix.size:
        return Weight(None, None, None, *csr(matrix))
    return Weight(dense=matrix)


def csr(matrix: Floats) -> tuple[Floats, Indices, Indices]:
    """Values, columns and row starts of the non-zero entries of a matrix (n, k)."""
    row, column = np.nonzero(matrix)
    rows = np.zeros(len(matrix) + 1, np.uint32)
    np.cumsum(np.bincount(row, minlength=len(matrix)), out=rows[1:])
    return np.ascontiguousarray(matrix[row, column], np.float32), column.astype(np.uint32), rows


def scale_rows(weight: Weight, scale: Floats) -> Weight:
    """diag(scale) W: row i of the dense part, of A and of S times scale[i] (n)."""

    def rows(part: Floats | None) -> Floats | None:
        return None if part is None else part * np.repeat(scale, len(part) // len(scale))[:, None].astype(np.float32)

    values = weight.values
    if values is not None and weight.rows is not None:
        values = values * np.repeat(scale, np.diff(weight.rows)).astype(np.float32)
    return replace(weight, dense=rows(weight.dense), A=rows(weight.A), values=values)


def _numpy(tensor: Tensor) -> Floats:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), np.float32)
