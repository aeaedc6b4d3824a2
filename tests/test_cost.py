"""Costs against numbers taken by hand, against published ones, and against the bytes of real files."""

import copy
import json

import pytest
import torch
from torch import nn

from splore.design.decompose import Design, decompose
from splore.design.layers import LowRankSparseConv2d, LowRankSparseLinear, decomposed_layers
from splore.design.matrix import Scheme
from splore.measure.cost import cost
from splore.modelfile.file import dense_bytes, save


def sparse_conv(dense, rank, scheme, nnz):
    layer = LowRankSparseConv2d(dense, rank, scheme=scheme)
    mask = torch.zeros(layer.S.numel(), dtype=torch.bool)
    mask[torch.arange(nnz) * (mask.numel() // max(nnz, 1))] = True
    mask = mask.view_as(layer.S)
    layer.set_parts(torch.randn_like(layer.A), torch.randn_like(layer.B), torch.randn_like(layer.S), mask)
    return layer


def test_dense_convolution_by_hand():
    # 3 -> 8 channels, 3 x 3, stride 2 on 9 x 7: output 4 x 3 = 12 pixels of 8 * 27 multiply-adds.
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(96, 10, bias=False))
    price = cost(model, (3, 9, 7))
    conv, norm, linear = price.layers
    assert (conv.name, conv.kind, conv.shape) == ("0", "Conv2d", (8, 3, 3, 3))
    assert (conv.params, conv.macs, conv.bytes) == (8 * 27 + 8, 12 * 8 * 27, 4 * (8 * 27 + 8))
    assert (norm.params, norm.macs, norm.bytes) == (16, 0, 4 * 4 * 8 + 8)
    assert (linear.params, linear.macs, linear.bytes) == (960, 960, 3840)
    assert price.params == price.dense_params == 224 + 16 + 960
    assert price.params_kept == price.macs_kept == price.bytes_kept == 1.0


@pytest.mark.parametrize(
    ("scheme", "A", "B", "factor_macs"),
    [
        # Input 9 x 7, 3 x 5 kernel, stride (2, 1), padding (1, 2): output 5 x 7, and between the factors 5 x 7 too.
        (Scheme.CHANNEL, 8 * 2, 2 * 4 * 15, (8 * 2 + 2 * 4 * 15) * 35),
        (Scheme.SPATIAL, 8 * 5 * 2, 2 * 4 * 3, 8 * 5 * 2 * 35 + 2 * 4 * 3 * 35),
    ],
)
def test_decomposed_convolution_by_hand(scheme, A, B, factor_macs):
    dense = nn.Conv2d(4, 8, (3, 5), stride=(2, 1), padding=(1, 2))
    price = cost(nn.Sequential(sparse_conv(dense, 2, scheme, nnz=6)), (4, 9, 7))
    (layer,) = price.layers
    assert (layer.kind, layer.shape, layer.scheme, layer.rank, layer.nnz) == ("Conv2d", (8, 4, 3, 5), scheme, 2, 6)
    assert layer.density == 6 / 480
    assert (layer.params, layer.dense_params) == (A + B + 6 + 8, 480 + 8)
    assert (layer.macs, layer.dense_macs) == (factor_macs + 6 * 35, 480 * 35)
    # Six gaps of 80 entries take a byte each; mask and support are one.
    assert (layer.bytes, layer.dense_bytes) == (4 * (A + B + 6 + 8) + 6, 4 * 488)


def test_the_width_between_spatial_factors_is_the_inputs():
    dense = nn.Conv2d(2, 3, 3, stride=2, padding=0)
    layer = sparse_conv(dense, 1, Scheme.SPATIAL, nnz=0)
    # Input 11 x 9: 3 x 1 with stride (2, 1) gives 5 x 9, then 1 x 3 with stride (1, 2) gives 5 x 4.
    assert cost(nn.Sequential(layer), (2, 11, 9)).macs == 6 * 5 * 9 + 9 * 5 * 4


def test_linear_over_positions_and_modules_that_run_twice():
    layer = LowRankSparseLinear(nn.Linear(6, 6), rank=2)
    model = nn.Sequential(layer, layer)
    (price,) = cost(model, (5, 6)).layers
    assert price.params == 24 + 6  # the S of a new layer is all zeros
    assert (price.macs, price.dense_macs) == (2 * 5 * 24, 2 * 5 * 36)


def test_transposed_and_one_dimensional_convolutions():
    assert cost(nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5)).macs == 4 * 6 * 4 * 25
    assert cost(nn.Conv1d(4, 6, 3, groups=2), (4, 10)).macs == 6 * 2 * 3 * 8


def test_shared_tensors_count_once():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    price = cost(nn.Sequential(first, second), (4,))
    assert price.params == 16 + 8
    assert price.macs == 32


def test_resnet18_has_its_published_cost():
    models = pytest.importorskip("torchvision.models")
    price = cost(models.resnet18(), (3, 224, 224))
    assert price.params == 11_689_512
    assert round(price.macs / 1e9, 2) == 1.81


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "vit_tiny_patch16_224"])
def test_any_network_of_timm(name):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name)
    assert cost(model, (3, 224, 224)).params == sum(p.numel() for p in model.parameters())


def test_attention_is_no_obstacle():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attend(x, x, x)[0]

    model = nn.Sequential(Attention(), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    price = cost(model, (5, 8))
    assert price.params == sum(p.numel() for p in model.parameters())
    assert price.macs == (2 * 4 * 8 * 8 + 2 * 8 * 16) * 5
    decompose(model, Design(rank=1, include=("*",)))
    assert cost(model, (5, 8)).dense_params == price.params


def test_a_parametrised_layer():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3)))
    assert cost(model, (2, 5, 5)).params == sum(p.numel() for p in model.parameters())


def test_the_model_is_left_as_it_was():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            return x

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), Counting()).train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    cost(model, (3, 8, 8))
    assert [m.training for m in model] == [True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model[0]._forward_hooks


def test_an_input_of_the_wrong_shape():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=r"doesn't run on one input of shape \(1, 8, 8\)"):
        cost(model, (1, 8, 8))
    assert not model[0]._forward_hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.4, 1.0])
def test_bytes_are_those_of_the_file(dtype, density, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    dense = copy.deepcopy(model).to(dtype)
    model = model.to(dtype)
    decompose(model, Design(rank=2, scheme=Scheme.SPATIAL))
    for layer in decomposed_layers(model).values():
        layer.set_parts(layer.A, layer.B, torch.randn_like(layer.S), torch.rand(layer.S.shape) < density)
    price = cost(model, (3, 8, 8))
    assert price.dense_bytes == cost(dense, (3, 8, 8)).bytes
    save(model, tmp_path / "model.safetensors")
    assert 0 < (tmp_path / "model.safetensors").stat().st_size - price.bytes < 3000
    assert 0 < dense_bytes(model) - price.dense_bytes < 1000
    assert dense_bytes(model) == dense_bytes(dense)


def test_as_dict_is_plain_json():
    model = nn.Sequential(sparse_conv(nn.Conv2d(2, 4, 3), 1, Scheme.CHANNEL, 3), nn.BatchNorm2d(4))
    price = cost(model, (2, 6, 6))
    found = json.loads(json.dumps(price.as_dict()))
    assert found["dense"] == {"params": price.dense_params, "macs": price.dense_macs, "bytes": price.dense_bytes}
    assert found["compressed"]["params_kept"] == price.params / price.dense_params
    assert found["layers"][0]["scheme"] == "channel" and found["layers"][0]["shape"] == [4, 2, 3, 3]
    assert found["layers"][1]["shape"] is None


class Attention(nn.Module):
    """Attends from `queries` to `keys` positions."""

    def __init__(self, **options):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x):
        wide = getattr(self.attend, "kdim", 8), getattr(self.attend, "vdim", 8)
        key, value = (torch.cat([x, x], dim=2)[:, :3, :size] for size in wide)
        return self.attend(x, key=key, value=value, need_weights=False)[0]


@pytest.mark.parametrize(("kdim", "vdim"), [(8, 8), (5, 6)])
def test_the_projections_of_an_attention_count(kdim, vdim):
    model = nn.Sequential(Attention(kdim=kdim, vdim=vdim))
    inside = 7 * 8 * 8 + 3 * 8 * kdim + 3 * 8 * vdim
    found = cost(model, (7, 8))
    assert found.macs == found.dense_macs == inside + 7 * 8 * 8
    decompose(model, Design(rank=2, sparse=False))
    found = cost(model, (7, 8))
    queries, others = 2 * 7 * (8 + 8), 2 * 3 * (8 + kdim) + 2 * 3 * (8 + vdim)
    assert (found.macs, found.dense_macs) == (queries + others + 7 * 2 * (8 + 8), inside + 7 * 8 * 8)
    named = {layer.name.removeprefix("0.attend."): layer.macs for layer in found.layers if layer.rank}
    split = {"in_proj": queries + others} if kdim == 8 else {"q_proj": queries}
    assert named.items() >= split.items() and named["out_proj"] == 7 * 2 * (8 + 8)


def test_an_encoder_layer_counts_all_its_weights():
    # The way that PyTorch takes without gradients, all in one operator, must not hide the layers.
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert cost(model, (7, 8)).macs == 7 * (4 * 8 * 8 + 2 * 8 * 16)


def test_printed_it_is_the_table_of_layers():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
    lines = str(cost(model, (3, 3, 3))).splitlines()
    assert [line.split("|")[1].strip() for line in lines] == [
        "layer",
        lines[1].split("|")[1].strip(),
        "0",
        "3",
        "others",
        "total",
    ]
