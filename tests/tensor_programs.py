"""Random operations on tensors, all of them valid: see `programs`."""

from math import prod

import numpy as np

from splore.engine.program import Act, Op, Scale, Shape
from splore.engine.tensor_ops import (
    Clamp,
    Combine,
    Constant,
    Factor,
    Fn,
    Leaky,
    MatMul,
    Normalize,
    Reorder,
    Resample,
    Softmax,
)

MOST = 3000  # elements of what an operation gives
TAME = (Act.NONE, Act.RELU, Act.TANH, Act.ABS, Act.ELU, Act.GELU_TANH)  # functions that keep numbers near one


def random_factors(rng: np.random.Generator, shape: Shape) -> tuple[list[list[Factor]], Shape]:
    """Factors of each dimension of an output, and the offset: each axis of the input is cut into a few, or read only in
    part, and all are dealt out in any order, some of them as copies."""
    offset, factors = [], []
    for axis, side in enumerate(shape):
        first, step = int(rng.integers(0, side)) if rng.random() < 0.3 else 0, int(rng.choice([1, 1, 1, 2, 3]))
        count = (side - 1 - first) // step + 1
        parts = [inner for inner in range(2, count + 1) if count % inner == 0]
        inner = int(rng.choice(parts)) if parts and rng.random() < 0.5 else 1
        factors += [Factor(axis, count // inner, step * inner), Factor(axis, inner, step)]
        offset.append(first)
    if rng.random() < 0.3:
        factors.append(Factor(int(rng.integers(3)), int(rng.integers(1, 4)), 0))
    dims: list[list[Factor]] = [[], [], []]
    for factor in rng.permutation(len(factors)):
        dims[rng.integers(3)].append(factors[factor])
    return dims, tuple(offset)


def random_taps(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    size = (int(rng.integers(1, 13)), int(rng.integers(1, 4)))
    return rng.integers(0, side, size).astype(np.uint32), rng.standard_normal(size).astype(np.float32)


def random_groups(rng: np.random.Generator, channels: int) -> int:
    return int(rng.choice([groups for groups in range(1, channels + 1) if channels % groups == 0]))


def random_tensor_op(rng: np.random.Generator, name: str, x: int, shapes: list[Shape]) -> Op:
    """Any operation on tensors that the value x allows."""
    c, height, width = shapes[x]
    kind = rng.choice(["reorder", "resample", "constant", "combine", "leaky", "clamp", "norm", "softmax", "matmul"])
    if kind == "matmul" and height == 1:
        groups = random_groups(rng, c)
        if groups * width**2 < MOST:
            return MatMul(name, (x, x), groups, True, float(1 / np.sqrt(c)))
        fits = [v for v, b in enumerate(shapes) if b[1:] == (1, c // groups) and b[0] % groups == 0]
        if fits:
            return MatMul(name, (x, int(rng.choice(fits))), groups, False, 0.5)
    if kind == "reorder":
        dims, offset = random_factors(rng, shapes[x])
        if prod(factor.size for factors in dims for factor in factors) < MOST:
            return Reorder(name, (x,), *map(tuple, dims), offset)
    if kind == "resample" and c < 40:
        return Resample(name, (x,), *random_taps(rng, height), *random_taps(rng, width))
    if kind == "constant":
        size = [shapes[x], (c, 1, 1), (1, height, width), (1, 1, 1)][rng.integers(4)]
        return Constant(name, (), rng.standard_normal(size).astype(np.float32))
    if kind == "combine":
        fits = [v for v, b in enumerate(shapes) if b[0] in (1, c) and b[1:] in ((height, width), (1, 1))]
        fn = list(Fn)[rng.choice([0, 1, 2, 4, 5])]
        return Combine(name, (x, int(rng.choice(fits))), fn, TAME[rng.integers(len(TAME))])
    if kind == "leaky":
        return Leaky(name, (x,), rng.standard_normal(c).astype(np.float32))
    if kind == "softmax":
        return Softmax(name, (x,), random_groups(rng, c))
    if kind == "norm":
        factors = Scale(*rng.standard_normal((2, c)).astype(np.float32))
        return Normalize(name, (x,), random_groups(rng, c), bool(rng.integers(2)), 0.1, factors)
    low = float(rng.standard_normal())
    return Clamp(name, (x,), low, low + float(rng.random()))
