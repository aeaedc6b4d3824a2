"""The coding of positions: a round trip for every mask, and no hostile bytes that get through or blow up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splore.modelfile.sparse_index import Coding, decode, encode


@st.composite
def masks(draw):
    size = draw(st.integers(0, 3000))
    density = draw(st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.13, 0.5, 0.99, 1.0]))
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random(size) < density


@given(masks())
@settings(max_examples=300, deadline=None)
def test_a_rice_code_is_read_back_and_chosen_only_where_it_is_smaller(mask):
    plain, (coding, code) = encode(mask), encode(mask, rice=True)
    assert len(code) < len(plain[1]) if coding is Coding.RICE else len(code) == len(plain[1])
    assert np.array_equal(decode(coding, code, mask.size, int(mask.sum())), mask)


@pytest.mark.parametrize("share", [0.0002, 0.003, 0.02, 0.08, 0.15, 0.275, 0.4])
def test_the_positions_of_a_random_set_take_few_bits_more_than_their_entropy(share):
    mask = np.random.default_rng(0).random(400_000) < share
    p = mask.mean()
    least = -mask.size * (p * np.log2(p) + (1 - p) * np.log2(1 - p)) / 8
    assert least < len(encode(mask, rice=True)[1]) < 1.04 * least + 16


def test_the_bytes_of_a_rice_code_by_hand():
    gaps = [5, 0, 33, 19, 0, 28, 18] * 5
    mask = np.zeros(600, bool)
    mask[np.cumsum(np.array(gaps) + 1) - 1] = True
    coding, code = encode(mask, rice=True)
    b = int(code[0])
    assert b == 3
    bits = "".join(f"{gap & (1 << b) - 1:0{b}b}"[::-1] for gap in gaps)
    high = "".join("0" * (gap >> b) + "1" for gap in gaps)
    expected = [b]
    for row in (bits, high):
        expected += [int(row[i : i + 8][::-1], 2) for i in range(0, len(row), 8)]
    assert (coding, code.tolist()) == (Coding.RICE, expected)


@given(masks())
@settings(max_examples=300, deadline=None)
def test_round_trip_in_the_smallest_coding(mask):
    coding, code = encode(mask)
    assert code.dtype == np.uint8
    assert code.nbytes <= -(-mask.size // 8)
    assert np.array_equal(decode(coding, code, mask.size, int(mask.sum())), mask)


@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 509, 510, 511, 765])
def test_gaps_around_the_escape(gap):
    mask = np.zeros(20_000, bool)
    mask[[gap, 2 * gap + 1, 19_999]] = True
    coding, code = encode(mask)
    assert coding is Coding.GAPS
    assert np.array_equal(decode(coding, code, mask.size, 3), mask)


def test_bytes_by_hand():
    mask = np.zeros(600, bool)
    mask[[0, 3, 259, 599]] = True
    coding, code = encode(mask)
    # From 3 to 259 lie 255 entries: an escape and nothing more. From 259 to 599 lie 339 = 255 + 84.
    assert (coding, code.tolist()) == (Coding.GAPS, [0, 2, 255, 0, 255, 84])
    assert encode(np.array([True, False] * 5))[1].tolist() == [0b01010101, 0b01]
    assert encode(np.ones(9, bool)) == (Coding.ALL, pytest.approx(np.empty(0)))
    assert encode(np.zeros(9, bool))[0] is Coding.GAPS


@given(
    st.sampled_from(Coding),
    st.one_of(st.binary(max_size=60), st.lists(st.sampled_from([0, 1, 254, 255]), max_size=60).map(bytes)),
    st.integers(-1, 400),
    st.integers(-1, 60),
)
@settings(max_examples=600, deadline=None)
def test_hostile_bytes_give_a_mask_or_a_value_error(coding, code, size, count):
    code = np.frombuffer(code, np.uint8)
    try:
        mask = decode(coding, code, size, count)
    except ValueError:
        return
    assert mask.dtype == bool and mask.shape == (size,) and mask.sum() == count


@pytest.mark.parametrize(
    ("coding", "code", "size", "count", "message"),
    [
        (Coding.GAPS, [5, 255], 400, 1, "go on after"),
        (Coding.GAPS, [5, 0], 400, 1, "positions"),
        (Coding.GAPS, [5], 400, 2, "positions"),
        (Coding.GAPS, [255, 200], 400, 1, "below 400"),
        (Coding.GAPS, [255] * 9 + [0], 400, 1, "at most"),
        (Coding.BITMAP, [1], 9, 1, "bytes"),
        (Coding.BITMAP, [1, 2], 9, 1, "beyond"),
        (Coding.BITMAP, [3, 0], 9, 1, "positions"),
        (Coding.ALL, [], 9, 8, "positions"),
        (Coding.ALL, [0], 9, 9, "bytes"),
        (Coding.GAPS, [], 9, 10, "can't lie"),
        (Coding.RICE, [], 9, 1, "expected a Rice code"),
        (Coding.RICE, [63, 1], 9, 1, "expected a Rice code"),
        (Coding.RICE, [8, 1], 9, 2, "expected a Rice code"),
        (Coding.RICE, [0, 0b1001], 9, 1, "positions"),
        (Coding.RICE, [0, 1, 0], 9, 1, "goes on"),
        (Coding.RICE, [1, 0b10, 1], 9, 1, "goes on"),
        (Coding.RICE, [2, 0b11, 0b100], 9, 1, "below 9"),
        (Coding.RICE, [0, 0, 0, 0, 1], 9, 1, "shorter"),
    ],
)
def test_each_lie_is_named(coding, code, size, count, message):
    with pytest.raises(ValueError, match=message):
        decode(coding, np.array(code, np.uint8), size, count)
