"""The native kernels in eight bits equal their twin bit for bit: each instruction set, layout, window and operation."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import ISAS, in_bytes, is_exact
from programs import floats, random_program, random_sparse

from splore.engine import reference, words
from splore.engine.integer import Convert, IntWeight, Quant, Table
from splore.engine.native import NativeError, NativeProgram
from splore.engine.program import Act, Conv, IntConv, Program
from splore.engine.weight import Scale, Weight

pytestmark = [
    pytest.mark.skipif(not ISAS, reason="the native library is not built"),
    pytest.mark.usefixtures("fast_plans"),
]


def expect_equal(program: Program, images: int, threads: int, isa: str, kernel: str = "") -> None:
    x = floats(np.random.default_rng(images), images, *program.input)
    engine = NativeProgram(program, isa, threads)
    engine.force(kernel)
    engine.plan(images)
    with np.errstate(all="ignore"):
        want = reference.run(program, x)
    engine.run(x[::-1] * 3)  # leaves other numbers everywhere
    got = engine.run(x)
    if is_exact(program):
        np.testing.assert_array_equal(got, want)
    elif np.isfinite(want).all():
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * max(1.0, float(np.abs(want).max(initial=0))))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 33), st.sampled_from([1, 2, 3]), st.sampled_from(ISAS or [None]))
def test_programs_equal_the_twin(seed, images, threads, isa):
    expect_equal(in_bytes(random_program(seed), seed), images, threads, isa)


def conv_program(seed, c, n, side, kernel, density, rank, stride=1) -> Program:
    """A pre-activation convolution of blocks and low rank between two others, the last one with a residual."""
    rng = np.random.default_rng(seed)
    k = c * kernel**2
    low_rank = {"A": floats(rng, n, rank), "B": floats(rng, rank, k)} if rank else {}
    first = Conv("first", (0,), Weight(dense=floats(rng, c, 3)), floats(rng, c))
    second = Conv(
        "second", (1,), Weight(**low_rank, **random_sparse(rng, n, k, density)), floats(rng, n), (kernel,) * 2,
        (stride,) * 2, (kernel // 2,) * 4, act=Act.RELU, pre=Scale(floats(rng, c), floats(rng, c)),
    )  # fmt: skip
    third = Conv("third", (2, 2), Weight(dense=floats(rng, n, n)), floats(rng, n), act=Act.RELU6)
    last = Conv("last", (3,), Weight(dense=floats(rng, 5, n)), floats(rng, 5))
    return in_bytes(Program((3, *side), (first, second, third, last)), seed)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", ["", "1x1 ", "1x7", "1x14", "2x7", "4x4", "parts 2", "block 1 ", "block 2 "])
@pytest.mark.parametrize("images", [1, 3, 16])
def test_every_tile_equals_the_twin(isa, kernel, images):
    expect_equal(conv_program(1, 40, 30, (14, 15), 3, 0.2, 9), images, 2, isa, kernel)
    expect_equal(conv_program(2, 19, 33, (28, 28), 3, 0.1, 0, 2), images, 1, isa, kernel)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    channels=st.tuples(st.integers(1, 70), st.integers(1, 40)),
    side=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.sampled_from([1, 3, 5]),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    rank=st.integers(0, 12),
    stride=st.sampled_from([1, 1, 2, 3]),
    images=st.integers(1, 33),
    isa=st.sampled_from(ISAS or [None]),
)
def test_convolutions_equal_the_twin(seed, channels, side, kernel, density, rank, stride, images, isa):
    c, n = channels
    rank = min(rank, n, c * kernel**2)
    expect_equal(conv_program(seed, c, n, side, kernel, density, rank, stride), images, 2, isa)


def test_a_timed_plan_equals_the_twin(monkeypatch):
    monkeypatch.delenv("SPLORE_PLAN")
    program = conv_program(3, 24, 20, (12, 12), 3, 0.3, 2)
    for images in (1, 5, 16, 40):
        expect_equal(program, images, 2, ISAS[-1])
    engine = NativeProgram(program)
    engine.plan(1)
    assert {row["bits"] for row in engine.table() if row["op"] >= 0} == {8}
    assert engine.int_peak > engine.peak


@pytest.mark.parametrize("isa", ISAS)
def test_the_largest_sums_are_exact(isa):
    """Weights and values of one sign, as large as may be, and the same with both signs."""
    k = 66308
    dense = np.full((2, k), 127, np.int8)
    dense[1, ::2] = -127
    conv = IntConv("conv", (1,), IntWeight(np.ones(2, np.float32), dense), np.zeros(2, np.float32))
    program = Program((k, 1, 1), (Convert("in", (0,), Quant(1.0)), conv))
    x = np.full((1, k, 1, 1), 255, np.float32)
    want = (dense.astype(np.int64) * 255).sum(1).astype(np.float32)
    np.testing.assert_array_equal(NativeProgram(program, isa, 1).run(x).reshape(-1), want)


CONVERT = Convert("in", (0,), Quant(1.0, 3))
WEIGHT = IntWeight(
    np.ones(4, np.float32), None, np.ones((3, 4), np.int8), np.array([0, 1, 0], np.uint32),
    np.array([0, 2, 3, 3, 3], np.uint32),
)  # fmt: skip


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("quant", 40), ("weight_scale", -1), ("values", 1), ("columns", 0), ("rows", -1), ("dense", 0), ("act", 3),
        ("rank", 2), ("groups", 2), ("kind", 0), ("kind", 10), ("kind", 11),
    ],
)  # fmt: skip
def test_the_library_checks_programs_in_bytes_itself(word, value, monkeypatch):
    conv = IntConv("conv", (1,), WEIGHT, np.zeros(4, np.float32), quant=Quant(1.0))
    program = Program((8, 1, 1), (CONVERT, conv, Convert("out", (2,))))
    NativeProgram(program)
    name = "_quant_word" if word == "quant" else "_words"
    words_of = getattr(words, name)
    monkeypatch.setattr(words, name, lambda op: words_of(op) | ({word: value} if isinstance(op, IntConv) else {}))
    with pytest.raises(NativeError):
        NativeProgram(program)


@pytest.mark.parametrize(("array", "place", "value"), [("positions", 0, 2), ("positions", 1, 0), ("rows", 1, 4)])
def test_blocks_outside_of_the_weight_are_refused(array, place, value):
    program = Program((8, 1, 1), (CONVERT, IntConv("conv", (1,), WEIGHT, np.zeros(4, np.float32))))
    changed = replace(WEIGHT, **{array: getattr(WEIGHT, array).copy()})
    object.__setattr__(program.ops[1], "weight", changed)
    getattr(changed, array)[place] = value
    with pytest.raises(NativeError, match=r"operation 1: .*(positions|rows)"):
        NativeProgram(program)


@pytest.mark.parametrize("isa", ISAS)
def test_a_table_is_read_byte_by_byte(isa):
    table = np.random.default_rng(0).permutation(256).astype(np.uint8)
    program = Program((5, 3, 7), (CONVERT, Table("table", (1,), table, Quant(0.5, 9)), Convert("out", (2,))))
    expect_equal(program, 17, 1, isa)
