"""The model file: what is saved comes back bit for bit, and is written whole or not at all."""

import errno
import os

import pytest
import torch
from files import as_stored, assert_same, compressed, net, parts
from safetensors.torch import load_file
from torch import nn

from splore.design.decompose import Design, decompose
from splore.design.layers import LowRankSparseConv2d, LowRankSparseLinear
from splore.design.matrix import Scheme
from splore.modelfile.file import ModelFileError, load, read_structure, save
from splore.vision import Origin, build


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    save(compressed(), path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scheme", list(Scheme))
@pytest.mark.parametrize(("rank", "sparse"), [(2, True), (1, False), (0, True)])
def test_identity(tmp_path, rank, sparse, scheme, dtype):
    model = compressed(rank, sparse, scheme).to(dtype)
    save(model, tmp_path / "model.safetensors")
    fresh = net()
    found = load(tmp_path / "model.safetensors", fresh)
    assert found is fresh
    assert_same(found, model)
    x = torch.randn(2, 3, 9, 11, dtype=dtype)
    assert torch.equal(found.eval()(x), model.eval()(x))


@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("mask", ["support", "full", "more", "less"])
def test_masks_and_signed_zeros_come_back(tmp_path, mask, density):
    layer = LowRankSparseConv2d(nn.Conv2d(5, 6, 3), rank=1)
    support = torch.rand(layer.S.shape) < density
    with torch.no_grad():
        layer.A.normal_()
        layer.A[0] = -0.0
        layer.bias[0] = -0.0
        layer.S.copy_(torch.where(support, torch.randn_like(layer.S), torch.zeros(())))
        other = torch.rand(layer.S.shape) < 0.1
        masks = {
            "support": support,
            "full": torch.ones_like(support),
            "more": support | other,
            "less": support & ~other,
        }
        layer.mask.copy_(masks[mask])
        layer.S[layer.mask & ~support & (torch.rand(layer.S.shape) < 0.5)] = -0.0
    save(layer, tmp_path / "layer.safetensors")
    found = load(tmp_path / "layer.safetensors", nn.Conv2d(5, 6, 3))
    assert isinstance(found, LowRankSparseConv2d)
    assert_same(found, layer)


def test_zeros_outside_the_mask_lose_their_sign_and_cost_nothing(tmp_path):
    layer = LowRankSparseLinear(nn.Linear(30, 20), rank=1)
    layer.mask.copy_(torch.rand(20, 30) < 0.1)
    with torch.no_grad():
        layer.S.copy_(torch.where(layer.mask, torch.randn(20, 30), torch.tensor(-0.0)))
    save(layer, tmp_path / "layer.safetensors")
    found = load(tmp_path / "layer.safetensors", nn.Linear(30, 20))
    assert torch.equal(found.S, layer.S) and torch.equal(found.mask, layer.mask)
    assert not found.S[~found.mask].signbit().any()
    assert "S.negative_zeros" not in parts(tmp_path / "layer.safetensors")[1]


def test_a_pruned_layer_stores_no_mask(saved):
    names = parts(saved)[1].keys()
    assert {"0.A", "0.B", "0.bias", "0.S.values", "0.S.support", "1.running_var"} <= names
    assert not any(name.endswith(("S.mask", "S.negative_zeros", "mask", ".S")) for name in names)


def test_a_dense_network(tmp_path):
    model = net()
    save(model, tmp_path / "dense.safetensors")
    assert_same(load(tmp_path / "dense.safetensors", net()), model)
    found = load_file(tmp_path / "dense.safetensors")  # a plain state dict, for whatever else reads safetensors
    assert found.keys() == model.state_dict().keys()
    text, _ = as_stored(tmp_path / "dense.safetensors")
    assert text["version"] == 1 and text["structure"]["layers"] == []


def test_tied_shared_and_strided_tensors(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(6, 6), nn.Linear(6, 6)
            self.decode.weight = self.encode.weight
            self.block = nn.Conv2d(4, 4, 3, padding=1)
            self.again = self.block
            self.register_buffer("strided", torch.zeros(3, 2).T)
            self.register_buffer("passing", torch.ones(1), persistent=False)

    torch.manual_seed(0)
    model = Tied()
    decompose(model, Design(rank=1, include=("block",)))
    model.strided = torch.randn(3, 2).T
    model.block.S.data = torch.randn(36, 4).T
    model.encode.weight.data = torch.randn(6, 6).T
    assert not model.strided.is_contiguous()
    save(model, tmp_path / "tied.safetensors")
    found = load(tmp_path / "tied.safetensors", Tied())
    assert_same(found, model)
    assert found.block is found.again and isinstance(found.again, LowRankSparseConv2d)
    assert found.encode.weight is found.decode.weight
    names = parts(tmp_path / "tied.safetensors")[1]
    assert "again.A" not in names and "decode.weight" not in names


def test_ties_that_came_after_the_model_was_built(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    save(model, tmp_path / "tied.safetensors")
    found = load(tmp_path / "tied.safetensors", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    assert found[1].weight is found[0].weight and torch.equal(found[0].weight, model[0].weight)


def test_a_compiled_model_is_saved_as_itself(tmp_path):
    model = compressed()
    save(torch.compile(model), tmp_path / "model.safetensors")
    assert_same(load(tmp_path / "model.safetensors", net()), model)


# MNASNet refuses a state that does not say its version.
NAMED = ["resnet20", "torchvision:squeezenet1_1", "torchvision:mnasnet0_5", "timm:mobilenetv3_small_050"]


@pytest.mark.parametrize("source", NAMED)
def test_a_network_that_is_built_from_its_name(tmp_path, source):
    if ":" in source:
        pytest.importorskip(source.partition(":")[0])
    model = build(source, 7)
    decompose(model, Design(rank=1, include=("Conv2d",)))
    save(model, tmp_path / "model.safetensors")
    found = load(tmp_path / "model.safetensors")
    assert_same(found, model)
    assert found.origin == Origin(source, 7)


def test_an_attribute_that_happens_to_be_called_origin(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2))
    model.origin = nn.Parameter(torch.randn(2))
    save(model, tmp_path / "model.safetensors")
    assert read_structure(tmp_path / "model.safetensors").origin is None


def test_read_structure(saved):
    structure = read_structure(saved)
    model = compressed()
    assert [layer.names for layer in structure.layers] == [("0",), ("3",), ("6",), ("7",)]
    first, layer = structure.layers[0], model[0]
    assert (first.kind, first.shape, first.scheme, first.rank) == ("Conv2d", (7, 3, 3, 5), Scheme.SPATIAL, 2)
    assert first.nnz == layer.S.count_nonzero() and first.density == first.nnz / layer.S.numel()


# What is written is whole, or was not written.


def test_a_full_disk_leaves_the_old_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved.read_bytes())

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="could not be written .No space left") as caught:
        save(compressed(seed=1), path)
    assert caught.value.errno == errno.ENOSPC and str(path) in str(caught.value)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert path.read_bytes() == saved.read_bytes()


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(compressed(), tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="could not be written"):
        save(compressed(), tmp_path / "nowhere" / "model.safetensors")
    with pytest.raises(OSError, match="could not be written"):
        save(compressed(), tmp_path)
    (tmp_path / "a_file").touch()
    with pytest.raises(OSError, match="could not be written"):
        save(compressed(), tmp_path / "a_file" / "model.safetensors")


def test_the_file_has_the_usual_permissions_and_links_are_followed(tmp_path):
    path, link = tmp_path / "model.safetensors", tmp_path / "latest.safetensors"
    save(net(), path)
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    link.symlink_to(path)
    save(compressed(), link)
    assert link.is_symlink()
    assert_same(load(path, net()), compressed())


def test_a_state_that_is_no_tensor(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"anything": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(ValueError, match="plain tensors"):
        save(nn.Sequential(Extra(2, 2)), tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError):
        save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "plain.safetensors")
        load(tmp_path / "plain.safetensors", nn.Sequential(Extra(2, 2)))
