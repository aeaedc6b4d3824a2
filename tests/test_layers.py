"""The layers with W = A·B + S: the function of their dense twin in every setting, and all that a PyTorch layer does."""

import copy
import io
import shutil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from splore.design.layers import LowRankSparseConv2d, LowRankSparseLinear, decomposed_layers
from splore.design.matrix import Scheme, fold, matrix_shape, unfold

SCHEMES = [*Scheme]
MODES = ["zeros", "reflect", "replicate", "circular"]
TOLERANCE = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
}


def filled(layer, density=0.4):
    """The layer with random parts, of a scale that keeps outputs near 1, and a mask."""
    m, k = matrix_shape(layer.weight_shape, layer.scheme)
    A, B = torch.randn(m, layer.rank), torch.randn(layer.rank, k) / k**0.5
    if layer.S is None:
        layer.set_parts(A, B)
    else:
        mask = torch.rand(m, k) < density
        layer.set_parts(A, B, torch.randn(m, k) * mask / k**0.5, mask)
    return layer


def conv(rank=2, sparse=True, scheme=Scheme.CHANNEL, dtype=torch.float32, channels=(3, 4), kernel=(3, 2), **geometry):
    dense = nn.Conv2d(*channels, kernel, dtype=dtype, **geometry)
    return filled(LowRankSparseConv2d(dense, rank, sparse, scheme))


def linear(rank=2, sparse=True, dtype=torch.float32, features=(6, 5), bias=True):
    return filled(LowRankSparseLinear(nn.Linear(*features, bias=bias, dtype=dtype), rank, sparse))


def by_definition(matrix, shape, scheme):
    """The kernel (n, c, kh, kw) of a matrix, entry by entry."""
    if len(shape) == 2:
        return matrix
    _, _, kh, kw = shape
    n, c, i, j = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
    if scheme is Scheme.CHANNEL:
        return matrix[n, (c * kh + i) * kw + j]
    return matrix[n * kw + j, c * kh + i]


def twin(layer):
    """A plain PyTorch layer that is given A·B + S as its weight, without use of the layer's own folding."""
    matrix = layer.matrix.detach()
    weight = by_definition(matrix, layer.weight_shape, layer.scheme)
    if weight.dim() == 2:
        dense = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, dtype=matrix.dtype)
    else:
        dense = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            bias=layer.bias is not None, padding_mode=layer.padding_mode, dtype=matrix.dtype,
        )  # fmt: skip
    dense.weight.data.copy_(weight)
    if layer.bias is not None:
        dense.bias.data.copy_(layer.bias)
    return dense


def state_copy(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


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


@given(
    shape=st.tuples(*[st.integers(1, 4)] * 4) | st.tuples(*[st.integers(1, 5)] * 2), scheme=st.sampled_from(SCHEMES)
)
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_move_to_another_dtype_takes_the_parts_and_leaves_the_mask(dtype):
    layer = conv()
    before = twin(layer)
    mask = layer.mask.clone()
    layer.to(dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype} == {layer.weight.dtype}
    assert layer.mask.dtype == torch.bool and torch.equal(layer.mask, mask)
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(layer(x.to(dtype)).float(), before(x), rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("device", ["meta", *(["cuda"] if torch.cuda.is_available() else [])])
def test_a_move_to_another_device_takes_everything(device):
    layer = conv(padding=1, padding_mode="reflect").to(device)
    assert {t.device.type for t in (*layer.parameters(), *layer.buffers())} == {device}
    assert layer(torch.randn(2, 3, 6, 6, device=device)).device.type == device
    assert layer.to_dense().weight.device.type == device


def test_a_layer_is_made_on_the_device_and_in_the_dtype_of_the_dense_one():
    layer = LowRankSparseConv2d(nn.Conv2d(2, 3, 3, device="meta", dtype=torch.float16), 1)
    assert {t.device.type for t in (*layer.parameters(), *layer.buffers())} == {"meta"}
    assert layer.A.dtype == layer.B.dtype == layer.S.dtype == torch.float16


def test_a_deep_copy_is_equal_and_independent():
    layer = conv(scheme=Scheme.SPATIAL)
    layer(torch.randn(1, 3, 5, 5)).sum().backward()
    twin_layer = copy.deepcopy(layer)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(twin_layer(x), layer(x))
    before = state_copy(layer)
    with torch.no_grad():
        for tensor in (*twin_layer.parameters(), *twin_layer.buffers()):
            tensor.zero_()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("make", [conv, linear])
def test_the_state_has_the_names_of_the_method_and_comes_back_bit_for_bit(make):
    layer, other = make(), make()
    state = layer.state_dict()
    assert set(state) == {"A", "B", "S", "mask", "bias"}
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for name, value in other.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_state_of_a_low_rank_layer_holds_neither_a_sparse_part_nor_a_mask():
    layer = conv(sparse=False, bias=False)
    assert set(layer.state_dict()) == {"A", "B"}
    assert {name for name, _ in layer.named_parameters()} == {"A", "B"}


def test_the_mask_is_stored_and_not_inferred_from_zeros_of_the_sparse_part():
    layer, other = conv(), conv()
    with torch.no_grad():
        layer.mask.fill_(True)
        layer.S.zero_()
    other.load_state_dict(layer.state_dict())
    assert other.mask.all() and not other.S.any()


@pytest.mark.parametrize("rank, other_rank", [(1, 3), (3, 1), (0, 2), (2, 0)])
def test_a_state_of_another_rank_loads_and_keeps_training(rank, other_rank):
    model, other = nn.Sequential(conv(rank)), nn.Sequential(conv(other_rank))
    other.load_state_dict(model.state_dict())
    assert other[0].rank == rank
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(other(x), model(x))
    other(x).sum().backward()
    assert all(p.grad is not None for p in (other[0].A, other[0].B))


def test_a_state_of_another_shape_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        conv(channels=(3, 4)).load_state_dict(conv(channels=(3, 5)).state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        conv(sparse=False).load_state_dict(conv().state_dict())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_compiles_into_one_graph_with_the_same_outputs_and_gradients(scheme, padding_mode):
    torch._dynamo.reset()
    model = nn.Sequential(conv(2, True, scheme, padding=1, padding_mode=padding_mode), nn.Flatten(), linear(2, True, features=(112, 3)))  # fmt: skip  # noqa: E501
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 5, 6 if padding_mode == "zeros" else 6)
    y, expected = compiled(x), model(x)
    torch.testing.assert_close(y, expected)
    found = torch.autograd.grad(y.sum(), [*model.parameters()])
    for a, b in zip(found, torch.autograd.grad(expected.sum(), [*model.parameters()]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiles_to_machine_code_with_the_same_outputs():
    torch._dynamo.reset()
    layer = conv(2, True, Scheme.SPATIAL, padding="same")
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make, shape", [(conv, (2, 3, 6, 6)), (linear, (4, 6))])
def test_autocast_runs_in_bfloat16_and_gives_gradients_in_the_dtype_of_the_parts(make, shape):
    layer = make()
    x = torch.randn(shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = layer(x), twin(layer)(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=5e-2, atol=5e-2)
    y.float().sum().backward()
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}
    assert all(p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())


def test_channels_last_changes_nothing():
    model = nn.Sequential(conv(scheme=Scheme.SPATIAL))
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    y = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected)


def test_set_parts_changes_the_rank_and_clears_what_the_mask_cuts():
    layer = linear(2)
    A, B, S, mask = torch.randn(5, 3), torch.randn(3, 6), torch.randn(5, 6), torch.rand(5, 6) < 0.5
    layer.set_parts(A, B, S, mask)
    assert layer.rank == 3 and torch.equal(layer.mask, mask)
    torch.testing.assert_close(layer.weight, A @ B + S * mask)
    A.zero_()
    assert layer.A.any(), "the layer must own its parts"


def test_decomposed_layers_gives_each_layer_once_in_order():
    shared = linear(features=(5, 5))
    model = nn.Sequential(conv(), nn.Sequential(shared, nn.ReLU()), shared, nn.Linear(5, 2))
    assert list(decomposed_layers(model)) == ["0", "1.0"]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: LowRankSparseConv2d(nn.Conv2d(4, 4, 3, groups=2), 1), "grouped"),
        (lambda: LowRankSparseConv2d(nn.Conv2d(3, 4, 3), 5), "between 0 and 4 for a 4 x 27 matrix, found 5"),
        (lambda: LowRankSparseConv2d(nn.Conv2d(3, 4, 3), 10, True, Scheme.SPATIAL), "a 12 x 9 matrix, found 10"),
        (lambda: LowRankSparseLinear(nn.Linear(3, 4), -1), "found -1"),
        (lambda: LowRankSparseLinear(nn.Linear(3, 4), 0, sparse=False), "no weight"),
        (lambda: linear().set_parts(torch.zeros(5, 2), torch.zeros(3, 6)), r"\(5, 2\) and \(3, 6\)"),
        (lambda: linear().set_parts(torch.zeros(4, 2), torch.zeros(2, 6)), "expected A"),
        (
            lambda: linear(sparse=False).set_parts(torch.zeros(5, 2), torch.zeros(2, 6), torch.zeros(5, 6)),
            "no sparse part",
        ),
    ],
)
def test_impossible_layers_are_refused_with_what_was_found(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("make", [conv, linear])
def test_the_printed_layer_tells_its_rank_and_whether_it_is_sparse(make):
    assert "rank=2, sparse, scheme=channel" in repr(make())
    assert "sparse" not in make(sparse=False).extra_repr()
