"""The native kernels beside their readable twin: every kernel, layout, instruction set and number of threads."""

import math
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import floats, random_act, random_program, random_sparse

from splore.deploy import native, reference
from splore.deploy.native import NativeError, NativeProgram
from splore.deploy.program import Act, Conv, Pool, Program, Scale, Weight


def available() -> list[str]:
    try:
        native.load_library()
    except NativeError:
        return []
    tiny = random_program(0)
    found = []
    for isa in ("generic", "avx2", "avx512"):
        try:
            NativeProgram(tiny, isa)
        except NativeError:
            continue
        found.append(isa)
    return found


ISAS = available()
pytestmark = pytest.mark.skipif(not ISAS, reason="the native library is not built")


@pytest.fixture(autouse=True)
def fast_plans(monkeypatch):
    monkeypatch.setenv("SPLORE_PLAN", "fast")


def expect_equal(program: Program, images: int, threads: int = 1, isa: str | None = None, kernel: str = "") -> None:
    x = floats(np.random.default_rng(images), images, *program.input)
    engine = NativeProgram(program, isa)
    engine.force(kernel)
    engine.plan(max(1, images), threads)
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


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    channels=st.tuples(st.integers(1, 60), st.integers(4, 27)),
    side=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.sampled_from([1, 3, 5]),
    density=st.sampled_from([0.2, 0.4, 0.7]),
    rank=st.integers(0, 6),
    stride=st.sampled_from([1, 1, 2, 3]),
    dilation=st.sampled_from([1, 1, 2]),
    groups=st.sampled_from([1, 1, 2, 3]),
    residual=st.booleans(),
    images=st.integers(1, 33),
    threads=st.sampled_from([1, 2, 3]),
    isa=st.sampled_from(ISAS or [None]),
)
def test_patterns_equal_the_reference(
    seed, channels, side, kernel, density, rank, stride, dilation, groups, residual, images, threads, isa
):
    """With everything that can happen to the sums: a residual, an activation, a second output."""
    rng = np.random.default_rng(seed)
    c, n = (groups * count for count in channels)
    k = c // groups * kernel**2
    weight = Weight(dense=floats(rng, n, k) * (rng.random((n, k)) < density) / np.float32(k**0.5))
    share = np.count_nonzero(weight.dense) / weight.dense.size
    if groups == 1:
        rank = min(rank, n, k)
        parts = random_sparse(rng, n, k, density)
        share = parts["values"].size / (n * k)
        parts["values"] /= np.float32(k**0.5)
        low_rank = {"A": floats(rng, n, rank), "B": floats(rng, rank, k) / np.float32(k**0.5)} if rank else {}
        weight = Weight(**parts, **low_rank)
    pad = (dilation * (kernel // 2),) * 4
    ops = (
        Conv("first", (0,), Weight(dense=floats(rng, c, 3)), floats(rng, c)),
        Conv("beside", (1,), Weight(dense=floats(rng, n, c)), floats(rng, n), (1, 1), (stride,) * 2),
        Conv(
            "patterns", (1, 2) if residual else (1,), weight, floats(rng, n), (kernel,) * 2, (stride,) * 2, pad,
            (dilation,) * 2, groups, random_act(rng),
        ),
        Conv(
            "last", (3, 3), Weight(dense=floats(rng, n, n)), floats(rng, n), pre=Scale(floats(rng, n), floats(rng, n)),
        ),
    )  # fmt: skip
    program = Program((3, *side), ops)
    expect_equal(program, images, threads, isa, "pattern")
    if share > 0.1 and share / groups < 0.75:
        steps = planned(program, isa, "pattern")
        assert all("pattern" in step["kernel"] for step in steps if step["name"] == "patterns")


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    channels=st.tuples(st.sampled_from([1, 7, 150]), st.integers(4, 40)),
    side=st.sampled_from([1, 2, 4]),
    density=st.sampled_from([0.05, 0.3, 0.6]),
    rank=st.integers(0, 9),
    kernel=st.sampled_from(["inside", "dense inside", ""]),
    images=st.integers(1, 40),
    threads=st.sampled_from([1, 2]),
    isa=st.sampled_from(ISAS or [None]),
)
def test_a_tile_that_is_the_whole_map(seed, channels, side, density, rank, kernel, images, threads, isa):
    """Such maps have no border, unless somebody else wants one."""
    c, n = channels
    program = conv_program(seed, c, n, (side, side), 3, density, min(rank, n))
    rng = np.random.default_rng(seed)
    sparse = random_sparse(rng, n, 9 * n, density)
    sparse["values"] /= np.float32(3 * n**0.5)
    again = Conv("again", (2, 2), Weight(**sparse), floats(rng, n), (3, 3), pad=(1,) * 4, act=random_act(rng))
    larger = Conv("larger", (2,), again.weight, again.bias, (3, 3), pad=(1, 1, 2, 2))
    for last in (again, larger):
        program = Program(program.input, (*program.ops[:2], last))
        expect_equal(program, images, threads, isa, kernel)
        steps = {step["name"]: step["kernel"] for step in planned(program, isa, kernel)}
        assert "inside" in steps["second"] and ("inside" in steps[last.name]) == (last is again)
    wide = Conv("wide", (1,), Weight(dense=floats(rng, n, 3 * c)), floats(rng, n), (1, 3), pad=(0, 1, 0, 1))
    add = Conv("add", (3, 2), Weight(dense=floats(rng, n, n)), floats(rng, n))  # a reader that wants half a border
    expect_equal(Program(program.input, (*program.ops[:2], wide, add)), images, threads, isa, kernel)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    channels=st.tuples(st.integers(1, 70), st.integers(9, 40)),
    side=st.tuples(st.integers(3, 20), st.integers(4, 20)),
    pad=st.tuples(*[st.integers(0, 2)] * 4),
    density=st.sampled_from([0.0, 0.03, 0.3]),
    rank=st.integers(1, 9),
    tile=st.sampled_from(["", " 1x2", " 1x7", " 2x4", " 2x7", " 4x4", "pattern", "inside"]),
    images=st.integers(16, 33),
    isa=st.sampled_from(ISAS or [None]),
)
def test_transformed_low_rank_parts_equal_the_reference(seed, channels, side, pad, density, rank, tile, images, isa):
    """Tiles of even and odd sides, with any border."""
    c, n = channels
    first, second, third = conv_program(seed, c, n, side, 3, density, min(rank, 9 * c)).ops
    second = replace(second, pad=pad)
    program = Program((3, *side), (first, second, third))
    expect_equal(program, images, 1, isa, tile)
    steps = {step["name"]: step["kernel"] for step in planned(program, isa, tile)}
    assert "winograd" in steps["second"] or "inside" in steps["second"]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", ["sparse", "pattern"])
def test_a_convolution_larger_than_the_caches(isa, kernel):
    expect_equal(conv_program(7, 80, 80, (24, 25), 3, 0.7, 3), 16, isa=isa, kernel=kernel)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("side", [(9, 70), (30, 31), (15, 8)])
@pytest.mark.parametrize("stride", [2, 3])
def test_strided_gathers(isa, side, stride):
    for kernel in (1, 3, 7):
        expect_equal(conv_program(8, 5, 9, side, kernel, 0.4, 2, stride), 1, isa=isa, kernel="gathered")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "kernel", ["sparse", "low rank", "pattern", "inside", "dense", "2x2", "2x4", "2x8", "4x4", "block 8 ", "gathered"]
)
@pytest.mark.parametrize("side, stride", [((8, 12), 1), ((2, 2), 1), ((4, 4), 1), ((20, 12), 2), ((18, 24), 3)])
def test_a_convolution_pools_its_own_tiles(isa, kernel, side, stride):
    rng = np.random.default_rng(5)
    program = conv_program(4, 20, 13, side, 3, 0.2, 3, stride)
    convs = program.ops[:2]
    add = Conv("add", (2, 2), Weight(dense=floats(rng, 13, 13), **random_sparse(rng, 13, 13, 0.3)), floats(rng, 13))
    again = Conv("again", (2,), add.weight, add.bias)  # reads the map too: it must be there
    for ops, pooled in (((*convs, halved(2)), 1), ((*convs, add, halved(3)), 1), ((*convs, halved(2), again), 0)):
        for images, threads in ((16, 1), (18, 2), (37, 2)):
            expect_equal(Program(program.input, ops), images, threads, isa, kernel)
        steps = planned(Program(program.input, ops), isa)
        assert sum("pooled" in step["kernel"] for step in steps) == pooled


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    side=st.tuples(st.integers(8, 24), st.integers(8, 24)),
    layers=st.lists(
        st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 1, 2]), st.booleans()), min_size=2, max_size=6
    ),
    kernel=st.sampled_from(["", " 1x4", " 2x2", " 4x4", "dense", "pattern"]),
    images=st.integers(16, 33),
    isa=st.sampled_from(ISAS or [None]),
)
def test_convolutions_take_turns(seed, side, layers, kernel, images, isa):
    """Chains of windows, strides and pools: each second convolution follows the first row by row of its tiles."""
    rng = np.random.default_rng(seed)
    ops, shape = [], (5, *side)
    for i, (window, stride, pool) in enumerate(layers):
        n, k = int(rng.integers(4, 20)), shape[0] * window**2
        parts = random_sparse(rng, n, k, 0.2)
        parts["values"] /= np.float32(max(1, k // 5) ** 0.5)
        pre = Scale(floats(rng, shape[0]), floats(rng, shape[0])) if rng.random() < 0.2 else None
        pad = tuple(int(border) for border in rng.integers(window // 2, window // 2 + 2, 4))
        ops.append(
            Conv(
                f"{i}", (len(ops),), Weight(**parts), floats(rng, n), (window,) * 2, (stride,) * 2, pad,
                act=Act.RELU, pre=pre,
            )
        )  # fmt: skip
        shape = ops[-1].shape(shape)
        if pool and min(shape[1:]) > 1:
            ops.append(halved(len(ops)))
            shape = ops[-1].shape(shape)
    program = Program((5, *side), tuple(ops))
    expect_equal(program, images, 1, isa, kernel)
    steps = planned(program, isa, kernel)
    assert all("in turns" in step["kernel"] for step in steps if step["name"] in ("0", "1")) or any(
        step["kernel"] in ("map", "pool") for step in steps
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", ["", "inside"])
def test_maps_of_one_size_in_memory_have_their_own_kernels(isa, kernel):
    rng = np.random.default_rng(0)
    wide = Weight(dense=floats(rng, 32, 27))
    ops = (
        Conv("low", (0,), wide, floats(rng, 32), (3, 3), pad=(1, 1, 1, 1)),
        Conv("flat", (0,), wide, floats(rng, 32), (3, 3), pad=(1, 1, 0, 21)),
    )
    expect_equal(Program((3, 2, 20), ops), 16, isa=isa, kernel=kernel)
    sparse = Weight(**random_sparse(rng, 6, 54, 0.4))
    ops = (
        Conv("whole", (0,), sparse, floats(rng, 6), (3, 3), pad=(1, 1, 1, 1)),
        Conv("border", (1,), Weight(dense=floats(rng, 6, 24)), floats(rng, 6), (2, 2), pad=(0, 0, 1, 1)),
        Conv("larger", (0,), sparse, floats(rng, 6), (3, 3), pad=(1, 1, 2, 2)),
    )
    expect_equal(Program((6, 4, 4), ops), 16, isa=isa, kernel=kernel)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", ["", "2x8", "4x4"])
@pytest.mark.parametrize("height", [28, 29])
def test_a_residual_that_is_read_again_and_one_that_is_not(isa, kernel, height):
    rng = np.random.default_rng(0)
    weight, inputs = Weight(**random_sparse(rng, 6, 54, 0.2)), [(0,), (1,), (2, 1), (3, 1), (4,)]
    convs = [Conv(f"{i}", x, weight, floats(rng, 6), (3, 3), pad=(1,) * 4) for i, x in enumerate(inputs)]
    for threads in (1, 2):
        expect_equal(Program((6, height, 28), tuple(convs)), 16, threads, isa, kernel)


def halved(x: int) -> Pool:
    return Pool("halved", (x,), "max", (2, 2), (2, 2))


def planned(program: Program, isa: str, kernel: str = "") -> list[dict]:
    engine = NativeProgram(program, isa)
    engine.force(kernel)
    engine.plan(16, 1)
    return engine.table()


def test_a_timed_plan_equals_the_reference(monkeypatch):
    monkeypatch.delenv("SPLORE_PLAN")
    program = conv_program(3, 24, 20, (12, 12), 3, 0.15, 2)
    for images in (1, 5, 16, 40):
        expect_equal(program, images, threads=2)
    engine = NativeProgram(program)
    engine.plan(1, 1)
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
    engine = NativeProgram(program)
    x = floats(np.random.default_rng(3), 70, *program.input)
    want = reference.run(program, x)
    for images in (70, 1, 9, 17, 25, 31, 33, 40, 47, 48, 50, 64, 2):
        engine.plan(images, threads)
        np.testing.assert_allclose(engine.run(x[:images]), want[:images], rtol=1e-4, atol=1e-4)
        assert len(engine.table()) >= 2


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", ["dense", "sparse"])
def test_the_table_counts_multiply_adds(isa, kernel):
    engine = NativeProgram(conv_program(0, 64, 64, (8, 8), 1, 0.5, 0), isa)
    assert 0 < engine.peak < math.inf
    engine.force(kernel)
    engine.plan(16, 2)
    first, *others = (row for row in engine.table() if row["op"] >= 0)
    assert first["macs"] == 64 * 3 * 64 * first["images"]
    for row, conv in zip(others, engine.program.ops[1:], strict=True):
        entries = 64 * 64 if kernel == "dense" else len(conv.weight.values)
        assert row["macs"] == entries * 64 * row["images"]


@pytest.mark.parametrize("side", [(8, 8), (5, 7), (14, 28), (3, 4), (9, 9)])
@pytest.mark.parametrize("pre", [False, True])
@pytest.mark.parametrize("images", [2, 16, 20])
@pytest.mark.parametrize("kernel", ["", "pattern"])
def test_chains_of_residuals(side, pre, images, kernel):
    rng = np.random.default_rng(0)
    c = 12

    def conv(name: str, *inputs: int, pre: bool = False) -> Conv:
        weight = Weight(**random_sparse(rng, c, 9 * c, 0.2))
        before = Scale(floats(rng, c), floats(rng, c)) if pre else None
        return Conv(name, inputs, weight, floats(rng, c), (3, 3), pad=(1,) * 4, act=Act.RELU6, pre=before)

    ops = [conv("in", 0)]
    for _ in range(3):
        x = len(ops)
        ops += [conv("one", x, pre=pre), conv("two", x + 1, x)]
    expect_equal(Program((c, *side), tuple(ops)), images, threads=2, kernel=kernel)


@pytest.mark.parametrize("act", list(Act))
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


def test_threads_and_forks():
    programs = [random_program(seed) for seed in (11, 12)]
    inputs = [floats(np.random.default_rng(0), 5, *program.input) for program in programs]
    engines = [NativeProgram(program) for program in programs]
    for engine in engines:
        engine.plan(5, 2)
    wants = [engine.run(x) for engine, x in zip(engines, inputs, strict=True)]
    wrong = []

    def work(index: int) -> None:
        for _ in range(30):
            if not np.array_equal(engines[index].run(inputs[index]), wants[index], equal_nan=True):
                wrong.append(index)

    # Two threads for each engine: different engines run at once, calls of one engine follow one another.
    threads = [threading.Thread(target=work, args=(index % 2,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

    child = os.fork()
    if child == 0:
        right = all(np.array_equal(e.run(x), w, equal_nan=True) for e, x, w in zip(engines, inputs, wants, strict=True))
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    work(0)
    assert not wrong


def test_an_empty_batch():
    program = random_program(5)
    assert NativeProgram(program).run(np.zeros((0, *program.input), np.float32)).shape == (0, *program.output)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("kind", 99), ("kind", -1), ("act", 8), ("inputs_begin", -1), ("inputs_begin", 1 << 40), ("inputs_count", 3),
        ("outputs", 0), ("outputs", 1 << 62), ("kernel_h", 0), ("kernel_w", 1 << 40), ("stride_h", 0), ("pad_top", -1),
        ("pad_left", 1 << 62), ("dilation_w", 1 << 30), ("groups", 0), ("groups", 7), ("rank", -1), ("rank", 1 << 40),
        ("bias", 50), ("bias", -1), ("values", 0), ("columns", 0), ("rows", -1), ("A", 10),
    ],
)  # fmt: skip
def test_the_library_checks_programs_itself(word, value, monkeypatch):
    words_of = native._words
    monkeypatch.setattr(native, "_words", lambda op: words_of(op) | {word: value})
    if word in ("inputs_begin", "inputs_count"):
        raw_of = native._raw

        def raw(program):
            made, keep = raw_of(program)
            keep[0][:, native._WORDS.index(word)] = value
            return made, keep

        monkeypatch.setattr(native, "_raw", raw)
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
