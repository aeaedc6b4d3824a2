"""The values of a program: their shapes and limits, and the functions of one number."""

from enum import Enum

Shape = tuple[int, int, int]
Pair = tuple[int, int]

MAX_ELEMENTS = 1 << 28  # of one value of one image, its zero padding included: 1 GiB
MAX_ATTRIBUTE = 1 << 20  # of a stride, a pad, a kernel side, a dilation
MAX_OPS = 1 << 14
MAX_NAME = 200  # characters
MAX_DIMS = 8  # of an image as the caller gives it


class Act(str, Enum):
    """The function applied to each element, last."""

    NONE = "none"
    RELU = "relu"
    RELU6 = "relu6"
    SILU = "silu"
    SIGMOID = "sigmoid"
    HARDSWISH = "hardswish"
    HARDSIGMOID = "hardsigmoid"
    GELU = "gelu"  # the exact one, with erf
    GELU_TANH = "gelu_tanh"  # the approximation by tanh
    TANH = "tanh"
    EXP = "exp"
    SQRT = "sqrt"
    RECIPROCAL = "reciprocal"
    ABS = "abs"
    ELU = "elu"  # x, or e^x - 1 below 0
    MISH = "mish"  # x tanh(log(1 + e^x))


def window_shape(shape: Shape, kernel: Pair, stride: Pair, pad: tuple[int, int, int, int], dilation: Pair) -> Pair:
    """Height and width of what a sliding window gives."""
    for name, numbers, least in (
        ("kernel", kernel, 1),
        ("stride", stride, 1),
        ("pad", pad, 0),
        ("dilation", dilation, 1),
    ):
        if any(not least <= number <= MAX_ATTRIBUTE for number in numbers):
            raise ValueError(f"{name} must lie between {least} and {MAX_ATTRIBUTE}, found {numbers}")
    padded = (shape[1] + pad[0] + pad[2], shape[2] + pad[1] + pad[3])
    if shape[0] * padded[0] * padded[1] > MAX_ELEMENTS:
        raise ValueError(f"the padded input {(shape[0], *padded)} has more than {MAX_ELEMENTS} elements")
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if padded[0] < reach[0] or padded[1] < reach[1]:
        raise ValueError(f"the window reaches over {tuple(reach)}, more than the padded input {padded}")
    return (padded[0] - reach[0]) // stride[0] + 1, (padded[1] - reach[1]) // stride[1] + 1


def expect_shape(shape: Shape) -> Shape:
    """The shape, where a value may have it; ValueError elsewhere."""
    if len(shape) != 3 or min(shape) < 1 or shape[0] * shape[1] * shape[2] > MAX_ELEMENTS:
        raise ValueError(f"a value must be (C, H, W) with 1 to {MAX_ELEMENTS} elements, found {shape}")
    return shape


def expect_inputs(inputs: tuple[Shape, ...], least: int, most: int | None = None) -> None:
    """Raises ValueError where an operation has not so many inputs: `least`, or from there to `most`."""
    if not least <= len(inputs) <= (least if most is None else most):
        raise ValueError(f"expected {least}{'' if most is None else f' to {most}'} inputs, found {len(inputs)}")
