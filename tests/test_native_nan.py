"""What is not a number, and what is not finite, in the native kernels and their twin: as PyTorch has it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import ISAS
from programs import floats
from test_program import TORCH_ACTS

from splore.engine import reference
from splore.engine.native import NativeProgram
from splore.engine.program import Act, Activate, Conv, Op, Pool, Program, Shape
from splore.engine.weight import Floats, Scale, Weight

pytestmark = [
    pytest.mark.skipif(not ISAS, reason="the native library is not built"),
    pytest.mark.usefixtures("fast_plans"),
]

ODD = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 90, -90, 3, -3, 6, 0, -0.0, 1e-40, -1e-40], np.float32)


def identity(channels: int) -> Conv:
    """A convolution that changes nothing, not even what is not finite: its other entries are not stored."""
    ones = np.ones(channels, np.float32)
    columns, rows = np.arange(channels, dtype=np.uint32), np.arange(channels + 1, dtype=np.uint32)
    return Conv("same", (0,), Weight(values=ones, columns=columns, rows=rows), np.zeros(channels, np.float32))


def by_all(shape: Shape, op: Op, x: Floats, *before: Op) -> list[Floats]:
    """The result of an operation by the twin, and by each instruction set with one thread and with two."""
    program = Program(shape, (*before, op))
    found = [reference.apply(op, x)]
    for isa in ISAS:
        for threads in (1, 2):
            engine = NativeProgram(program, isa, threads)
            engine.plan(len(x))
            found.append(engine.run(x))
    return found


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    images=st.integers(1, 34),
    side=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    mode=st.sampled_from(["max", "avg"]),
    odd=st.sampled_from([np.nan, np.inf, -np.inf]),
    pooled=st.booleans(),
)
def test_pools_of_what_is_not_a_number(seed, images, side, mode, odd, pooled):
    """Pools on their own, and 2 x 2 ones that a convolution does for its tiles."""
    rng = np.random.default_rng(seed)
    if pooled:
        kernel = stride = (2, 2)
        pad, side = (0, 0), tuple(length + length % 2 for length in side)
    else:
        kernel = tuple(int(rng.integers(1, min(length, 4) + 1)) for length in side)
        stride = tuple(int(rng.integers(1, 4)) for _ in range(2))
        pad = tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel)
    shape = (3, *side)
    x = floats(rng, images, *shape)
    x[rng.random(x.shape) < 0.1] = odd
    op = Pool("pool", (int(pooled),), mode, kernel, stride, pad * 2, bool(rng.integers(2)))
    t = torch.from_numpy(x)
    if mode == "max":
        expected = F.max_pool2d(t, kernel, stride, pad)
    else:
        expected = F.avg_pool2d(t, kernel, stride, pad, count_include_pad=op.count_include_pad)
    for found in by_all(shape, op, x, *([identity(3)] if pooled else [])):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("images", [1, 16, 17])
@pytest.mark.parametrize("place", range(16))
def test_a_nan_in_any_place_of_a_window_stays(images, place):
    x = np.tile(np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4), (images, 1, 1, 1))
    x.reshape(images, 16)[0, place] = np.nan
    for kernel, stride in (((2, 2), (2, 2)), ((4, 4), (1, 1)), ((3, 2), (1, 1)), ((1, 4), (3, 1))):
        expected = np.isnan(F.max_pool2d(torch.from_numpy(x), kernel, stride).numpy())
        for before in ([], [identity(1)]):
            for found in by_all((1, 4, 4), Pool("", (len(before),), "max", kernel, stride), x, *before):
                np.testing.assert_array_equal(np.isnan(found), expected)


@pytest.mark.filterwarnings("ignore:invalid value|overflow")
@pytest.mark.parametrize("images", [1, 20])
@pytest.mark.parametrize("act", [act for act in Act if act is not Act.NONE])
def test_activations_of_what_is_not_finite(act, images):
    odd = (
        ODD[~np.isinf(ODD)] if act in (Act.GELU, Act.GELU_TANH, Act.MISH) else ODD
    )  # some of PyTorch's kernels make a NaN of gelu(inf)
    x = np.tile(odd.reshape(1, 2, 1, -1), (images, 1, 1, 1))
    shape = x.shape[1:]
    expected = TORCH_ACTS[act](torch.from_numpy(x)).numpy()
    for found in by_all(shape, Activate("", (0,), act), x):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    after = Conv(**vars(identity(2)) | {"act": act})
    if act is Act.RECIPROCAL:  # a sum loses the sign of a zero
        x, expected = np.abs(x), np.abs(expected)
    for found in by_all(shape, after, x)[1:]:  # the twin multiplies what is not stored too
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("images", [1, 20])
def test_a_pre_activation_keeps_a_nan(images):
    rng = np.random.default_rng(0)
    x = floats(rng, images, 2, 3, 5)
    x[0, 1, 2, 3] = np.nan
    factors = Scale(floats(rng, 2), floats(rng, 2))
    before = identity(2)
    after = Conv(**vars(before) | {"inputs": (1,), "pre": factors})
    wanted = np.isnan(x)
    for isa in ISAS:
        for ops in ((before, after), (Conv(**vars(after) | {"inputs": (0,)}),)):
            engine = NativeProgram(Program((2, 3, 5), ops), isa)
            np.testing.assert_array_equal(np.isnan(engine.run(x)), wanted)
