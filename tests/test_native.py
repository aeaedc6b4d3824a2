"""The native kernels beside their readable twin: every kernel, layout and instruction set; threads, plans, refusals."""

import math

import fuzz_kernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import ISAS, conv_program, expect_equal
from programs import floats, random_program

from splore.engine import native, reference, words
from splore.engine.native import NativeError, NativeProgram
from splore.engine.program import Act

pytestmark = [
    pytest.mark.skipif(not ISAS, reason="the native library is not built"),
    pytest.mark.usefixtures("fast_plans"),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "kernel",
    [
        "sparse",
        "pattern",
        "dense",
        "gathered",
        "in place",
        "winograd",
        "low rank",
        "1x1",
        "1x8",
        "2x4",
        "4x4",
        "block 8 ",
    ],
)
@pytest.mark.parametrize("images", [1, 3, 16, 18])
def test_every_kernel_equals_the_reference(isa, kernel, images):
    expect_equal(conv_program(1, 40, 30, (9, 11), 3, 0.2, 9), images, isa=isa, kernel=kernel)
    expect_equal(conv_program(2, 33, 17, (8, 8), 3, 0.1, 3, residual=True), images, isa=isa, kernel=kernel)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    channels=st.tuples(st.integers(1, 70), st.integers(1, 40)),
    side=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.sampled_from([1, 2, 3, 5]),
    density=st.sampled_from([0.0, 0.02, 0.2, 1.0]),
    rank=st.integers(0, 12),
    stride=st.sampled_from([1, 1, 2, 3]),
    images=st.integers(1, 33),
    threads=st.sampled_from([1, 2, 3]),
    isa=st.sampled_from(ISAS or [None]),
)
def test_convolutions_equal_the_reference(seed, channels, side, kernel, density, rank, stride, images, threads, isa):
    c, n = channels
    rank = min(rank, n, c * kernel**2)
    expect_equal(conv_program(seed, c, n, side, kernel, density, rank, stride), images, threads, isa)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 33), st.sampled_from([1, 2]), st.sampled_from(ISAS or [None]))
def test_programs_equal_the_reference(seed, images, threads, isa):
    expect_equal(random_program(seed), images, threads, isa)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 30))
def test_no_run_reads_what_it_did_not_write(seed):
    """Several batch sizes by one engine, each after images that are no numbers: see `fuzz_kernels`."""
    assert fuzz_kernels.check(seed, isas=tuple(ISAS)) in ("equal", "not finite")


def test_a_timed_plan_equals_the_reference(monkeypatch):
    monkeypatch.delenv("SPLORE_PLAN")
    program = conv_program(3, 24, 20, (12, 12), 3, 0.15, 2)
    for images in (1, 5, 16, 40):
        expect_equal(program, images, threads=2)
    engine = NativeProgram(program, threads=1)
    engine.plan(1)
    rows = engine.table()
    assert [row["op"] for row in rows] == [-1, 0, 1, 2, -2]
    assert all(row["ms"] > 0 for row in rows) and rows[2]["macs"] > 0
    for row in rows:
        assert row["peak_share"] == pytest.approx(row["gmacs_per_s"] / (row["threads"] * engine.peak))


@pytest.mark.parametrize("plan", ["fast", ""])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_batches_of_any_size_by_one_engine(threads, plan, monkeypatch):
    monkeypatch.setenv("SPLORE_PLAN", plan)
    program = conv_program(3, 4, 6, (5, 6), 3, 0.4, 2)
    engine = NativeProgram(program, threads=threads)
    x = floats(np.random.default_rng(3), 70, *program.input)
    want = reference.run(program, x)
    for images in (70, 1, 9, 17, 25, 31, 33, 40, 47, 48, 50, 64, 2):
        if images not in (9, 47, 50):  # these run by the plans of others
            engine.plan(images)
        np.testing.assert_allclose(engine.run(x[:images]), want[:images], rtol=1e-4, atol=1e-4)
        assert len(engine.table()) >= 2


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", ["dense", "sparse"])
def test_the_table_counts_multiply_adds(isa, kernel):
    engine = NativeProgram(conv_program(0, 64, 64, (8, 8), 1, 0.5, 0), isa, 2)
    assert 0 < engine.peak < math.inf
    engine.force(kernel)
    engine.plan(16)
    first, *others = (row for row in engine.table() if row["op"] >= 0)
    assert first["macs"] == 64 * 3 * 64 * first["images"]
    for row, conv in zip(others, engine.program.ops[1:], strict=True):
        entries = 64 * 64 if kernel == "dense" else len(conv.weight.values)
        assert row["macs"] == entries * 64 * row["images"]


# A root is no number below zero, and the twin multiplies that by what is not stored too: see `test_native_nan`. A
# reciprocal near zero is as far off as its argument is rounded.
@pytest.mark.parametrize("act", [act for act in Act if act not in (Act.SQRT, Act.RECIPROCAL)])
@pytest.mark.parametrize("isa", ISAS)
def test_every_activation(act, isa):
    expect_equal(conv_program(4, 5, 6, (7, 6), 3, 0.5, 0, act=act), 2, isa=isa)


def test_a_nan_stays_where_it_belongs():
    program = conv_program(6, 8, 8, (12, 12), 3, 0.9, 0)
    x = floats(np.random.default_rng(0), 20, *program.input)
    clean = NativeProgram(program).run(x)
    x[7, 0, 0, 0] = np.nan
    y = NativeProgram(program).run(x)
    assert np.isnan(y[7]).any()
    others = np.arange(20) != 7
    np.testing.assert_array_equal(y[others], clean[others])
    np.testing.assert_array_equal(y[7, :, 6:, 6:], clean[7, :, 6:, 6:])


def test_an_empty_batch():
    program = random_program(5)
    assert NativeProgram(program).run(np.zeros((0, *program.input), np.float32)).shape == (0, *program.output)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("kind", 99), ("kind", -1), ("act", 99), ("inputs_begin", -1), ("inputs_begin", 1 << 40), ("inputs_count", 3),
        ("outputs", 0), ("outputs", 1 << 62), ("kernel_h", 0), ("kernel_w", 1 << 40), ("stride_h", 0), ("pad_top", -1),
        ("pad_left", 1 << 62), ("dilation_w", 1 << 30), ("groups", 0), ("groups", 7), ("rank", -1), ("rank", 1 << 40),
        ("bias", 50), ("bias", -1), ("values", 0), ("columns", 0), ("rows", -1), ("A", 10),
    ],
)  # fmt: skip
def test_the_library_checks_programs_itself(word, value, monkeypatch):
    words_of = words._words
    monkeypatch.setattr(words, "_words", lambda op: words_of(op) | {word: value})
    if word in ("inputs_begin", "inputs_count"):
        raw_of = native.raw_program

        def raw(program):
            made, keep = raw_of(program)
            keep[0][:, words._WORDS.index(word)] = value
            return made, keep

        monkeypatch.setattr(native, "raw_program", raw)
    with pytest.raises(NativeError):
        NativeProgram(conv_program(2, 4, 5, (6, 6), 3, 0.3, 2))


def test_columns_outside_of_the_weight_are_refused():
    program = conv_program(2, 4, 5, (6, 6), 3, 0.9, 0)
    program.ops[1].weight.columns[-1] = 36
    with pytest.raises(NativeError, match="operation 1: .*columns"):
        NativeProgram(program)


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(NativeError, match="avx1024"):
        NativeProgram(random_program(0), "avx1024")
