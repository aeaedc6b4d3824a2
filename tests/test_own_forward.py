"""Subclasses with a forward of their own: decomposed where it does no more than pad and cast, and then kept."""

import copy
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from splore.design.decompose import Design, decompose, materialise
from splore.design.layers import decomposed_layers
from splore.measure.cost import cost
from splore.modelfile.file import load, save


class Cast(nn.Linear):
    def forward(self, x):
        return super().forward(x.to(self.weight.dtype))


class Functional(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, None if self.bias is None else self.bias.to(x.dtype))


class Same(nn.Conv2d):
    """Pads to the stride, as TensorFlow does."""

    def widths(self, size):
        return max((-(-size // 2) - 1) * 2 + 3 - size, 0)

    def forward(self, x):
        high, wide = map(self.widths, x.shape[2:])
        x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Inner(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(F.pad(x, (0, 1, 0, 1)), weight, bias)


class OneDimensional(nn.Conv1d):
    def forward(self, x):
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))  # causal


HARMLESS = {
    "Cast": (lambda: Cast(12, 20), (12,)),
    "Functional": (lambda: Functional(12, 20, bias=False), (12,)),
    "Same": (lambda: Same(6, 20, 3, stride=2), (6, 9, 8)),
    "Inner": (lambda: Inner(6, 20, 3), (6, 9, 8)),
    "OneDimensional": (lambda: OneDimensional(6, 20, 3), (6, 9)),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_harmless_forward_is_kept_and_computes_with_the_composed_weight(kind, tmp_path):
    make, shape = HARMLESS[kind]
    torch.manual_seed(0)
    model = nn.Sequential(make(), nn.ReLU()).eval()
    x = torch.randn(3, *shape)
    wanted, dense_macs = model(x), cost(model, shape).macs
    summary = decompose(model, Design(rank=2))
    assert summary.ranks == {"0": 2} and not summary.dense
    torch.testing.assert_close(model(x), wanted)
    assert cost(model, shape).dense_macs == dense_macs > 0
    layer = model[0]
    layer.S.data.zero_()
    wanted = model(x)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), wanted)
    assert torch.equal(copy.deepcopy(model)(x), wanted)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), wanted)
    save(model, tmp_path / "m.safetensors")
    assert torch.equal(load(tmp_path / "m.safetensors", nn.Sequential(make(), nn.ReLU())).eval()(x), wanted)
    wanted.sum().backward()
    assert layer.A.grad.abs().sum() > 0
    dense = materialise(model)
    assert type(dense[0]) is type(make()) and not decomposed_layers(dense)
    torch.testing.assert_close(dense(x), wanted)


class Standardised(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias)


class Dropped(nn.Linear):
    def forward(self, x):
        return F.linear(x, F.dropout(self.weight, 0.5, self.training), self.bias)


class Twice(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + F.linear(x, self.weight)


class Transposed(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.T, self.bias)


class Activated(nn.Linear):
    def forward(self, x):
        return super().forward(x).relu()


class InPlace(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        y *= 2
        return y


class Branch(nn.Linear):
    def forward(self, x):
        return super().forward(x) if self.training else x @ self.weight.T


class Adapter(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.down = nn.Linear(inputs, outputs)

    def forward(self, x):
        return super().forward(x) + self.down(x)


class Data(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


ODD = {
    Standardised: "sub with its weight|mean with its weight",
    Dropped: "dropout with its weight",
    Twice: "add with its output and output",
    Transposed: "with its weight",
    Activated: "relu with its output",
    InPlace: "mul_? with its output|imul",
    Branch: "with its weight",
    Adapter: "more than a weight and a bias",
    Data: "can't be followed|sum with its input",
}


@pytest.mark.parametrize("kind", ODD)
def test_a_forward_that_does_more_stays_dense_and_the_reason_is_said(kind):
    odd = kind(20, 20, 3) if issubclass(kind, nn.Conv2d) else kind(20, 20)
    model = nn.ModuleDict({"odd": odd, "fc": nn.Linear(20, 20)})
    before = {name: p.clone() for name, p in model.named_parameters()}
    reason = decompose(model, Design(rank=2, include=("odd", "fc"))).dense["odd"]
    assert f"{kind.__name__} has a forward of its own: " in reason and re.search(ODD[kind], reason), reason
    assert type(model["odd"]) is kind and all(torch.equal(model.get_parameter(n), before[n]) for n in ("odd.weight",))


def test_timms_layers_are_decomposed_but_for_those_that_standardise_weights():
    from timm import layers

    model = nn.ModuleDict(
        {
            "linear": layers.Linear(20, 20),
            "same": layers.Conv2dSame(8, 20, 3, stride=2),
            "std": layers.StdConv2d(8, 20, 3),
            "scaled": layers.ScaledStdConv2d(8, 20, 3),
        }
    )
    summary = decompose(model, Design(rank=2))
    assert list(summary.ranks) == ["linear", "same"] and list(summary.dense) == ["std", "scaled"]


def test_threads_that_call_one_layer_at_once_do_not_disturb_each_other():
    from concurrent.futures import ThreadPoolExecutor

    model = nn.Sequential(Same(6, 20, 3, stride=2)).eval()
    decompose(model, Design(rank=2))
    inputs = [torch.randn(1, 6, 9, 8) for _ in range(64)]
    wanted = [model(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        assert all(map(torch.equal, pool.map(model, inputs), wanted))
