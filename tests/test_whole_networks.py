"""Stage a over whole networks: attention, nets of other libraries, and the way back to dense layers."""

import pytest
import timm
import torch
import torchvision
from nets import decomposable
from torch import nn

import splore
from splore.design.decompose import Design, decompose, materialise
from splore.design.layers import LowRankSparseConv2d, decomposed_layers
from splore.design.matrix import Scheme, unfold


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 8)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("include", [("Linear",), (nn.Linear,)])
def test_attention_still_runs_and_computes_the_same(training, include):
    model = Attentive().train(training)
    x = torch.randn(2, 5, 16)
    expected = model(x)
    decompose(model, Design(rank=1, include=include))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    model(x).square().sum().backward()
    assert all(layer.A.grad.any() for layer in decomposed_layers(model).values())


WHOLE = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), Scheme.CHANNEL),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10), Scheme.SPATIAL),
    "timm test_resnet": (lambda: timm.create_model("test_resnet", num_classes=10), Scheme.SPATIAL),
    "timm test_vit": (lambda: timm.create_model("test_vit", num_classes=10, img_size=32), Scheme.CHANNEL),
}


@pytest.mark.parametrize("make, scheme", WHOLE.values(), ids=WHOLE)
def test_networks_of_other_libraries_are_decomposed_trained_saved_and_loaded_bit_for_bit(make, scheme, tmp_path):
    model = make()
    summary = decompose(model, Design(rank=2, scheme=scheme))
    assert len(summary.ranks) > 5
    assert all("depthwise" in reason or "larger" in reason for reason in summary.dense.values())
    layers = decomposed_layers(model)
    before = {name: layer.S.detach().clone() for name, layer in layers.items()}
    optimizer = torch.optim.SGD(splore.parameter_groups(model, 1e-4), lr=0.01, momentum=0.9)
    loss = nn.functional.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.tensor([1, 2]))
    loss.backward()
    optimizer.step()
    assert all(p.grad is not None for layer in layers.values() for p in (layer.A, layer.B, layer.S))
    assert sum(not torch.equal(layer.S, before[name]) for name, layer in layers.items()) > len(layers) / 3
    splore.prune(model, energy=0.9)
    splore.save(model, tmp_path / "model.safetensors")
    loaded = splore.load(tmp_path / "model.safetensors", make())
    state = model.state_dict()
    assert list(state) == list(loaded.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_materialise_gives_back_plain_layers_and_the_same_outputs():
    model = decomposable().eval()
    decompose(model, Design(rank=2, scheme=Scheme.SPATIAL))
    splore.prune(model, energy=0.8)
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    assert materialise(model) is model
    assert [type(m) for m in model.modules()] == [type(m) for m in decomposable().modules()]
    assert list(model.state_dict()) == list(decomposable().state_dict())
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_materialise_of_a_single_layer_returns_the_dense_one():
    layer = LowRankSparseConv2d(nn.Conv2d(3, 4, 3), 1)
    assert type(materialise(layer)) is nn.Conv2d


def test_a_decomposed_model_is_decomposed_no_further():
    model = decomposable()
    decompose(model, Design(rank=1, include=("Linear",)))
    layer = model[6]
    assert list(decompose(model, Design(rank=1)).ranks) == ["0", "3.0", "3.2"]
    assert model[6] is layer
    assert unfold(model[0].weight, Scheme.CHANNEL).shape == model[0].matrix.shape
