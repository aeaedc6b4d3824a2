"""Exports compute what the model does, in each runtime, from the file alone."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import splore
from splore.deploy.cheapest import cheapest, in_two
from splore.deploy.export import FORMATS, export
from splore.deploy.runtimes import missing, openvino_model
from splore.design.layers import LowRankSparseConv2d, LowRankSparseLinear, decomposed_layers
from splore.design.matrix import Scheme
from splore.vision import read_weights

TASK = splore.Task(("ant", "bee", "cat"), splore.Preprocessing((12, 10), (0.5,) * 3, (0.2,) * 3))


def dense():
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2, bias=False),
        nn.ReLU(), nn.Conv2d(16, 16, (3, 1), padding="same"), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def net():
    """Convolutions with L and S, with S alone, and with L alone; the last layer is dense."""
    torch.manual_seed(0)
    model = dense()
    splore.decompose(model, splore.Design(rank=1, include=("0",)))
    splore.decompose(model, splore.Design(rank=0, include=("3",)))
    splore.decompose(model, splore.Design(rank=2, sparse=False, include=("5",)))
    for layer in decomposed_layers(model).values():
        if layer.S is not None:
            mask = torch.rand(layer.S.shape) < 0.2
            layer.set_parts(layer.A, layer.B, torch.randn(layer.S.shape) * mask, mask)
    model[1].running_mean.normal_()
    model.task = TASK
    return model.eval()


@st.composite
def low_rank_layers(draw):
    torch.manual_seed(draw(st.integers(0, 99)))
    bias, rank = draw(st.booleans()), draw(st.integers(1, 3))
    if draw(st.integers(0, 4)) == 0:
        layer = LowRankSparseLinear(nn.Linear(5, 6, bias), rank, sparse=False)
        x = torch.randn(2, 4, 5)
    else:
        sides = st.tuples(st.integers(1, 3), st.integers(1, 3))
        kernel, dilation = draw(sides), draw(sides)
        same = draw(st.booleans())
        conv = nn.Conv2d(
            3, 4, kernel, stride=1 if same else draw(sides), padding="same" if same else draw(sides), dilation=dilation,
            bias=bias, padding_mode=draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"])),
        )  # fmt: skip
        layer = LowRankSparseConv2d(conv, rank, sparse=False, scheme=draw(st.sampled_from(list(Scheme))))
        x = torch.randn(2, 3, 9, 8)
    with torch.no_grad():
        for part in layer.parameters():
            part.normal_()
    return layer, x


@given(low_rank_layers())
@settings(max_examples=60)
def test_a_low_rank_layer_is_two_layers(case):
    layer, x = case
    with torch.no_grad():
        torch.testing.assert_close(in_two(layer)(x), layer(x), rtol=1e-4, atol=1e-4)


def test_only_layers_that_are_low_rank_only_become_two():
    model = net()
    found = cheapest(model)
    assert [type(found[i]).__name__ for i in (0, 3, 5)] == ["Conv2d", "Conv2d", "Sequential"]
    assert [type(model[i]).__name__ for i in (0, 3, 5)] == ["LowRankSparseConv2d"] * 3
    assert not found.training and not any(parameter.requires_grad for parameter in found.parameters())
    x = torch.randn(2, 3, 12, 10)
    torch.testing.assert_close(found(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.slow
def test_the_file_computes_what_the_model_does(to, tmp_path, fast_plans):
    form = FORMATS[to]
    if missing(*form.packages):
        pytest.skip(f"{form.packages} are not installed")
    model, path = net(), tmp_path / f"net{form.suffix}"
    done = export(model, path, to, torch.zeros(1, 3, 12, 10), threads=1)
    files = [path, path.with_suffix(".bin")] if to == "openvino" else [path]
    assert (done.path, done.bytes) == (path, sum(file.stat().st_size for file in files))
    x = torch.randn(5, 3, 12, 10)
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(done.run(x.numpy()), expected, rtol=1e-4, atol=1e-5)
    check_file(to, path, x.numpy(), expected, model)


def check_file(to, path, x, expected, model):
    """What is particular to a format."""
    if to.startswith("onnx"):
        import onnx

        proto = onnx.load(path)
        texts = {entry.key: entry.value for entry in proto.metadata_props}
        assert splore.Task.from_json(json.loads(texts["splore.task"])) == TASK
        sparse = {tensor.values.name: len(tensor.values.dims) for tensor in proto.graph.sparse_initializer}
        assert len(sparse) == (2 if to == "onnx-compact" else 0)
        if to == "onnx" and not missing("openvino"):
            np.testing.assert_allclose(openvino_model(path, 1)(x), expected, rtol=1e-4, atol=1e-5)
    if to == "dense":
        original = dense().eval()
        original.load_state_dict(read_weights(path))
        with torch.no_grad():
            np.testing.assert_allclose(original(torch.from_numpy(x)).numpy(), expected, rtol=1e-4, atol=1e-5)
    if to == "engine":
        assert splore.Engine.load(path).task == TASK


def test_a_model_of_two_results_is_refused(tmp_path):
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(ValueError, match="one tensor, found 2"):
        export(Two(), tmp_path / "net.pt2", "pt2", torch.zeros(1, 3, 4, 4))
    assert not list(tmp_path.iterdir())


def test_a_file_that_computes_something_else_is_removed(tmp_path):
    class Odd(nn.Module):
        """Exported as it is in evaluation mode, but for the number of times that it ran."""

        def __init__(self):
            super().__init__()
            self.calls, self.fc = 0, nn.Linear(4, 4)

        def forward(self, x):
            self.calls += 1
            return self.fc(x) * self.calls

    with pytest.raises(ValueError, match="expected the outputs of the model"):
        export(Odd().eval(), tmp_path / "net.pt2", "pt2", torch.zeros(1, 4))
    assert not list(tmp_path.iterdir())
