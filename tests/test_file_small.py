"""Small tensors of the model file: they lie together, and what is not as their header says is refused."""

import zlib

import pytest
import torch
from files import as_stored, assert_same, compressed, parts, refused, signed
from torch import nn

from splore.design.decompose import Design, decompose
from splore.design.layers import LowRankSparseLinear
from splore.modelfile.file import load, save
from splore.postprocess.prune import prune
from splore.vision import build


def test_small_tensors_lie_in_one_and_large_ones_apart(tmp_path):
    model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
    decompose(model, Design(rank=2))
    save(model, tmp_path / "model.safetensors")
    text, tensors = as_stored(tmp_path / "model.safetensors")
    assert text.keys() == {"format", "version", "sha256"} and text["version"] == 3
    assert tensors.keys() == {"0.S.values", "splore.header", "splore.small"}
    assert tensors["splore.small"].nbytes == 4 * (2 * (40 + 40 + 40 + 3) + 43 + 3 * 40)
    assert_same(
        load(tmp_path / "model.safetensors", nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))), model
    )


def test_no_tensor_is_small(tmp_path):
    torch.manual_seed(0)
    layer = LowRankSparseLinear(nn.Linear(200, 200, bias=False), rank=0)
    layer.mask.copy_(torch.rand(200, 200) < 0.5)
    save(layer, tmp_path / "layer.safetensors")
    assert not as_stored(tmp_path / "layer.safetensors")[1]["splore.small"].numel()
    assert_same(load(tmp_path / "layer.safetensors", nn.Linear(200, 200, bias=False)), layer)


def test_tensors_may_be_called_as_those_of_the_format(tmp_path):
    def named():
        model = nn.Module()
        model.splore = nn.Linear(3, 3)
        model.splore.register_buffer("small", torch.arange(2000.0))
        model.splore.register_buffer("header", torch.arange(2000))
        model.layer = nn.Linear(30, 30)
        return model

    model = named()
    decompose(model, Design(rank=1, include=("layer",)))
    save(model, tmp_path / "model.safetensors")
    assert_same(load(tmp_path / "model.safetensors", named()), model)


def test_names_do_not_make_a_small_net_large(tmp_path):
    model = build("resnet20", 10)
    decompose(model, Design(rank=1))
    prune(model, params=0.1)
    save(model, tmp_path / "model.safetensors")
    _, tensors = parts(tmp_path / "model.safetensors")
    numbers = sum(t.nbytes for t in tensors.values())
    assert numbers < (tmp_path / "model.safetensors").stat().st_size < numbers + 4000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("splore.header"), "expected bytes"),
        (lambda x: x.pop("splore.small"), "expected bytes"),
        (lambda x: x.__setitem__("splore.header", x["splore.header"].float()), "expected bytes"),
        (lambda x: x.__setitem__("splore.header", x["splore.header"][:-9].clone()), "cut off"),
        (lambda x: x.__setitem__("splore.header", x["splore.header"][:0].clone()), "cut off"),
        (lambda x: x.__setitem__("splore.header", x["splore.header"].flip(0)), "can't be inflated"),
        (lambda x: x.__setitem__("splore.header", deflated(b" " * (1 << 28))), "more than 128 MiB"),
        (lambda x: x.__setitem__("splore.header", deflated(b"[]")), "can't be read"),
        (lambda x: x.__setitem__("splore.header", deflated(b"{}")), "can't be read"),
        (lambda x: x.__setitem__("splore.header", deflated(b'{"__metadata__":{"structure":"[]"}}')), "can't be read"),
        (lambda x: x.__setitem__("splore.small", x["splore.small"][:-1].clone()), "can't be read"),
        (lambda x: x.__setitem__("splore.small", torch.cat([x["splore.small"]] * 2)), "can't be read"),
    ],
)
def test_small_tensors_that_are_not_as_their_header_says(tmp_path, change, message):
    path = tmp_path / "lies.safetensors"
    save(compressed(), path)
    text, tensors = as_stored(path)
    change(tensors)
    path.write_bytes(signed(text, tensors))
    assert message in refused(path)


def deflated(header):
    return torch.frombuffer(bytearray(zlib.compress(header)), dtype=torch.uint8)
