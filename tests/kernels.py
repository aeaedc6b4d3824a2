"""What the tests of the native kernels share: the instruction sets at hand, programs, and the comparison."""

import numpy as np
from programs import floats, random_program, random_sparse

from splore.engine import native, reference
from splore.engine.integer import Convert
from splore.engine.native import NativeError, NativeProgram
from splore.engine.program import Act, Conv, IntConv, Pool, Program, Scale, Weight
from splore.engine.quantise import calibrate, quantise


def available() -> list[str]:
    try:
        native.load_library()
    except NativeError:
        return []
    tiny = random_program(0)
    found = []
    for isa in ("generic", "avx2", "avxvnni", "avx512", "avx512vnni"):
        try:
            NativeProgram(tiny, isa)
        except NativeError:
            continue
        found.append(isa)
    return found


ISAS = available()


def in_bytes(program: Program, seed: int) -> Program:
    """The program in eight bits, as far as its values are finite for some images."""
    x = floats(np.random.default_rng([seed, 2]), 3, *program.input)
    with np.errstate(all="ignore"):
        ranges = calibrate(program, [x])
    return quantise(program, {name: pair for name, pair in ranges.items() if np.isfinite(pair).all()})


def is_exact(program: Program) -> bool:
    """Whether all that is reckoned in float32 are the last sums, products and clamps of an operation in bytes."""
    clamps = (Act.NONE, Act.RELU, Act.RELU6)
    return all(
        isinstance(op, Convert) or (op.act in clamps if isinstance(op, IntConv) else getattr(op, "quant", None))
        for op in program.ops
    )


def expect_equal(program: Program, images: int, threads: int = 1, isa: str | None = None, kernel: str = "") -> None:
    x = floats(np.random.default_rng(images), images, *program.input)
    engine = NativeProgram(program, isa, threads)
    engine.force(kernel)
    engine.plan(max(1, images))
    want, got = reference.run(program, x), engine.run(x)
    largest = max(1.0, float(np.abs(want).max(initial=0)))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5 * largest)


def conv_program(
    seed: int, c: int, n: int, side: tuple[int, int], kernel: int, density: float, rank: int, stride: int = 1,
    act: Act = Act.RELU, residual: bool = False,
) -> Program:  # fmt: skip
    """A convolution of two inputs' worth of structure behind another one, so that borders are written by a kernel."""
    rng = np.random.default_rng(seed)
    k = c * kernel**2
    low_rank = {"A": floats(rng, n, rank), "B": floats(rng, rank, k) / np.float32(k**0.5)} if rank else {}
    sparse = random_sparse(rng, n, k, density)
    sparse["values"] /= np.float32(max(1.0, k * density) ** 0.5)
    first = Conv("first", (0,), Weight(dense=floats(rng, c, 3)), floats(rng, c))
    second = Conv(
        "second", (1,), Weight(**low_rank, **sparse), floats(rng, n), (kernel,) * 2, (stride,) * 2, (kernel // 2,) * 4,
        act=act, pre=Scale(floats(rng, c), floats(rng, c)) if seed % 2 else None,
    )  # fmt: skip
    shape = second.shape((c, *side))
    third = Conv("third", (2, 2) if residual else (2,), Weight(**random_sparse(rng, n, n, 0.3)), floats(rng, n))
    assert shape[0] == n
    return Program((3, *side), (first, second, third))


def halved(x: int) -> Pool:
    return Pool("halved", (x,), "max", (2, 2), (2, 2))


def planned(program: Program, isa: str, kernel: str = "") -> list[dict]:
    engine = NativeProgram(program, isa, 1)
    engine.force(kernel)
    engine.plan(16)
    return engine.table()
