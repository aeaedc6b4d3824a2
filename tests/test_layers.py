"""The layers with W = A·B + S: the function of their dense twin in every setting."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_layers import MODES, SCHEMES, TOLERANCE, by_definition, conv, filled, linear, twin
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from splore.design.layers import LowRankSparseConv2d
from splore.design.matrix import Scheme, fold, matrix_shape, unfold


@st.composite
def conv_cases(draw):
    """Keyword arguments of `nn.Conv2d`, and the size of an image that it takes."""
    pair = st.tuples(st.integers(1, 4), st.integers(1, 4))
    kernel, dilation, stride = draw(pair), draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), draw(pair)
    padding = draw(st.sampled_from(["same", "valid"]) | st.integers(0, 3) | st.tuples(*[st.integers(0, 3)] * 2))
    size = [max(d * (k - 1) + 1, 4) + draw(st.integers(0, 4)) for d, k in zip(dilation, kernel, strict=True)]
    return {
        "in_channels": draw(st.integers(1, 4)),
        "out_channels": draw(st.integers(1, 5)),
        "kernel_size": kernel,
        "stride": 1 if padding == "same" else stride,
        "padding": padding,
        "dilation": dilation,
        "padding_mode": draw(st.sampled_from(MODES)),
        "bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16])),
    }, size


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=120)
@given(
    case=conv_cases(),
    scheme=st.sampled_from(SCHEMES),
    wish=st.tuples(st.integers(0, 3), st.booleans()),
    batch=st.sampled_from([(), (1,), (3,)]),
    seed=st.integers(0, 99),
)
def test_a_convolution_equals_its_dense_twin(case, scheme, wish, batch, seed):
    torch.manual_seed(seed)
    geometry, size = case
    dense = nn.Conv2d(**geometry)
    rank = min(*matrix_shape(dense.weight.shape, scheme), wish[0])
    layer = filled(LowRankSparseConv2d(dense, rank, sparse=wish[1] or rank == 0, scheme=scheme))
    x = torch.randn(*batch, geometry["in_channels"], *size, dtype=geometry["dtype"])
    y, expected = layer(x), twin(layer)(x)
    assert y.dtype == expected.dtype and y.shape == expected.shape
    torch.testing.assert_close(y, expected, **TOLERANCE[geometry["dtype"]])


@settings(max_examples=40)
@given(
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    wish=st.tuples(st.integers(0, 3), st.booleans()),
    lead=st.sampled_from([(), (1,), (3,), (2, 1, 3)]),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_linear_layer_equals_its_dense_twin(sizes, wish, lead, bias, dtype):
    rank = min(*sizes, wish[0])
    layer = linear(rank, wish[1] or rank == 0, dtype, sizes, bias)
    x = torch.randn(*lead, sizes[0], dtype=dtype)
    torch.testing.assert_close(layer(x), twin(layer)(x), **TOLERANCE[dtype])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sparse", [True, False])
def test_the_weight_is_the_product_plus_the_sparse_part_laid_out_by_the_scheme(scheme, sparse):
    layer = conv(3, sparse, scheme, torch.float64, kernel=(3, 2))
    matrix = layer.A @ layer.B + (layer.S if sparse else 0)
    expected = by_definition(matrix, (4, 3, 3, 2), scheme)
    torch.testing.assert_close(layer.weight, expected, rtol=1e-14, atol=1e-15)


@given(shape=st.tuples(*[st.integers(1, 4)] * 4) | st.tuples(*[st.integers(1, 5)] * 2), scheme=st.sampled_from(SCHEMES))
def test_fold_and_unfold_are_inverse_and_of_the_stated_shape(shape, scheme):
    weight = torch.randn(shape)
    matrix = unfold(weight, scheme)
    assert tuple(matrix.shape) == matrix_shape(shape, scheme)
    assert torch.equal(fold(matrix, shape, scheme), weight)
    assert torch.equal(by_definition(matrix, shape, scheme), weight)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("padding", ["same", (2, 0)])
def test_to_dense_gives_a_plain_convolution_with_exactly_the_composed_weight(scheme, padding_mode, padding):
    layer = conv(scheme=scheme, padding=padding, padding_mode=padding_mode, dilation=(1, 2), bias=False).eval()
    dense = layer.to_dense()
    assert type(dense) is nn.Conv2d and not dense.training
    assert torch.equal(dense.weight, layer.weight) and dense.weight.is_contiguous() and dense.bias is None
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode"):
        assert getattr(dense, name) == getattr(layer, name), name
    x = torch.randn(2, 3, 6, 7)
    torch.testing.assert_close(dense(x), layer(x), **TOLERANCE[torch.float32])


def test_to_dense_gives_a_plain_linear_layer_with_exactly_the_composed_weight():
    layer = linear(dtype=torch.bfloat16)
    dense = layer.to_dense()
    assert type(dense) is nn.Linear and dense.weight.dtype == torch.bfloat16
    assert torch.equal(dense.weight, layer.weight) and torch.equal(dense.bias, layer.bias)
    assert dense.weight.data_ptr() != layer.S.data_ptr() and dense.bias is not layer.bias


class Operations(TorchDispatchMode):
    """Counts the operations that reach the kernels."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("padding_mode", MODES)
def test_a_forward_is_one_convolution_and_one_matrix_product(scheme, sparse, padding_mode):
    layer = conv(2, sparse, scheme, padding=1, padding_mode=padding_mode)
    with Operations() as operations:
        layer(torch.randn(2, 3, 6, 6))
    assert sum("convolution" in name for name in operations.names) == 1
    assert sum(name in ("mm", "addmm") for name in operations.names) == 1


def test_a_linear_forward_is_two_matrix_products():
    with Operations() as operations:
        linear()(torch.randn(4, 6))
    assert sum(name in ("mm", "addmm") for name in operations.names) == 2


@given(sizes=st.tuples(st.integers(2, 9), st.integers(2, 9)), rank=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_low_rank_part_never_exceeds_its_rank(sizes, rank, seed):
    torch.manual_seed(seed)
    rank = min(*sizes, rank)
    layer = linear(rank, dtype=torch.float64, features=sizes)
    assert layer.rank == rank
    assert torch.linalg.matrix_rank(layer.low_rank) <= rank
    torch.testing.assert_close(layer.low_rank + layer.S, layer.matrix)


def two_branches(layer, x):
    """The textbook form: two thin convolutions and a sparse one, side by side."""
    (sh, sw), (ph, pw), (dh, dw) = layer.stride, layer.padding, layer.dilation
    n, c, kh, kw = layer.weight_shape
    r = layer.rank
    if layer.scheme is Scheme.CHANNEL:
        between = F.conv2d(x, layer.B.view(r, c, kh, kw), None, layer.stride, layer.padding, layer.dilation)
        low = F.conv2d(between, layer.A.view(n, r, 1, 1))
    else:
        between = F.conv2d(x, layer.B.view(r, c, kh, 1), None, (sh, 1), (ph, 0), (dh, 1))
        low = F.conv2d(between, layer.A.view(n, kw, r).transpose(1, 2)[:, :, None], None, (1, sw), (0, pw), (1, dw))
    kernel = by_definition(layer.S, layer.weight_shape, layer.scheme)
    return low + F.conv2d(x, kernel, layer.bias, layer.stride, layer.padding, layer.dilation)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_outputs_and_gradients_are_those_of_two_branches(scheme):
    layer = conv(2, True, scheme, torch.float64, stride=(2, 1), padding=(1, 2), dilation=(1, 2))
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64, requires_grad=True)
    inputs = (x, layer.A, layer.B, layer.S, layer.bias)
    y, expected = layer(x), two_branches(layer, x)
    torch.testing.assert_close(y, expected, **TOLERANCE[torch.float64])
    direction = torch.randn_like(y)
    for found, wanted in zip(
        torch.autograd.grad(y, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(found, wanted, **TOLERANCE[torch.float64])


def test_linear_outputs_and_gradients_are_those_of_two_branches():
    layer = linear(dtype=torch.float64)
    x = torch.randn(3, 6, dtype=torch.float64)
    inputs = (layer.A, layer.B, layer.S, layer.bias)
    y, expected = layer(x), x @ layer.B.T @ layer.A.T + x @ layer.S.T + layer.bias
    torch.testing.assert_close(y, expected)
    for found, wanted in zip(
        torch.autograd.grad(y.square().sum(), inputs), torch.autograd.grad(expected.square().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: conv(1, True, Scheme.CHANNEL, torch.float64, (2, 2), (2, 1), padding=1), (1, 2, 3, 3)),
        (
            lambda: conv(1, True, Scheme.SPATIAL, torch.float64, (2, 2), (2, 1), padding=1, padding_mode="circular"),
            (1, 2, 3, 3),
        ),
        (lambda: conv(1, False, Scheme.SPATIAL, torch.float64, (2, 2), (1, 2), bias=False), (1, 2, 3, 3)),
        (lambda: linear(2, True, torch.float64, (4, 3)), (2, 4)),
    ],
    ids=["channel", "spatial-circular", "low-rank-only", "linear"],
)
def test_gradcheck(make, shape):
    layer = make()
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, *values: functional_call(layer, dict(zip(names, values, strict=True)), (x,)), (x, *values)
    )
