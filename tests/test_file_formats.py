"""The reader that docs/file_formats.md gives, in plain Python, reads what splore writes: the page says all there is."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import splore
from splore.design.eight_bits import round_weights

PAGE = Path(__file__).parents[1] / "docs/file_formats.md"


@pytest.fixture(scope="module")
def reader():
    names = {}
    exec("\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)), names)
    return names


def net():
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(72, 5)).eval()


@pytest.mark.parametrize("scheme", list(splore.Scheme))
@pytest.mark.parametrize("kept", [0.25, 0.6, 1.0])
@pytest.mark.parametrize("block, values", [(1, "float32"), (4, "float32"), (1, "int8"), (4, "int8"), (4, "float16")])
def test_a_model_file_is_read_without_a_library(reader, tmp_path, kept, scheme, block, values):
    model = net()
    splore.decompose(model, splore.Design(rank=1, scheme=scheme, block=block))
    if kept < 1:
        splore.prune(model, params=kept)
    if values == "int8":
        round_weights(model)
        model.activation_ranges = {"input": (0.0, 1.0)}
    splore.save(model, tmp_path / "model.safetensors", values="float16" if values == "float16" else None)
    text, weights = reader["read_model"](tmp_path / "model.safetensors")
    layers = splore.decomposed_layers(model)
    assert list(weights) == list(layers) and text["version"] == 3
    for name, layer in layers.items():
        assert np.allclose(weights[name], layer.matrix.detach(), atol=1e-3 if values == "float16" else 1e-6), name
    codings = {each["sparse"]["support"]["coding"] for each in text["structure"]["layers"]}
    if (block, values) == (1, "float32"):
        assert codings <= {"all", "bitmap", "gaps"} and (codings == {"all"}) == (kept == 1)


@pytest.mark.parametrize("file, version", [("model", 1), ("quantized", 2), ("together", 3)])
def test_files_of_all_versions_are_read(reader, file, version):
    path = Path(__file__).parent / "golden" / f"{file}.safetensors"
    text, weights = reader["read_model"](path)
    structure = splore.modelfile.file.read_structure(path)
    assert text["version"] == version and list(weights) == [layer.names[0] for layer in structure.layers]


def test_positions_are_read_in_each_coding(reader):
    from splore.modelfile.sparse_index import Coding, encode

    rng, seen = np.random.default_rng(0), set()
    for density in (0.001, 0.01, 0.3, 1.0):
        mask = rng.random(3001) < density
        for coding, code in (encode(mask), encode(mask, rice=True)):
            found = reader["positions"](coding.value, int(mask.sum()), code.tobytes(), mask.size)
            assert found == np.flatnonzero(mask).tolist()
            seen.add(coding)
    assert seen == set(Coding)


def test_a_program_file_is_read_without_a_library(reader, tmp_path, fast_plans):
    model = net()
    splore.decompose(model, splore.Design(rank=1))
    splore.prune(model, params=0.4)
    splore.compile(model, torch.randn(2, 3, 8, 8), threads=1).save(tmp_path / "net.splore")
    program, tensors = reader["read_program"](tmp_path / "net.splore")
    assert program["input"] == [3, 8, 8] and [op["op"] for op in program["ops"]] == ["conv", "conv", "flatten", "conv"]
    rows, values = (np.frombuffer(tensors[f"1.{part}"][2], kind) for part, kind in (("rows", "<u4"), ("values", "<f4")))
    assert rows[-1] == len(values) == (model[3].S != 0).sum()


def test_a_damaged_file_is_noticed(reader, tmp_path):
    model = net()
    splore.decompose(model, splore.Design(rank=1))
    path = tmp_path / "model.safetensors"
    splore.save(model, path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(AssertionError):
        reader["read_model"](path)
