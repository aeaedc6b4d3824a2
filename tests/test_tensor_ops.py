"""Operations on tensors: what they compute beside PyTorch, in the twin and in every instruction set, and refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import ISAS, expect_equal
from programs import floats
from tensor_programs import random_tensor_op

from splore.engine import native, program_file, reference
from splore.engine.native import NativeError, NativeProgram
from splore.engine.program import Act, Op, Program, Scale, Shape
from splore.engine.tensor_ops import (
    Clamp,
    Combine,
    Constant,
    Factor,
    Fn,
    Leaky,
    MatMul,
    Normalize,
    Reorder,
    Resample,
    Softmax,
)
from splore.engine.weight import Floats
from splore.engine.words import raw_program

pytestmark = pytest.mark.usefixtures("fast_plans")
RNG = np.random.default_rng(0)


def by_all(op: Op, *inputs: Floats) -> list[Floats]:
    """The result of an operation on inputs, the second of which comes as a constant, by the twin and by the kernels."""
    shape = inputs[0].shape[1:]
    constants = tuple(Constant("b", (), each[0]) for each in inputs[1:])
    program = Program(shape, (*constants, op))
    return [reference.run(program, inputs[0]), *(NativeProgram(program, isa, 2).run(inputs[0]) for isa in ISAS)]


def expect_close(op: Op, expected: torch.Tensor, *inputs: Floats) -> None:
    for found in by_all(op, *inputs):
        np.testing.assert_allclose(found, expected.numpy().reshape(found.shape), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("images", [1, 2, 3, 17])
@pytest.mark.parametrize("side", [(1, 1), (3, 5), (1, 37), (7, 7)])
def test_normalisations_equal_torch(images, side):
    x, scale, shift = 3 + floats(RNG, images, 6, *side), floats(RNG, 6), floats(RNG, 6)
    factors, (weight, bias) = Scale(scale, shift), map(torch.from_numpy, (scale, shift))
    last = torch.from_numpy(x).permute(0, 2, 3, 1)
    expected = F.layer_norm(last, (6,), weight, bias, 1e-5).permute(0, 3, 1, 2).contiguous()
    expect_close(Normalize("", (0,), 1, True, 1e-5, factors), expected, x)
    for groups in (1, 2, 3):
        expected = F.group_norm(torch.from_numpy(x), groups, weight, bias, 1e-2)
        expect_close(Normalize("", (0,), groups, False, 1e-2, factors), expected, x)


@pytest.mark.parametrize("images", [1, 2, 18])
@pytest.mark.parametrize("tokens, keys", [(1, 1), (5, 3), (16, 16), (37, 50)])
def test_attention_equals_torch(images, tokens, keys):
    heads, depth = 2, 8
    q, k, v = floats(RNG, images, heads * depth, tokens), floats(RNG, heads * depth, keys), floats(RNG, 2, depth, keys)
    split = torch.from_numpy(q).view(images, heads, depth, tokens).transpose(2, 3)
    key, value = torch.from_numpy(k).view(1, heads, depth, keys), torch.from_numpy(v)[None].transpose(2, 3)
    expected = F.scaled_dot_product_attention(
        split, key.transpose(2, 3).expand(images, -1, -1, -1), value.expand(images, -1, -1, -1)
    )
    ops = (
        Constant("k", (), k[:, None]), Constant("v", (), v.reshape(-1, 1, keys)),
        MatMul("scores", (0, 1), heads, True, depth**-0.5), Softmax("shares", (3,), heads),
        MatMul("mixed", (4, 2), heads, False),
    )  # fmt: skip
    program = Program((heads * depth, 1, tokens), ops)
    x = q[:, :, None]
    wanted = expected.transpose(2, 3).reshape(images, -1, 1, tokens).numpy()
    for found in (reference.run(program, x), *(NativeProgram(program, isa, 2).run(x) for isa in ISAS)):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


TORCH_FNS = {
    Fn.ADD: torch.add, Fn.SUB: torch.sub, Fn.MUL: torch.mul, Fn.DIV: torch.div, Fn.MAX: torch.maximum,
    Fn.MIN: torch.minimum,
}  # fmt: skip


@pytest.mark.parametrize("fn", list(Fn))
@pytest.mark.parametrize("images", [1, 3, 16])
@pytest.mark.parametrize("second", [(4, 3, 7), (1, 3, 7), (4, 1, 1), (1, 1, 1)])
def test_combinations_equal_torch_also_where_there_is_a_nan(fn, images, second):
    x, b = floats(RNG, images, 4, 3, 7), np.repeat(floats(RNG, 1, *second), images, 0)
    x[0, 1, 2, 3] = np.nan
    b[:, -1, -1, -1] = np.nan if second[0] == 4 else b[:, -1, -1, -1]
    expected = TORCH_FNS[fn](torch.from_numpy(x), torch.from_numpy(b))
    expect_close(Combine("", (0, 1), fn), expected, x, b)


@pytest.mark.parametrize("images", [1, 2, 16])
def test_a_combination_with_a_number_for_each_image_and_channel(images):
    means = Reorder("first pixel", (0,), (Factor(0, 4, 1),), (), ())
    for fn in Fn:
        program = Program((4, 3, 5), (means, Combine("", (0, 1), fn, Act.TANH)))
        for isa in ISAS:
            expect_equal(program, images, 2, isa)


@pytest.mark.parametrize("images", [1, 17])
def test_resampling_equals_torch(images):
    x = floats(RNG, images, 3, 5, 4)
    index, weight = np.array([[0, 0], [0, 1], [1, 2], [3, 4]], np.uint32), floats(RNG, 4, 2)
    one = np.arange(4, dtype=np.uint32)[:, None]
    op = Resample("", (0,), index, weight, one, np.ones((4, 1), np.float32))
    rows = torch.zeros(4, 5)
    for i, (places, shares) in enumerate(zip(index, weight, strict=True)):
        for place, share in zip(places, shares, strict=True):
            rows[i, int(place)] += float(share)
    expect_close(op, rows @ torch.from_numpy(x), x)


@pytest.mark.parametrize("images", [1, 2, 17])
def test_leaky_and_clamp_equal_torch(images):
    x, slope = floats(RNG, images, 4, 3, 5), floats(RNG, 4)
    x[0, 0, 0, 0] = np.nan
    expect_close(Leaky("", (0,), slope), F.prelu(torch.from_numpy(x), torch.from_numpy(slope)), x)
    expect_close(Clamp("", (0,), -0.5, 0.25), torch.from_numpy(x).clamp(-0.5, 0.25), x)


@pytest.mark.skipif(not ISAS, reason="the native library is not built")
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 19), st.sampled_from(ISAS or [None]))
def test_random_operations_equal_the_reference(seed, images, isa):
    rng = np.random.default_rng(seed)
    shapes: list[Shape] = [(int(rng.integers(1, 9)), *(int(side) for side in rng.choice([1, 1, 2, 5, 17], 2)))]
    ops = []
    for number in range(3):
        ops.append(random_tensor_op(rng, f"{number}", len(shapes) - 1, shapes))
        shapes.append(ops[-1].shape(*(shapes[value] for value in ops[-1].inputs)))
    expect_equal(Program(shapes[0], tuple(ops)), images, 2, isa)


def taps(places: list, side: int = 3) -> Resample:
    index, one = np.array(places, np.uint32), np.zeros((side, 1), np.uint32)
    return Resample("", (0,), index, np.ones(index.shape, np.float32), one, np.ones(one.shape, np.float32))


FAULTS = [
    (Reorder("", (0,), (Factor(3, 1, 1),), (), ()), "an axis from 0 to 2"),
    (Reorder("", (0,), (Factor(0, 0, 1),), (), ()), "a factor must be"),
    (Reorder("", (0,), (Factor(0, 2, -1),), (), ()), "a factor must be"),
    (Reorder("", (0,), (Factor(0, 5, 1),), (), ()), "it reads from"),
    (Reorder("", (0,), (Factor(0, 2, 2),), (Factor(0, 2, 1),), (), (1, 0, 0)), "it reads from"),
    (Reorder("", (0,), (), (), (), (0, 3, 0)), "it reads from"),
    (Reorder("", (0,), (), (), (), (-1, 0, 0)), "it reads from"),
    (Reorder("", (0,), (Factor(0, 1, 0),) * 17, (), ()), "at most 16 factors"),
    (Reorder("", (0,), (Factor(0, 2**28, 0), Factor(0, 2, 0)), (), ()), "with 1 to"),
    (taps([[0], [3]]), "row_index must lie below 3"),
    (taps([[]]), "row_index must be"),
    (Constant("", (0,), np.ones((1, 1, 1), np.float32)), "expected 0 inputs"),
    (Constant("", (), np.ones((1, 1), np.float32)), "must be \\(C, H, W\\)"),
    (Combine("", (0,), Fn.ADD), "expected 2 inputs"),
    (Leaky("", (0,), np.ones(3, np.float32)), "slope must be"),
    (Clamp("", (0,), 1.0, 0.0), "low <= high"),
    (Clamp("", (0,), float("nan"), 0.0), "low <= high"),
    (Softmax("", (0,), 3), "groups must divide"),
    (Softmax("", (0,), 0), "groups must divide"),
    (Normalize("", (0,), 1, True, -1.0, Scale(np.ones(4, np.float32), np.ones(4, np.float32))), "eps must be"),
    (MatMul("", (0, 0), 1, True), "expected factors"),
]


@pytest.mark.parametrize("op, message", FAULTS)
def test_an_operation_that_is_not_valid_can_not_be_in_a_program(op, message):
    with pytest.raises(ValueError, match=message):
        Program((4, 3, 5), (op,))


@pytest.mark.skipif(not ISAS, reason="the native library is not built")
@pytest.mark.parametrize("op", [op for op, _ in FAULTS])
def test_the_native_engine_refuses_it_too(op):
    program = Program((4, 3, 5), (Clamp("", (0,), 0.0, 1.0),))
    object.__setattr__(program, "ops", (op,))
    try:
        raw_program(program)
    except (ValueError, OverflowError):
        return  # the header can't say it
    with pytest.raises(NativeError, match="operation 0"):
        NativeProgram(program)


def test_files_keep_every_operation(tmp_path: Path):
    factors = Scale(floats(RNG, 4), floats(RNG, 4))
    ops = (
        Constant("c", (), floats(RNG, 4, 1, 1)),
        Combine("+", (0, 1), Fn.SUB, Act.TANH),
        Leaky("l", (2,), floats(RNG, 4)),
        Clamp("k", (3,), -1.0, 1.0),
        Normalize("n", (4,), 2, False, 1e-5, factors),
        Softmax("s", (5,), 2),
        Resample("r", (6,), *some_taps()),
        Reorder("o", (7,), (Factor(0, 4, 1),), (), (Factor(1, 2, 1), Factor(2, 5, 1))),
        MatMul("m", (8, 8), 2, True, 0.5),
    )
    program = Program((4, 3, 5), ops)
    program_file.save(program, tmp_path / "net.splore")
    loaded, x = program_file.load(tmp_path / "net.splore"), floats(RNG, 2, 4, 3, 5)
    np.testing.assert_array_equal(reference.run(loaded, x), reference.run(program, x))
    assert native.NativeProgram(loaded).run(x).shape == (2, 20, 1, 10)


def some_taps() -> tuple[np.ndarray, ...]:
    rows = np.array([[0, 1], [2, 2]], np.uint32), floats(RNG, 2, 2)
    return (*rows, np.arange(5, dtype=np.uint32)[:, None], floats(RNG, 5, 1))
