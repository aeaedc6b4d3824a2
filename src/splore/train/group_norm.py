"""The l1 where S is kept in blocks: a group norm, which empties whole blocks (Yuan & Lin, 2006).

A block b of n entries weighs √n ||S_b||, with ||.|| its Euclidean norm: as much as the l1 of n entries of one size. For
blocks of 1 that is the l1.
"""

from torch import Tensor

from splore.design.blocks import Blocks

STEPS = 8
"""Newton steps for the norm of a block whose entries move at rates of their own; they settle in two or three."""

TINY = 1e-30


def group_norm(S: Tensor, blocks: Blocks) -> Tensor:
    """The sum over blocks of √n ||S_b||, a differentiable scalar."""
    return (blocks.norms(S) * _roots(S, blocks)).sum()


def subgradient(S: Tensor, blocks: Blocks) -> Tensor:
    """√n S_b / ||S_b|| (m, k), and 0 in blocks of zeros: a subgradient of `group_norm`."""
    norms = blocks.norms(S)
    return S * blocks.spread((_roots(S, blocks) / norms).masked_fill(norms == 0, 0))


def shrunk(S: Tensor, blocks: Blocks, threshold: float | Tensor) -> Tensor:
    """The proximal step (m, k) of the group norm by a threshold t, for all entries or for each (m, k).

    With one t, S_b (1 - √n t / ||S_b||), and a block whose norm is at most √n t becomes exactly zero. With a t for each
    entry it is the x that makes least of √n ||x|| + sum of (x - S)^2 / (2 t) over the block: zero where the norm of
    S / t is at most √n, otherwise S v / (v + √n t), in which v is the norm of x itself.
    """
    if not isinstance(threshold, Tensor):
        least = threshold * _roots(S, blocks)
        norms = blocks.norms(S)
        return S * blocks.spread(((norms - least) / norms).masked_fill(norms <= least, 0))
    t = (threshold * blocks.spread(_roots(S, blocks))).clamp_min(TINY)
    zero = blocks.norms(S / t) <= 1
    v = (blocks.norms(S) - blocks.norms(t)).clamp_min(0)  # never above the norm that is sought
    for _ in range(STEPS):  # as Moré & Sorensen (1983) have it: a concave function, so v comes nearer from below
        below = blocks.spread(v) + t
        squares = (S / below).square()
        total = blocks.sums(squares)
        v = v + (total * (total.sqrt() - 1) / blocks.sums(squares / below)).masked_fill(zero, 0)
    x = blocks.spread(v.masked_fill(zero, 0))
    return S * (x / (x + t))


def _roots(S: Tensor, blocks: Blocks) -> Tensor:
    """√n of the blocks of any row (1, b)."""
    return blocks.sizes(S.new_empty(1, S.shape[1])).to(S).sqrt()
