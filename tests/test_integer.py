"""Programs in eight bits: what they compute, what is refused, and how they are made of float32 ones."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import floats, random_program

from splore.engine import gaps, program_file, reference
from splore.engine.integer import Convert, IntWeight, Quant
from splore.engine.program import Act, Add, Conv, IntConv, Pool, Program, arrays
from splore.engine.quantise import calibrate, int_weight, quant_of, quantise
from splore.engine.weight import Weight


def quantised(seed: int, images: int = 4) -> tuple[Program, Program, np.ndarray]:
    """A random program, the same in bytes as far as its values are finite, and the images that gave the ranges."""
    program = random_program(seed)
    x = floats(np.random.default_rng(seed), images, *program.input)
    with np.errstate(all="ignore"):
        ranges = calibrate(program, [x])
    finite = {name: pair for name, pair in ranges.items() if np.isfinite(pair).all()}
    return program, quantise(program, finite), x


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30))
def test_a_program_in_bytes_is_near_the_one_in_floats(seed):
    program, integer, x = quantised(seed)
    with np.errstate(all="ignore"):
        want, got = reference.run(program, x), reference.run(integer, x)
    if np.isfinite(want).all():  # one value may be off by more: a step before a steep function is a leap behind it
        assert np.sqrt(np.mean((got - want) ** 2)) <= 0.25 * max(1e-2, np.abs(want).max())


@pytest.mark.parametrize("groups", [1, 3])
def test_a_convolution_is_the_sum_that_its_scales_say(groups):
    """Each output by the definition, in exact numbers: what the scales make of integer products."""
    rng = np.random.default_rng(groups)
    c, n, side = 6, 9, 5
    weight = int_weight(Weight(dense=floats(rng, n, c // groups * 9)), n, c // groups, 9, 0.0)
    at, to = Quant(0.5, 7), Quant(float(np.float32(0.3)), 100)
    conv = IntConv(
        "conv", (1,), weight, floats(rng, n), (3, 3), (2, 1), (1, 0, 2, 1), (1, 1), groups, Act.RELU6, quant=to
    )
    x = (rng.integers(0, 256, (2, c, side, side)) - 7) * np.float32(0.5)
    program = Program((c, side, side), (Convert("in", (0,), at), conv, Convert("out", (2,))))
    got = reference.run(program, x.astype(np.float32))
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 2), (0, 1)))
    for image, channel, row, column in np.ndindex(*got.shape):
        group = channel // (n // groups)
        window = padded[image, 2 * group : 2 * group + 2] if groups == 3 else padded[image]
        seen = window[:, 2 * row : 2 * row + 3, column : column + 3]
        y = (weight.dense[channel].reshape(seen.shape) * seen).sum() * float(weight.scale[channel])
        y = min(max(y + float(conv.bias[channel]), 0), 6)
        byte = min(max(round(y / to.scale + 100), 0), 255)
        assert abs(got[image, channel, row, column] - (byte - 100) * to.scale) < 1.01 * to.scale


def test_low_rank_and_blocks_add_up():
    rng = np.random.default_rng(0)
    kept = rng.random((8, 20)) < 0.4
    values, columns = floats(rng, int(kept.sum())), np.nonzero(kept)[1].astype(np.uint32)
    rows = np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.uint32)
    weight = Weight(A=floats(rng, 8, 3), B=floats(rng, 3, 20), values=values, columns=columns, rows=rows)
    program = Program((20, 4, 4), (Conv("conv", (0,), weight, floats(rng, 8)),))
    x = floats(rng, 5, 20, 4, 4)
    integer = quantise(program, calibrate(program, [x]))
    assert isinstance(integer.ops[1].weight, IntWeight) and integer.ops[1].weight.blocks.shape[1] == 4
    want, got = reference.run(program, x), reference.run(integer, x)
    assert np.abs(want - got).max() < 0.03 * np.abs(want).max()


def test_blocks_hold_four_neighbouring_channels_under_one_tap():
    """Ten channels, 2 x 1 taps: entries of channels 1, 3 and 9 under the second tap are two blocks."""
    columns = np.array([1 * 2 + 1, 3 * 2 + 1, 9 * 2 + 1], np.uint32)
    weight = Weight(values=np.array([1, -2, 4], np.float32), columns=columns, rows=np.array([0, 3, 3], np.uint32))
    found = int_weight(weight, 2, 10, 2, 0.0)
    assert found.blocks.tolist() == [[0, 32, 0, -64], [0, 127, 0, 0]]
    assert found.positions.tolist() == [0 * 2 + 1, 2 * 2 + 1] and found.rows.tolist() == [0, 2, 2]
    assert found.scale[0] == pytest.approx(4 / 127)


@given(st.floats(-100, 0), st.floats(0, 100))
def test_zero_is_one_of_the_steps(low, high):
    quant = quant_of(low, high)
    quant.check()
    assert math.isclose(quant.scale * 255, max(high - low, 0), rel_tol=1e-5, abs_tol=1e-15)
    assert 0 <= quant.zero <= 255


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30))
def test_saving_and_loading_a_program_in_bytes_is_the_identity(tmp_path_factory, seed):
    program = quantised(seed)[1]
    path = tmp_path_factory.mktemp("files") / "net.splore"
    program_file.save(program, path)
    loaded = program_file.load(path)
    assert program_file.describe(loaded) == program_file.describe(program)
    for a, b in zip(program.ops, loaded.ops, strict=True):
        for (name, left), (also, right) in zip(arrays(a), arrays(b), strict=True):
            assert name == also
            np.testing.assert_array_equal(left, right)


@given(st.lists(st.sets(st.integers(0, 2000), max_size=9), min_size=1, max_size=9))
def test_gaps_give_back_the_positions(sets):
    positions = np.array([place for row in sets for place in sorted(row)], np.uint32)
    rows = np.cumsum([0, *map(len, sets)]).astype(np.uint32)
    code = gaps.encode(positions, rows)
    assert code.size <= positions.size + sum(max(row, default=0) // 255 for row in sets)
    np.testing.assert_array_equal(gaps.decode(code, rows), positions)
    if code.size:
        with pytest.raises(ValueError, match=r"gaps"):
            gaps.decode(np.append(code, np.uint8(255)), rows)
        with pytest.raises(ValueError, match=r"gaps"):
            gaps.decode(code[:-1], rows)


INT = IntWeight(np.ones(4, np.float32), np.ones((4, 8), np.int8))
IN, OUT = Convert("in", (0,), Quant(1.0)), Quant(2.0, 5)


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ((IntConv("conv", (0,), INT, np.ones(4, np.float32), quant=OUT),), "want inputs in bytes"),
        ((IN, Conv("conv", (1,), Weight(dense=np.ones((4, 8), np.float32)), np.ones(4, np.float32))), "float32 alone"),
        ((IN, IntConv("conv", (1,), INT, np.ones(4, np.float32), act=Act.SILU, quant=OUT)), "none, relu or relu6"),
        ((IN, Convert("again", (1,), OUT)), "from float32 to bytes"),
        ((IN, Add("add", (0, 1), quant=OUT)), "all be in bytes, or all"),
        ((IN, Pool("pool", (1,), "max", (1, 1), (1, 1), quant=OUT)), "stored as its input"),
        ((replace(IN, quant=Quant(0.0)),), "positive float32"),
        ((replace(IN, quant=Quant(0.1)),), "positive float32"),
        ((replace(IN, quant=Quant(1.0, 256)),), "zero point"),
        ((IN, IntConv("conv", (1,), replace(INT, scale=-INT.scale), np.ones(4, np.float32))), "scale must be positive"),
        ((IN, IntConv("conv", (1,), replace(INT, A=INT.dense), np.ones(4, np.float32))), "come together"),
    ],
)
def test_what_can_not_run_is_refused(ops, message):
    with pytest.raises(ValueError, match=message):
        Program((8, 1, 1), ops)


def blocks_of(blocks, positions, rows):
    return IntWeight(
        np.ones(2, np.float32),
        None,
        np.array(blocks, np.int8),
        np.array(positions, np.uint32),
        np.array(rows, np.uint32),
    )


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (blocks_of([[1] * 4], [6], [0, 1, 1]), "below 6"),
        (blocks_of([[1] * 4] * 2, [1, 1], [0, 2, 2]), "strictly increasing"),
        (blocks_of([[1] * 4], [4], [0, 1, 1]), "beyond the last input channel"),
        (blocks_of([[1] * 4], [0], [0, 2, 1]), "rows must rise"),
        (blocks_of([[1] * 3], [0], [0, 1, 1]), "blocks must be"),
    ],
)
def test_blocks_that_are_wrong_are_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        weight.check(2, 5, 3, 1)


def test_sums_that_leave_32_bits_are_refused():
    k = 66312  # 127 k 255 is a little more than 2^31
    dense = np.full((1, k), 127, np.int8)
    with pytest.raises(ValueError, match="must sum up to less"):
        IntWeight(np.ones(1, np.float32), dense).check(1, k, 1, 1)
    IntWeight(np.ones(1, np.float32), dense[:, :-1].copy()).check(1, k - 1, 1, 1)
