"""Starting values of A, B and S.

From a trained weight W nothing is lost: L is its best rank-r approximation and S the rest, so A·B + S is W. Where S may
keep only some of its entries, L and S are found by alternating a truncated SVD and a hard threshold (after GoDec: Zhou
& Tao, 2011); without an S, A·B is the best approximation of its rank.

From scratch, `svd` splits the weight that the dense layer drew in the same way, so the composed weight has the
distribution that the dense layer would have had, and a network starts as the very function that its dense twin with the
same seed starts as; or A, B and S are drawn apart from each other, so that their sum has that distribution's variance.
All of them are our choice.
"""

from typing import Literal

import torch
from torch import Tensor

from splore.design.blocks import ENTRIES, Blocks, best_within

Start = Literal["trained", "svd", "random"]
"""`trained` keeps the weight that the layer has. Two start afresh: `svd` splits the draw of the dense layer, `random`
draws A, B and S apart, half of the variance to A·B."""


def low_rank_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (m, r) and B (r, k) with A·B the best rank-r approximation of `matrix` (m, k), both of equal norm.

    Works in float64 on the smaller Gram matrix, which is much faster than an SVD of a wide kernel matrix.
    """
    exact = matrix.double()
    if matrix.shape[0] > matrix.shape[1]:
        B, A = low_rank_factors(matrix.T, rank)
        return A.T.contiguous(), B.T.contiguous()
    _, vectors = torch.linalg.eigh(exact @ exact.T)
    U = vectors.flip(1)[:, :rank]
    B = U.T @ exact
    root = B.norm(dim=1).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return (U * root).to(matrix), (B / root[:, None]).to(matrix)


def singular_energies(matrix: Tensor) -> Tensor:
    """The squared singular values of a matrix (m, k), largest first, in float64 on the CPU."""
    exact = matrix.detach().double().cpu()
    gram = exact @ exact.T if exact.shape[0] <= exact.shape[1] else exact.T @ exact
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)


@torch.no_grad()
def from_scratch(matrix: Tensor, rank: int, sparse: bool, start: Start = "svd") -> tuple[Tensor, Tensor, Tensor | None]:
    """A, B and S from `matrix`, the fresh draw (m, k) of the dense layer: by `svd` with A·B + S = `matrix`.

    Without a sparse part, A·B gets the Frobenius norm of the draw instead, and so its variance.
    """
    if start == "svd" or rank == 0:
        A, B = low_rank_factors(matrix, rank)
        if sparse:
            return A, B, matrix - A @ B
    else:
        A, B = matrix.new_empty(len(matrix), rank).normal_(), matrix.new_empty(rank, matrix.shape[1]).normal_()
    share = 0.5**0.5 if sparse else 1.0
    gain = (share * matrix.norm() / (A @ B).norm().clamp_min(torch.finfo(torch.float32).tiny)).sqrt()
    return A * gain, B * gain, share * matrix if sparse else None


@torch.no_grad()
def from_trained(
    matrix: Tensor, rank: int, sparse: bool, density: float = 1.0, blocks: Blocks = ENTRIES, rounds: int = 10
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A, B and S from a trained weight matrix (m, k): with A·B + S = `matrix`, if S may keep all of its entries.

    With a lower density it alternates L := the best rank-r approximation of W - S, and S := the round(density m k)
    entries of W - L that are largest in magnitude, as whole blocks of the greatest energy an entry, for a number of
    rounds; S ends as W - L where it is kept, so those entries of W are exact. Without a sparse part, A·B is the best
    rank-r approximation.
    """
    A, B = low_rank_factors(matrix, rank)
    if not sparse:
        return A, B, None
    if density == 1:
        return A, B, matrix - A @ B
    for _ in range(rounds):
        kept = _largest(matrix - A @ B, round(density * matrix.numel()), blocks)
        A, B = low_rank_factors(matrix - (matrix - A @ B) * kept, rank)
    return A, B, (matrix - A @ B) * kept


def _largest(matrix: Tensor, count: int, blocks: Blocks) -> Tensor:
    """The mask of the `count` entries that are largest in magnitude, or of as many as whole blocks allow."""
    sizes = blocks.sizes(matrix)
    scores = blocks.norms(matrix) / sizes.sqrt()
    return blocks.spread(best_within(scores.flatten(), sizes.flatten(), count).view_as(sizes))
