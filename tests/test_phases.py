"""Convolutions with a stride, on few images: by the phases of their input where the outputs are the map at every
stride, gathered elsewhere; in float32 and in bytes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import ISAS, conv_program, expect_equal, in_bytes, is_exact
from programs import floats, random_program

from splore.engine import reference
from splore.engine.native import NativeProgram
from splore.engine.program import Program

pytestmark = [
    pytest.mark.skipif(not ISAS, reason="the native library is not built"),
    pytest.mark.usefixtures("fast_plans"),
]


def expect_exact(program: Program, images: int, threads: int, isa: str) -> None:
    x = floats(np.random.default_rng(images), images, *program.input)
    engine = NativeProgram(program, isa, threads)
    engine.run(x[::-1] * 3)  # leaves other numbers everywhere
    np.testing.assert_array_equal(engine.run(x), reference.run(program, x))


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    side=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    kernel=st.integers(1, 7),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.sampled_from([1, 1, 2, 3]),
    pad=st.tuples(*[st.integers(0, 6)] * 4),
    images=st.integers(1, 5),
    threads=st.sampled_from([1, 2]),
    isa=st.sampled_from(ISAS or [None]),
)
def test_strides_equal_the_reference(seed, channels, side, kernel, stride, dilation, pad, images, threads, isa):
    reach = dilation * (kernel - 1)
    pad = tuple(max(p, -(-max(0, reach + 1 - length) // 2)) for p, length in zip(pad, (*side, *side), strict=True))
    first, second, third = conv_program(seed, *channels, side, kernel, 0.3, 1).ops
    second = replace(second, stride=stride, dilation=(dilation,) * 2, pad=pad)
    program = Program((3, *side), (first, second, third))
    expect_equal(program, images, threads, isa)
    program = in_bytes(program, seed)
    if is_exact(program):
        expect_exact(program, images, threads, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_a_padded_window_of_one_tap_sees_nothing_beside_a_small_map(isa):
    program = random_program(777305)  # ends with such a convolution, behind others that leave numbers beside its input
    assert (program.ops[-1].kernel, program.ops[-1].stride, program.ops[-1].pad) == ((1, 1), (1, 3), (0, 1, 0, 0))
    x = floats(np.random.default_rng(0), 1, *program.input)
    engine = NativeProgram(program, isa, 1)
    engine.plan(1)
    engine.run(np.full_like(x, np.nan))
    np.testing.assert_allclose(engine.run(x), reference.run(program, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel, pad, phases", [(1, 0, 1), (3, 1, 1), (7, 3, 1), (3, 0, 0)])
def test_phases_are_read_where_the_outputs_are_the_map_at_every_stride(kernel, pad, phases):
    first, second, third = conv_program(2, 8, 9, (28, 28), kernel, 0.3, 2, stride=2).ops
    program = Program((3, 28, 28), (first, replace(second, pad=(pad,) * 4), third))
    for found in (program, in_bytes(program, 2)):
        engine = NativeProgram(found, threads=1)
        engine.plan(1)
        kernels = [step["kernel"] for step in engine.table() if step["name"] == "second"]
        assert sum(kernel == "phases" for kernel in kernels) == phases
        assert ("gathered" in kernels[-1]) == (not phases)
