"""Small random programs, all of them valid: what the tests of files and kernels run on."""

from dataclasses import replace

import numpy as np
from tensor_programs import random_tensor_op

from splore.engine.program import (
    Act,
    Activate,
    Add,
    Affine,
    Concat,
    Conv,
    Flatten,
    Mul,
    Op,
    Pool,
    Program,
    Scale,
    Shape,
    Weight,
)

SIDES = (1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 16, 21, 28)  # of the first map


WILD = (Act.EXP, Act.SQRT, Act.RECIPROCAL)  # one after another they leave every range
ACTS = [act for act in Act if act not in WILD]


def random_act(rng: np.random.Generator) -> Act:
    return ACTS[rng.integers(len(ACTS))]


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def random_sparse(rng: np.random.Generator, n: int, k: int, density: float) -> dict[str, np.ndarray]:
    """A random CSR matrix (n, k), some of its rows empty."""
    kept = rng.random((n, k)) < density
    kept[rng.random(n) < 0.15] = False
    rows = np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.uint32)
    return {"values": floats(rng, int(rows[-1])), "columns": np.nonzero(kept)[1].astype(np.uint32), "rows": rows}


def random_weight(rng: np.random.Generator, n: int, k: int, groups: int) -> Weight:
    """Any sum of parts, scaled so that values stay near one through a network."""
    parts = {}
    scale = np.float32(1 / np.sqrt(k))
    kinds = rng.random(3) < 0.5
    if groups > 1 or kinds[0] or not kinds.any():
        parts["dense"] = floats(rng, n, k) * scale
    if groups == 1 and kinds[1]:
        rank = int(rng.integers(1, min(n, k, 6) + 1))
        parts |= {"A": floats(rng, n, rank), "B": floats(rng, rank, k) * scale}
    if groups == 1 and kinds[2]:
        parts |= random_sparse(rng, n, k, rng.choice([0.0, 0.03, 0.2, 0.7, 1.0]))
    return Weight(**parts)


def random_window(rng: np.random.Generator, side: int) -> tuple[int, int, int, int, int]:
    """Kernel, stride, dilation, and the pads before and after, of a window along one side. Some windows lie on nothing
    but padding, some step over pixels, and some reach over more than the map."""
    kernel = int(rng.choice([1, 1, 2, 3, 3, 5]))
    dilation, stride = int(rng.choice([1, 1, 1, 2, 3, 6])), int(rng.choice([1, 1, 1, 2, 3, 7]))
    reach = dilation * (kernel - 1)
    most = int(rng.choice([0, reach // 2, reach, 2 * reach + 3])) if side < 24 else reach // 2
    before, after = (int(pad) for pad in rng.integers(0, most + 1, 2))
    if side + before + after <= reach:
        return 1, stride, 1, before, after
    return kernel, stride, dilation, before, after


def random_conv(rng: np.random.Generator, name: str, x: int, shapes: list[Shape]) -> Conv:
    """A convolution of the value x with any attributes, often with a residual: any value of the right shape."""
    c, height, width = shapes[x]
    tall, wide = random_window(rng, height), random_window(rng, width)
    kernel, stride, dilation, before, after = zip(tall, wide, strict=True)
    groups = int(rng.choice([1, 1, 1, c, *(g for g in (2, 3) if c % g == 0)]))
    n = groups * int(rng.integers(1, max(2, 20 // groups)))
    if rng.random() < 0.5:  # the shape of the input again, at any stride
        n, groups, stride = c, 1, tuple(int(step) for step in rng.choice([1, 1, 1, 1, 2, 3], 2))
        whole = [
            (side - 1) * (step - 1) + d * (k - 1)
            for side, step, d, k in zip((height, width), stride, dilation, kernel, strict=True)
        ]
        before = tuple(int(rng.choice([pad // 2, rng.integers(pad + 1)])) for pad in whole)
        after = tuple(pad - first for pad, first in zip(whole, before, strict=True))
    conv = Conv(
        name, (x,), random_weight(rng, n, c // groups * kernel[0] * kernel[1], groups), floats(rng, n),
        kernel, stride, before + after, dilation, groups, random_act(rng),
        Scale(floats(rng, c), floats(rng, c)) if rng.random() < 0.3 else None,
    )  # fmt: skip
    residuals = [value for value, shape in enumerate(shapes) if shape == conv.shape(shapes[x])]
    return replace(conv, inputs=(x, int(rng.choice(residuals)))) if residuals and rng.random() < 0.7 else conv


def random_op(rng: np.random.Generator, name: str, shapes: list[Shape]) -> Op:
    """Any operation that some of the values so far allow."""
    x = len(shapes) - 1 if rng.random() < 0.6 else int(rng.integers(max(0, len(shapes) - 4), len(shapes)))
    shape = shapes[x]
    same = [index for index, other in enumerate(shapes) if other == shape]
    vectors = [index for index, other in enumerate(shapes) if other == (shape[0], 1, 1)]
    kinds = ["conv"] * 4 + ["tensor"] * 3 + ["pool", "add", "mul", "activate", "affine", "concat", "flatten"]
    kind = rng.choice(kinds)
    if kind == "tensor":
        return random_tensor_op(rng, name, x, shapes)
    if kind == "pool":
        kernel = (
            tuple(int(rng.integers(1, min(side, 4) + 1)) for side in shape[1:]) if rng.random() < 0.7 else shape[1:]
        )
        pad = tuple(int(rng.integers(0, k)) if rng.random() < 0.4 else 0 for k in kernel * 2)
        stride = tuple(int(rng.choice([1, 2, 2, 3, 6])) for _ in range(2))
        if min(shape[1:]) > 1 and rng.random() < 0.3:
            kernel, stride, pad = (2, 2), (2, 2), (0, 0, 0, 0)
        return Pool(name, (x,), str(rng.choice(["max", "avg"])), kernel, stride, pad, bool(rng.integers(2)))
    if kind == "add":
        return Add(name, (x, int(rng.choice(same))), random_act(rng))
    if kind == "mul":
        return Mul(name, (x, int(rng.choice(vectors or same))), random_act(rng))
    if kind == "activate":
        return Activate(name, (x,), random_act(rng))
    if kind == "affine":
        return Affine(name, (x,), Scale(floats(rng, shape[0]), floats(rng, shape[0])), random_act(rng))
    if kind == "concat" and shape[0] < 40:
        alike = [index for index, other in enumerate(shapes) if other[1:] == shape[1:] and other[0] < 40]
        return Concat(name, tuple(int(index) for index in rng.choice(alike, rng.integers(1, 4))))
    if kind == "flatten" and np.prod(shape) < 400:
        return Flatten(name, (x,))
    return random_conv(rng, name, x, shapes)


def random_program(seed: int, ops: int | None = None) -> Program:
    """A program of 1 to 8 operations on small images; some of its values may be read by nobody."""
    rng = np.random.default_rng(seed)
    shapes = [(int(rng.integers(1, 14)), *(int(side) for side in rng.choice(SIDES, 2)))]
    found: list[Op] = []
    for index in range(ops or int(rng.integers(1, 9))):
        op = random_op(rng, f"op{index}", shapes)
        shapes.append(op.shape(*(shapes[value] for value in op.inputs)))
        found.append(op)
    flat = [shape[1:] == (1, 1) and bool(rng.integers(2)) for shape in (shapes[0], shapes[-1])]
    return Program(shapes[0], tuple(found), *flat)
