"""The model file: what is saved comes back bit for bit, and nothing else is ever loaded."""

import copy
import errno
import hashlib
import json
import os
import pickle
import random
import re

import pytest
import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from safetensors.torch import save_file
from torch import nn

from splore.deploy import file as model_file
from splore.deploy.file import ModelFileError, load, read_structure, save
from splore.design.decompose import Design, decompose
from splore.design.layers import LowRankSparseConv2d, LowRankSparseLinear, decomposed_layers
from splore.design.matrix import Scheme
from splore.zoo.build import Origin, build

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64, 1: torch.uint8}


def bits(tensor):
    """A tensor whose equality is that of the bits: -0 is not 0."""
    return tensor if tensor.dtype == torch.bool else tensor.detach().contiguous().view(INTEGERS[tensor.element_size()])


def assert_same(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert torch.equal(bits(found[name]), bits(value)), name


def net():
    return nn.Sequential(
        nn.Conv2d(3, 7, (3, 5), stride=2, padding=1), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 5, 1, bias=False),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 11), nn.Linear(11, 3, bias=False),
    )  # fmt: skip


def compressed(rank=2, sparse=True, scheme=Scheme.SPATIAL, density=0.2, seed=0):
    torch.manual_seed(seed)
    model = net()
    decompose(model, Design(rank=rank, sparse=sparse, scheme=scheme))
    for layer in decomposed_layers(model).values():
        if sparse:
            S, mask = torch.randn_like(layer.S), torch.rand(layer.S.shape) < density
            layer.set_parts(layer.A, layer.B, S * mask + 0.0, mask)
    model[1].running_mean.normal_()
    model[1].num_batches_tracked += 7
    return model


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
    assert "S.negative_zeros" not in from_safetensors((tmp_path / "layer.safetensors").read_bytes())


def test_a_pruned_layer_stores_no_mask(saved):
    names = from_safetensors(saved.read_bytes()).keys()
    assert {"0.A", "0.B", "0.bias", "0.S.values", "0.S.support", "1.running_var"} <= names
    assert not any(name.endswith(("S.mask", "S.negative_zeros", "mask", ".S")) for name in names)


def test_a_dense_network(tmp_path):
    model = net()
    save(model, tmp_path / "dense.safetensors")
    assert_same(load(tmp_path / "dense.safetensors", net()), model)


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
    names = from_safetensors((tmp_path / "tied.safetensors").read_bytes())
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


@pytest.mark.parametrize("source", ["resnet20", "torchvision:squeezenet1_1", "timm:mobilenetv3_small_050"])
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


def test_the_bytes_of_version_1(tmp_path):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    decompose(model, Design(rank=1, scheme=Scheme.SPATIAL, exclude=("3",)))
    with torch.no_grad():
        for i, (name, value) in enumerate(model.state_dict().items()):
            if name == "0.mask":
                value.copy_((torch.arange(72).view(12, 6) % 7 == 0) | (torch.arange(72).view(12, 6) == 40))
            elif name == "0.S":
                value.copy_(
                    torch.where(torch.arange(72) % 7 == 0, torch.arange(72.0) - 30, torch.zeros(())).view(12, 6)
                )
            else:
                value.copy_((torch.arange(value.numel()) + i).view(value.shape))
    save(model, tmp_path / "golden.safetensors", Origin("resnet20", 3))
    found = hashlib.sha256((tmp_path / "golden.safetensors").read_bytes()).hexdigest()
    assert found == "d4a48540c1c41da16aa17f0c9c9cb55165d41ddf0186be2b948bc840f3041f2f"


# What must not be loaded.


def refused(path, model=None):
    with pytest.raises(ModelFileError) as caught:
        load(path, net() if model is None else model)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def signed(text, tensors):
    """A file with a right digest whatever it says."""
    data = to_safetensors(tensors, {"splore": json.dumps(text | {"sha256": "0" * 64}, separators=(",", ":"))})
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


def parts(path):
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["splore"]), from_safetensors(data)


def test_truncated(saved, tmp_path):
    data, path = saved.read_bytes(), tmp_path / "cut.safetensors"
    for i in range(50):
        path.write_bytes(data[: len(data) * i // 50])
        refused(path)
    path.write_bytes(data[:-1])
    refused(path)
    path.write_bytes(data + b"\0")
    refused(path)


def test_altered(saved, tmp_path):
    data, path = saved.read_bytes(), tmp_path / "altered.safetensors"
    draw = random.Random(0)
    model = net()
    before = copy.deepcopy(model.state_dict())
    header = 8 + int.from_bytes(data[:8], "little")
    places = [
        *range(16),
        *(draw.randrange(header) for _ in range(300)),
        *(draw.randrange(len(data)) for _ in range(300)),
    ]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= draw.choice([1, 2, 4, 8, 16, 32, 64, 128, draw.randrange(1, 256)])
        path.write_bytes(changed)
        refused(path, model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_foreign(tmp_path):
    path = tmp_path / "foreign.safetensors"
    assert "found nothing" in refused(tmp_path / "missing.safetensors")
    assert "not a file" in refused(tmp_path)
    path.write_bytes(b"")
    refused(path)
    path.write_bytes(pickle.dumps({"weight": [1.0] * 100}))
    refused(path)
    torch.save(net().state_dict(), path)
    refused(path)
    save_file(net().state_dict(), path)
    assert "without its description" in refused(path)
    save_file(net().state_dict(), path, {"format": "pt", "splore": "{"})
    assert "without its description" in refused(path)
    save_file(net().state_dict(), path, {"splore": "[" * 100_000})
    refused(path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in refused(tmp_path / "pipe")


def test_newer_version(saved, tmp_path):
    text, tensors = parts(saved)
    path = tmp_path / "newer.safetensors"
    path.write_bytes(signed(text | {"version": 2}, tensors))
    assert "newer splore" in refused(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.insert(0, nn.Conv2d(3, 3, 1)), "at '0"),
        (lambda m: m.__setitem__(0, nn.Conv2d(3, 7, 3, bias=True)), r"0\.weight.*\(7, 3, 3, 5\).*\(7, 3, 3, 3\)"),
        (lambda m: m.__setitem__(0, nn.Conv2d(3, 7, (3, 5), bias=False)), r"'0\.bias'"),
        (lambda m: m.__setitem__(6, nn.Identity()), "a Linear, the model Identity"),
        (lambda m: m.__delitem__(7), "'7' it has a Linear, the model nothing"),
        (lambda m: m.append(nn.Linear(3, 3)), r"'8\.bias' it has nothing"),
        (lambda m: m.__setitem__(1, nn.BatchNorm2d(7, affine=False)), r"'1\.bias'"),
        (lambda m: m.to("meta"), "on the CPU"),
        (lambda m: decompose(m, Design(rank=1)), "decomposed already"),
    ],
)
def test_another_network(saved, change, message):
    model = net()
    change(model)
    before = str(model)
    assert re.search(message, refused(saved, model))
    assert str(model) == before


def test_a_network_that_the_file_may_not_choose(saved, tmp_path):
    model = compressed()
    path = tmp_path / "model.safetensors"
    with pytest.raises(ModelFileError, match="as `model`"):
        load(saved)
    for source, message in [("os:system", "may not choose"), ("resnet21", "resnet20"), ("resnet20", "another network")]:
        save(model, path, Origin(source, 10))
        with pytest.raises(ModelFileError, match=message):
            load(path)
    save(model, path, Origin("resnet20", 10**15))
    with pytest.raises(ModelFileError):
        load(path)


SPARSE = {"support": {"coding": "gaps", "count": 0}, "mask": None, "negative_zeros": {"coding": "gaps", "count": 0}}


@pytest.mark.parametrize(
    "change",
    [
        {"names": []},
        {"names": ["0", "3"]},
        {"names": "0"},
        {"names": [0]},
        {"kind": "Linear"},
        {"kind": "os.system"},
        {"shape": [7, 3, 3]},
        {"shape": [7, 3, 3, -5]},
        {"shape": [7, 3, 3, True]},
        {"shape": [10**9, 3, 3, 10**9]},
        {"scheme": "channel"},
        {"scheme": "diagonal"},
        {"rank": 3},
        {"rank": 10**9},
        {"rank": 2.0},
        {"sparse": None},
        {"sparse": SPARSE},
        {"sparse": SPARSE | {"support": {"coding": "all", "count": 315}}},
        {"sparse": SPARSE | {"support": {"coding": "bitmap", "count": 10**12}}},
        {"sparse": SPARSE | {"mask": {"coding": "all", "count": 315}}},
        {"sparse": SPARSE | {"negative_zeros": {"coding": "all", "count": 315}}},
        {"sparse": {"support": SPARSE["support"]}},
        {"sparse": []},
    ],
)
def test_a_file_that_lies_under_a_right_digest(saved, tmp_path, change):
    text, tensors = parts(saved)
    text["structure"]["layers"][0] |= change
    path = tmp_path / "lies.safetensors"
    path.write_bytes(signed(text, tensors))
    model = net()
    before = str(model)
    refused(path, model)
    assert str(model) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda t, x: t.pop("structure"),
        lambda t, x: t.__setitem__("structure", None),
        lambda t, x: t.__setitem__("structure", []),
        lambda t, x: t["structure"].__setitem__("layers", {}),
        lambda t, x: t["structure"].__setitem__("origin", "resnet20"),
        lambda t, x: t["structure"].__setitem__("ties", {"1.weight": "nowhere"}),
        lambda t, x: t["structure"].__setitem__("ties", {"9.weight": "1.weight"}),
        lambda t, x: x.pop("0.A"),
        lambda t, x: x.pop("0.S.values"),
        lambda t, x: x.pop("0.S.support"),
        lambda t, x: x.pop("1.running_var"),
        lambda t, x: x.__setitem__("0.S.values", x["0.S.values"][:-1].clone()),
        lambda t, x: x.__setitem__("0.S.values", x["0.S.values"].double()),
        lambda t, x: x.__setitem__("0.S.support", x["0.S.support"].int()),
        lambda t, x: x.__setitem__("0.S.support", x["0.S.support"].view(1, -1)),
        lambda t, x: x.__setitem__("0.S.support", x["0.S.support"] | 1),
        lambda t, x: x.__setitem__("0.A", x["0.A"].int()),
        lambda t, x: x.__setitem__("1.num_batches_tracked", torch.zeros(())),
        lambda t, x: x.__setitem__("new", torch.zeros(3)),
    ],
)
def test_tensors_that_are_not_as_described(saved, tmp_path, change):
    text, tensors = parts(saved)
    change(text, tensors)
    path = tmp_path / "lies.safetensors"
    path.write_bytes(signed(text, tensors))
    refused(path)


def test_the_signing_of_these_tests_is_right(saved, tmp_path):
    path = tmp_path / "resigned.safetensors"
    path.write_bytes(signed(*parts(saved)))
    assert path.read_bytes() == saved.read_bytes()


# What is written is whole, or was not written.


def test_a_full_disk_leaves_the_old_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved.read_bytes())

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(model_file.os, "fsync", full)
    with pytest.raises(OSError, match="could not be written .No space left") as caught:
        save(compressed(seed=1), path)
    assert caught.value.errno == errno.ENOSPC and str(path) in str(caught.value)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert path.read_bytes() == saved.read_bytes()


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(model_file.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
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
