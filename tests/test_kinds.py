"""Convolutions of every kind and the projections of attention as W = A·B + S."""

import copy
import math

import pytest
import torch
from torch import nn

import splore
from splore.design import calibrate
from splore.design.attention import OpenAttention, opened
from splore.design.calibrate import moments
from splore.design.decompose import Design, decompose, materialise
from splore.design.layers import decomposed_layers
from splore.design.matrix import Scheme
from splore.design.trained import matrix_of
from splore.measure.cost import cost
from splore.modelfile.file import load, save

KINDS = {
    "Conv1d": (lambda: nn.Conv1d(6, 20, 3, stride=2, padding=2, dilation=2), (6, 11)),
    "Conv1d, 'same'": (lambda: nn.Conv1d(6, 20, 4, padding="same", padding_mode="circular"), (6, 11)),
    "Conv3d": (lambda: nn.Conv3d(4, 20, (1, 2, 3), padding=(0, 1, 1), bias=False), (4, 3, 4, 5)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(6, 20, 4, 2, 1), (6, 9)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(6, 20, 3, 2, 1, output_padding=1), (6, 5, 4)),
    "ConvTranspose2d, dilated": (lambda: nn.ConvTranspose2d(6, 20, (2, 3), dilation=2, padding=3), (6, 6, 7)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(6, 20, 2, 2), (6, 2, 3, 2)),
    "Conv2d, grouped": (lambda: nn.Conv2d(12, 24, 3, groups=3, padding=1), (12, 6, 5)),
    "Conv1d, grouped": (lambda: nn.Conv1d(12, 24, 3, groups=2), (12, 9)),
}


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("kind", KINDS)
def test_the_function_stays_and_survives_copies_files_and_folding(kind, scheme, tmp_path):
    make, shape = KINDS[kind]
    torch.manual_seed(0)

    def net():
        return nn.Sequential(nn.Unflatten(1, shape), make(), nn.ReLU(), nn.Flatten()).eval()

    model, x = net(), torch.randn(2, math.prod(shape))
    wanted = model(x)
    summary = decompose(model, Design(rank=2, scheme=scheme))
    assert summary.ranks == {"1": 2} and not summary.dense
    torch.testing.assert_close(model(x), wanted)
    splore.prune(model, params=0.6)
    wanted = model(x)
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", net()).eval()
    assert torch.equal(again(x), wanted) and torch.equal(copy.deepcopy(model)(x), wanted)
    assert cost(model, x.shape[1:]).params == sum(p.count_nonzero() for p in model.parameters())
    engine = splore.compile(model, x)
    torch.testing.assert_close(torch.as_tensor(engine(x)), wanted, rtol=1e-4, atol=1e-5)
    dense = materialise(model)
    assert type(dense[1]) is type(make())
    torch.testing.assert_close(dense(x), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_that_calibrate_are_those_that_the_matrix_multiplies(kind, monkeypatch):
    monkeypatch.setattr(calibrate, "POSITIONS", 1000)  # all of them
    make, shape = KINDS[kind]
    torch.manual_seed(0)
    layer = make()
    layer.bias = None
    x = torch.randn(3, *shape)
    y = layer(x).detach()
    C = moments(nn.Sequential(layer), {"0": layer}, Scheme.CHANNEL, [x])["0"]
    W = matrix_of(layer, Scheme.CHANNEL).double()
    if layer.groups == 1:
        torch.testing.assert_close(C.sum @ W.T, y.transpose(0, 1).flatten(1).sum(1).double(), rtol=1e-4, atol=1e-4)
        energy = ((W @ C.products) * W).sum()
        torch.testing.assert_close(energy, y.double().square().sum(), rtol=1e-5, atol=1e-4)
    assert C.count == 3 * layer.groups * y[0, 0].numel()


def test_the_columns_of_groups_are_those_of_one_convolution_for_each():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(6, 9, 3, groups=3), torch.randn(2, 6, 5, 5)
    found = moments(nn.Sequential(layer), {"0": layer}, Scheme.CHANNEL, [x])["0"]
    single = nn.Conv2d(2, 3, 3)
    each = [moments(nn.Sequential(single), {"0": single}, Scheme.CHANNEL, [part])["0"] for part in x.split(2, 1)]
    torch.testing.assert_close(found.products, sum(one.products for one in each), rtol=1e-5, atol=1e-4)
    assert found.count == sum(one.count for one in each) and not found.has_bias


def test_multiply_adds_are_counted_as_each_number_meets_pixels():
    def macs(layer, shape, **design):
        model = nn.Sequential(layer)
        decompose(model, Design(rank=2, sparse=False, **design))
        return cost(model, shape)

    found = macs(nn.ConvTranspose2d(6, 20, 3, 2), (6, 4, 5))
    assert found.macs == 2 * 6 * 9 * 20 + 20 * 2 * (9 * 11) and found.dense_macs == 6 * 20 * 9 * 20
    found = macs(nn.ConvTranspose2d(6, 20, 3, 2), (6, 4, 5), scheme=Scheme.SPATIAL)
    assert found.macs == 2 * 6 * 3 * 20 + 20 * 3 * 2 * (9 * 5)
    found = macs(nn.Conv1d(6, 20, 3), (6, 12))
    assert found.macs == 2 * (6 * 3 + 20) * 10 and found.dense_macs == 6 * 20 * 3 * 10
    grouped = nn.Sequential(nn.Conv2d(12, 24, 3, groups=3))
    decompose(grouped, Design(rank=0))
    splore.prune(grouped, params=0.5)
    assert cost(grouped, (12, 5, 5)).macs == 9 * grouped[0].S.count_nonzero()


def test_a_grouped_convolution_is_fitted_by_the_data():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(12, 24, 3, groups=3), nn.ReLU(), nn.Conv2d(24, 4, 3))
    batches = [torch.randn(64, 12, 7, 7) * torch.linspace(0.1, 3, 12)[None, :, None, None] for _ in range(2)]
    wanted = model(batches[0])
    trial = copy.deepcopy(model)
    decompose(trial, Design(params=0.5))
    decompose(model, Design(params=0.5), calibrate=batches)
    error, blind = ((net(batches[0]) - wanted).square().mean() for net in (model, trial))
    assert error < blind


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attend = nn.MultiheadAttention(12, 3, batch_first=True, **options)

    def forward(self, x):
        sizes = self.attend.kdim, self.attend.vdim
        key, value = (x[:, :4, :size] for size in sizes)
        return self.attend(x, key, value)[0]


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 7, "vdim": 5}, {"add_bias_kv": True}])
@pytest.mark.parametrize("training", [True, False])
def test_the_projections_of_attention_are_layers_and_the_function_stays(options, training, tmp_path):
    torch.manual_seed(0)
    model = Attention(**options).train(training)
    x = torch.randn(2, 6, 12)
    wanted, names = model(x), list(model.state_dict())
    summary = decompose(model, Design(rank=1))
    inner = {"attend.q_proj", "attend.k_proj", "attend.v_proj"} if "kdim" in options else {"attend.in_proj"}
    assert summary.ranks.keys() == inner | {"attend.out_proj"} and not summary.dense
    torch.testing.assert_close(model(x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(model(x), wanted)
    splore.prune(model, params=0.8)
    wanted = model(x)
    wanted.sum().backward()
    assert all(layer.S.grad.abs().sum() > 0 for layer in decomposed_layers(model).values())
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", Attention(**options)).train(training)
    assert torch.equal(again(x), wanted) and torch.equal(copy.deepcopy(model)(x), wanted)
    dense = materialise(model)
    assert type(dense.attend) is nn.MultiheadAttention and list(dense.state_dict()) == names
    torch.testing.assert_close(dense(x), wanted)


def test_an_attention_that_is_left_out_is_as_it_was():
    model = Attention()
    weight, names = model.attend.in_proj_weight, list(model.state_dict())
    decompose(model, Design(rank=1, exclude=("*.in_proj",)))
    assert type(model.attend) is nn.MultiheadAttention and model.attend.in_proj_weight is weight
    assert [name.replace("out_proj.A", "out_proj.weight") for name in model.state_dict()][: len(names)][0] == names[0]
    with pytest.raises(ValueError, match="nothing to decompose"):
        decompose(Attention(), Design(include=("nothing",)))


def test_a_model_is_as_it_was_after_an_error_within():
    model = Attention()
    weight = model.attend.in_proj_weight
    with pytest.raises(RuntimeError), opened(model):
        assert type(model.attend) is OpenAttention and model.attend.in_proj_weight is weight
        raise RuntimeError
    assert type(model.attend) is nn.MultiheadAttention and model.attend.in_proj_weight is weight


@pytest.mark.filterwarnings("ignore")
def test_a_transformer_is_calibrated_trained_with_masks_and_compiled():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 3, 24, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(12 * 5, 4))
    batches = [torch.randn(32, 5, 12) for _ in range(2)]
    wanted = model.eval()(batches[0])
    blind = copy.deepcopy(model)
    decompose(blind, Design(params=0.5))
    decompose(model, Design(params=0.5), calibrate=batches)
    error, other = ((net(batches[0]) - wanted).square().mean() for net in (model, blind))
    assert error < other
    optimizer = torch.optim.AdamW(splore.parameter_groups(model, 1e-2), lr=1e-2)
    splore.attach(model, optimizer, l1=1e-4)
    for x in batches:
        model.train()(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    attention = model[0].layers[0].self_attn.in_proj
    assert not attention.S[~attention.mask].any() and (~attention.mask).any()


def test_the_summary_says_how_many_layers_of_each_kind_were_decomposed():
    model = nn.Sequential(nn.Conv1d(8, 16, 5), nn.ReLU(), nn.Conv1d(16, 16, 5), nn.Flatten(), nn.Linear(16 * 8, 10))
    assert str(decompose(model, Design(rank=2))) == "decomposed 3 layers: 2 Conv1d, 1 Linear"
