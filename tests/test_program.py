"""Programs: what they refuse, and what they compute."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import floats, random_sparse, random_weight

from splore.engine import reference
from splore.engine.program import Act, Activate, Add, Affine, Concat, Conv, Flatten, Mul, Pool, Program
from splore.engine.weight import Scale, Weight

RNG = np.random.default_rng(0)
TORCH_ACTS = {
    Act.NONE: lambda x: x,
    Act.RELU: F.relu,
    Act.RELU6: F.relu6,
    Act.SILU: F.silu,
    Act.SIGMOID: torch.sigmoid,
    Act.HARDSWISH: F.hardswish,
    Act.HARDSIGMOID: F.hardsigmoid,
    Act.GELU: F.gelu,
    Act.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Act.TANH: torch.tanh,
    Act.EXP: torch.exp,
    Act.SQRT: torch.sqrt,
    Act.RECIPROCAL: torch.reciprocal,
    Act.ABS: torch.abs,
    Act.ELU: F.elu,
    Act.MISH: F.mish,
}


def conv(n=4, c=3, kernel=(3, 3), inputs=(0,), **more) -> Conv:
    weight = more.pop("weight", Weight(dense=floats(RNG, n, c * kernel[0] * kernel[1])))
    return Conv("conv", inputs, weight, more.pop("bias", floats(RNG, n)), kernel, **more)


def sparse(**more) -> Weight:
    """A weight (4, 27) with five entries, two rows of them empty."""
    parts = {
        "values": floats(RNG, 5),
        "columns": np.array([0, 26, 3, 4, 5], np.uint32),
        "rows": np.array([0, 2, 2, 5, 5], np.uint32),
    }
    return Weight(**parts | more)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**30), st.integers(1, 3), st.tuples(st.integers(1, 9), st.integers(1, 11), st.integers(1, 11)),
    st.sampled_from(list(Act)), st.booleans(),
)  # fmt: skip
def test_reference_convolution_equals_torch(seed, images, shape, act, pre):
    rng = np.random.default_rng(seed)
    c, height, width = shape
    kernel = (int(rng.integers(1, min(height, 4) + 1)), int(rng.integers(1, min(width, 4) + 1)))
    stride, dilation = (tuple(int(number) for number in rng.integers(1, 3, 2)) for _ in range(2))
    top, left, bottom, right = pad = tuple(
        int(rng.integers(d * (k - 1), d * k + 1)) for d, k in zip(dilation * 2, kernel * 2, strict=True)
    )
    groups = int(rng.choice([1, c]))
    n = groups * int(rng.integers(1, 4))
    weight = random_weight(rng, n, c // groups * kernel[0] * kernel[1], groups)
    scale = Scale(floats(rng, c), floats(rng, c)) if pre else None
    op = Conv("conv", (0, 1), weight, floats(rng, n), kernel, stride, pad, dilation, groups, act, scale)
    x = floats(rng, images, *shape)
    matrix = reference.compose(weight, c // groups * kernel[0] * kernel[1])
    t = torch.from_numpy(x)
    if pre:
        t = F.relu(t * torch.from_numpy(scale.scale)[:, None, None] + torch.from_numpy(scale.shift)[:, None, None])
    W = torch.from_numpy(matrix).view(n, c // groups, *kernel)
    y = F.conv2d(F.pad(t, (left, right, top, bottom)), W, torch.from_numpy(op.bias), stride, 0, dilation, groups)
    residual = floats(rng, *y.shape)
    expected = TORCH_ACTS[act](y + torch.from_numpy(residual))
    assert op.shape(shape, y.shape[1:]) == tuple(y.shape[1:])
    torch.testing.assert_close(torch.from_numpy(reference.apply(op, x, residual)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize(
    "kernel, stride, pad", [((3, 3), (2, 2), (1, 1)), ((2, 3), (1, 3), (1, 0)), ((9, 8), (1, 1), (0, 0))]
)
def test_reference_pooling_equals_torch(kernel, stride, pad, count_include_pad):
    x = floats(RNG, 2, 3, 9, 8)
    maximum = reference.apply(Pool("max", (0,), "max", kernel, stride, pad * 2), x)
    np.testing.assert_array_equal(maximum, F.max_pool2d(torch.from_numpy(x), kernel, stride, pad).numpy())
    mean = reference.apply(Pool("avg", (0,), "avg", kernel, stride, pad * 2, count_include_pad), x)
    expected = F.avg_pool2d(torch.from_numpy(x), kernel, stride, pad, count_include_pad=count_include_pad)
    np.testing.assert_allclose(mean, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_the_other_operations():
    x, y, s = floats(RNG, 2, 3, 4, 5), floats(RNG, 2, 3, 4, 5), floats(RNG, 2, 3, 1, 1)
    factors = Scale(floats(RNG, 3), floats(RNG, 3))
    np.testing.assert_array_equal(reference.apply(Add("", (0, 1), Act.RELU), x, y), np.maximum(x + y, 0))
    np.testing.assert_array_equal(reference.apply(Mul("", (0, 1)), x, s), x * s)
    np.testing.assert_array_equal(reference.apply(Concat("", (0, 1)), x, y), np.concatenate([x, y], 1))
    np.testing.assert_array_equal(reference.apply(Flatten("", (0,)), x), x.reshape(2, 60, 1, 1))
    expected = x * factors.scale.reshape(3, 1, 1) + factors.shift.reshape(3, 1, 1)
    np.testing.assert_array_equal(reference.apply(Affine("", (0,), factors), x), expected)
    for act, function in TORCH_ACTS.items():
        got = reference.apply(Activate("", (0,), act), 4 * x)
        np.testing.assert_allclose(got, function(4 * torch.from_numpy(x)).numpy(), rtol=2e-6, atol=1e-6)


FAULTS = [
    ([], "needs 1 to 16384 operations"),
    ([conv(inputs=(1,))], "values made before"),
    ([conv(inputs=(-1,))], "values made before"),
    ([conv(inputs=())], "expected 1 to 2 inputs"),
    ([conv(inputs=(0, 0))], "the residual must have the output's shape"),
    ([conv(bias=floats(RNG, 5))], "dense must be"),
    ([conv(bias=floats(RNG, 4).astype(np.float64))], "bias must be"),
    ([conv(bias=floats(RNG, 8)[::2])], "bias must be a contiguous"),
    ([conv(weight=Weight())], "needs a dense, a low-rank or a sparse part"),
    ([conv(weight=Weight(A=floats(RNG, 4, 2)))], "A and B come together"),
    ([conv(weight=Weight(A=floats(RNG, 4, 5), B=floats(RNG, 5, 27)))], "r from 1 to 4"),
    ([conv(weight=Weight(A=floats(RNG, 4, 2), B=floats(RNG, 3, 27)))], "B must be"),
    ([conv(weight=sparse(rows=None))], "come together"),
    ([conv(weight=sparse(rows=np.array([0, 2, 1, 5, 5], np.uint32)))], "rows must rise"),
    ([conv(weight=sparse(rows=np.array([1, 2, 2, 5, 5], np.uint32)))], "rows must rise"),
    ([conv(weight=sparse(rows=np.array([0, 2, 2, 5, 6], np.uint32)))], "rows must rise"),
    ([conv(weight=sparse(rows=np.array([0, 2, 2, 2**32 - 1, 5], np.uint32)))], "rows must rise"),
    ([conv(weight=sparse(columns=np.array([0, 27, 3, 4, 5], np.uint32)))], "columns must lie below 27"),
    ([conv(weight=sparse(columns=np.array([0, 26, 4, 4, 5], np.uint32)))], "strictly increasing"),
    ([conv(weight=sparse(columns=np.array([0, 26, 3, 4, 5], np.int64)))], "columns must be"),
    ([conv(n=6, c=1, groups=4)], "groups must divide"),
    ([conv(n=3, c=1, groups=0)], "groups must divide"),
    ([conv(n=3, weight=Weight(A=floats(RNG, 3, 1), B=floats(RNG, 1, 9)), groups=3)], "dense weight only"),
    ([conv(stride=(0, 1))], "stride must lie between"),
    ([conv(pad=(0, 0, 0, -1))], "pad must lie between"),
    ([conv(pad=(2**20,) * 4)], "more than"),
    ([conv(dilation=(5, 1))], "the window reaches over"),
    ([conv(pre=Scale(floats(RNG, 2), floats(RNG, 3)))], "scale must be"),
    ([Pool("", (0,), "min", (2, 2), (1, 1))], "mode must be"),
    ([Pool("", (0,), "max", (2, 2), (1, 1), (2, 0, 0, 0))], "a pad must be smaller"),
    ([Pool("", (0,), "max", (10, 2), (1, 1))], "the window reaches over"),
    ([Flatten("", (0,)), Add("", (0, 1))], "two values of one shape"),
    ([Flatten("", (0,)), Mul("", (0, 1))], "a second value of shape"),
    ([Flatten("", (0,)), Concat("", (0, 1))], "one height and width"),
    ([Affine("", (0,), Scale(floats(RNG, 4), floats(RNG, 4)))], "scale must be"),
    ([Flatten("line\nbreak", (0,))], "printable"),
]  # fmt: skip


@pytest.mark.parametrize("ops, message", FAULTS)
def test_a_program_that_is_not_valid_can_not_exist(ops, message):
    with pytest.raises(ValueError, match=message):
        Program((3, 9, 8), tuple(ops))


@pytest.mark.parametrize("shape", [(0, 1, 1), (1, -1, 1), (2**20, 2**20, 1), (3, 4)])
def test_the_input_is_checked(shape):
    with pytest.raises(ValueError, match="a value must be"):
        Program(shape, (Flatten("", (0,)),))


def test_only_vectors_are_flat():
    with pytest.raises(ValueError, match="flat"):
        Program((3, 2, 2), (Flatten("", (0,)),), flat_input=True)


def test_csr_rows_may_start_and_end_anywhere():
    rng = np.random.default_rng(1)
    for density in (0, 0.1, 0.5, 1):
        for _ in range(20):
            Weight(**random_sparse(rng, 5, 7, density)).check(5, 7, 1, 1)
