"""The native kernels on maps of every kind, and their readable twin: borders, tiles, pools, row fusion, residuals."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import ISAS, conv_program, expect_equal, halved, planned
from programs import floats, random_act, random_sparse

from splore.engine import reference
from splore.engine.native import NativeProgram
from splore.engine.program import Act, Add, Conv, Program, Scale, Weight

pytestmark = [
    pytest.mark.skipif(not ISAS, reason="the native library is not built"),
    pytest.mark.usefixtures("fast_plans"),
]


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
def test_convolutions_are_fused_row_by_row(seed, side, layers, kernel, images, isa):
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
    assert all("rows fused" in step["kernel"] for step in steps if step["name"] in ("0", "1")) or any(
        step["kernel"] in ("map", "pool") for step in steps
    )


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    side=st.tuples(st.integers(3, 15), st.integers(3, 15)),
    window=st.sampled_from([1, 3, 5]),
    stride=st.sampled_from([1, 2, 3]),
    pre=st.booleans(),
    read_again=st.booleans(),
    kernel=st.sampled_from(["", " 1x4", " 1x7", " 2x2", " 2x7", " 4x4", "dense"]),
    images=st.integers(16, 33),
    isa=st.sampled_from(ISAS or [None]),
)
def test_what_was_in_memory_before_never_shows(seed, side, window, stride, pre, read_again, kernel, images, isa):
    """A convolution whose maker is its residual too, and whose first rows may see nothing but padding. A run of NaN
    comes first, so that whatever is read before it is written is NaN."""
    rng = np.random.default_rng(seed)
    pads = [max(0, (length - 1) * stride + window - length) for length in side]
    top, left = (int(rng.integers(0, total + 1)) for total in pads)
    pad = (top, left, pads[0] - top, pads[1] - left)
    factors = Scale(floats(rng, 6), floats(rng, 6)) if pre else None
    first = Conv("first", (0,), Weight(dense=floats(rng, 6, 3)), floats(rng, 6))
    weight = Weight(dense=floats(rng, 6, 6 * window**2) / np.float32(window * 2))
    second = Conv("second", (1, 1), weight, floats(rng, 6), (window,) * 2, (stride,) * 2, pad, pre=factors)
    ops = (first, second, Add("again", (2, 1))) if read_again else (first, second)
    program = Program((3, *side), ops)
    engine = NativeProgram(program, isa, 1)
    engine.force(kernel)
    engine.plan(images)
    x = floats(rng, images, *program.input)
    engine.run(np.full_like(x, np.nan))
    want = reference.run(program, x)
    np.testing.assert_allclose(engine.run(x), want, rtol=1e-4, atol=1e-4 * float(np.abs(want).max()))


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
