"""The model file: what must not be loaded is refused in one line."""

import copy
import os
import pickle
import random
import re

import pytest
import torch
from files import compressed, net, parts, refused, signed
from safetensors.torch import save_file
from torch import nn

from splore.design.decompose import Design, decompose
from splore.modelfile.file import ModelFileError, load, save
from splore.vision import Origin, build


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    save(compressed(), path)
    return path


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
    path.write_bytes(signed(text | {"version": 4}, tensors))
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


def test_a_network_beyond_the_limit_is_not_built(tmp_path):
    path = tmp_path / "model.safetensors"
    save(build("digits_cnn", 10, 1), path)
    load(path)
    with pytest.raises(ModelFileError, match="expected a network that takes at most 0 MiB"):
        load(path, dense_bytes=1000)


def test_messages_do_not_repeat_the_file(saved, tmp_path):
    text, tensors = parts(saved)
    path = tmp_path / "long.safetensors"
    for change in ({"kind": "x" * 10**6}, {"names": ["x" * 10**6]}, {"scheme": "x" * 10**6}):
        edited = copy.deepcopy(text)
        edited["structure"]["layers"][0] |= change
        path.write_bytes(signed(edited, tensors))
        refused(path)
