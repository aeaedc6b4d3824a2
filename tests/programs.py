"""Small random programs, all of them valid: what the tests of files and kernels run on."""

import numpy as np

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


def random_act(rng: np.random.Generator) -> Act:
    return list(Act)[rng.integers(len(Act))]


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


def random_conv(rng: np.random.Generator, name: str, x: int, shape: Shape, residuals: dict[Shape, int]) -> Conv:
    """A convolution of the value x (C, H, W) with any attributes, often with a residual."""
    c, height, width = shape
    kernel = [int(min(side, rng.choice([1, 1, 2, 3, 3, 5]))) for side in (height, width)]
    dilation = [
        int(rng.integers(1, max(2, min(4, 1 + (side - 1) // max(k - 1, 1)))))
        for side, k in zip((height, width), kernel, strict=True)
    ]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    stride = [int(rng.choice([1, 1, 2, 3])) for _ in range(2)]
    pad = [int(rng.integers(0, 1 + side)) if rng.random() < 0.7 else 0 for side in reach * 2]
    groups = int(rng.choice([1, 1, 1, c, *(g for g in (2, 3) if c % g == 0)]))
    n = groups * int(rng.integers(1, max(2, 20 // groups)))
    if rng.random() < 0.4:  # the shape of the input again
        n, stride, groups, pad = c, [1, 1], 1, [side // 2 for side in reach] + [side - side // 2 for side in reach]
    conv = Conv(
        name, (x,), random_weight(rng, n, c // groups * kernel[0] * kernel[1], groups), floats(rng, n),
        tuple(kernel), tuple(stride), tuple(pad), tuple(dilation), groups, random_act(rng),
        Scale(floats(rng, c), floats(rng, c)) if rng.random() < 0.2 else None,
    )  # fmt: skip
    residual = residuals.get(conv.shape(shape))
    return conv if residual is None or rng.random() < 0.3 else Conv(**vars(conv) | {"inputs": (x, residual)})


def random_op(rng: np.random.Generator, name: str, shapes: list[Shape]) -> Op:
    """Any operation that some of the values so far allow."""
    x = int(rng.integers(max(0, len(shapes) - 3), len(shapes)))
    shape = shapes[x]
    same = {shape: index for index, shape in enumerate(shapes)}
    vectors = [index for index, other in enumerate(shapes) if other == (shape[0], 1, 1)]
    kind = rng.choice(["conv", "conv", "conv", "conv", "pool", "add", "mul", "activate", "affine", "concat", "flatten"])
    if kind == "pool":
        kernel = (
            tuple(int(rng.integers(1, min(side, 4) + 1)) for side in shape[1:]) if rng.random() < 0.7 else shape[1:]
        )
        pad = tuple(int(rng.integers(0, k)) if rng.random() < 0.4 else 0 for k in kernel * 2)
        stride = tuple(int(rng.integers(1, 4)) for _ in range(2))
        return Pool(name, (x,), str(rng.choice(["max", "avg"])), kernel, stride, pad, bool(rng.integers(2)))
    if kind == "add":
        return Add(name, (x, same[shape]), random_act(rng))
    if kind == "mul":
        return Mul(name, (x, int(rng.choice(vectors)) if vectors else same[shape]), random_act(rng))
    if kind == "activate":
        return Activate(name, (x,), random_act(rng))
    if kind == "affine":
        return Affine(name, (x,), Scale(floats(rng, shape[0]), floats(rng, shape[0])), random_act(rng))
    if kind == "concat" and shape[0] < 40:
        alike = [index for index, other in enumerate(shapes) if other[1:] == shape[1:] and other[0] < 40]
        return Concat(name, tuple(int(index) for index in rng.choice(alike, rng.integers(1, 4))))
    if kind == "flatten" and np.prod(shape) < 400:
        return Flatten(name, (x,))
    return random_conv(rng, name, x, shape, same)


def random_program(seed: int, ops: int | None = None) -> Program:
    """A program of 1 to 8 operations on small images; some of its values may be read by nobody."""
    rng = np.random.default_rng(seed)
    shapes = [(int(rng.integers(1, 14)), *(int(side) for side in rng.integers(1, 14, 2)))]
    found: list[Op] = []
    for index in range(ops or int(rng.integers(1, 9))):
        op = random_op(rng, f"op{index}", shapes)
        shapes.append(op.shape(*(shapes[value] for value in op.inputs)))
        found.append(op)
    flat = [shape[1:] == (1, 1) and bool(rng.integers(2)) for shape in (shapes[0], shapes[-1])]
    return Program(shapes[0], tuple(found), *flat)
