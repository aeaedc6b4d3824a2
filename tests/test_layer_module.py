"""The layers with W = A·B + S do all that a PyTorch module does: move, copy, save, compile, print."""

import copy
import io
import shutil

import pytest
import torch
from small_layers import SCHEMES, conv, linear, state_copy, twin
from torch import nn

from splore.design.layers import LowRankSparseConv2d, LowRankSparseLinear, decomposed_layers
from splore.design.matrix import Scheme


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
    assert all(p.grad is not None for p in other.parameters()) and len(other[0].factors) == 2 * (rank > 0)


def test_a_state_of_another_shape_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        conv(channels=(3, 4)).load_state_dict(conv(channels=(3, 5)).state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        conv(sparse=False).load_state_dict(conv().state_dict())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_compiles_into_one_graph_with_the_same_outputs_and_gradients(scheme, padding_mode):
    torch._dynamo.reset()
    first = conv(2, True, scheme, padding=1, padding_mode=padding_mode)
    model = nn.Sequential(first, nn.Flatten(), linear(features=(4 * 5 * 7, 3)))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 5, 6)
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
