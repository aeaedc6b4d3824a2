"""Files that each version of the formats wrote: they load, compute what they did, and are written again alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
from files import as_stored, assert_same, bits, parts
from safetensors import safe_open
from torch import nn

from splore.design.layers import decomposed_layers
from splore.engine.engine import Engine
from splore.modelfile.file import load, save

GOLDEN = Path(__file__).parent / "golden"
X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
Y = torch.tensor(
    [
        [-0.06102145090699196, 0.057793065905570984, 0.18331632018089294, 0.1739719808101654],
        [-0.059838179498910904, 0.05652673542499542, 0.19211167097091675, 0.17378786206245422],
    ]
)

Y_INT8 = np.array(
    [
        [-0.0596998929977417, 0.057492174208164215, 0.1851198673248291, 0.17364540696144104],
        [-0.059447724372148514, 0.05638323724269867, 0.19178858399391174, 0.17346981167793274],
    ],
    np.float32,
)


def net():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, (1, 3), stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


def test_a_model_file_loads_and_is_written_again_alike(tmp_path):
    model = load(GOLDEN / "model.safetensors", net())
    with torch.no_grad():
        torch.testing.assert_close(model(X), Y)
    assert_written_again_alike(model, as_stored(GOLDEN / "model.safetensors"), tmp_path)


def test_a_file_in_eight_bits_and_blocks_loads_and_is_written_again_alike(tmp_path):
    model = load(GOLDEN / "quantized.safetensors", net())
    with torch.no_grad():
        torch.testing.assert_close(model(X), Y, rtol=0, atol=0.02)
    assert model.activation_ranges["input"] == (-1.0, 1.0)
    assert {layer.blocks.size for layer in decomposed_layers(model).values()} == {3, 4}
    assert_written_again_alike(model, as_stored(GOLDEN / "quantized.safetensors"), tmp_path)


def test_a_file_of_small_tensors_put_together_loads_and_is_written_again_alike(tmp_path):
    model = load(GOLDEN / "together.safetensors", net())
    assert_same(model, load(GOLDEN / "quantized.safetensors", net()))
    assert_written_again_alike(model, parts(GOLDEN / "together.safetensors"), tmp_path)


def assert_written_again_alike(model, expected, folder):
    save(model, folder / "again.safetensors")
    (text, tensors), (expected_text, expected_tensors) = parts(folder / "again.safetensors"), expected
    assert text["structure"] == expected_text["structure"] and text["version"] == 3
    assert tensors.keys() == expected_tensors.keys()
    for name, tensor in expected_tensors.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(bits(tensors[name]), bits(tensor)), name


@pytest.mark.filterwarnings("ignore:the native library can't be loaded")
def test_a_program_file_loads_and_the_same_is_written_again(tmp_path):
    engine = Engine.load(GOLDEN / "program.safetensors", threads=1)
    np.testing.assert_allclose(engine(X.numpy()), Y.numpy(), rtol=1e-4, atol=1e-5)
    engine.save(tmp_path / "again.safetensors")
    # The order of the two texts of the metadata is left open by safetensors: compare them apart.
    assert contents(tmp_path / "again.safetensors") == contents(GOLDEN / "program.safetensors")


@pytest.mark.filterwarnings("ignore:the native library can't be loaded")
def test_a_program_in_eight_bits_gives_what_it_gave_to_the_bit_and_is_written_again(tmp_path):
    engine = Engine.load(GOLDEN / "program_int8.safetensors", threads=1)
    np.testing.assert_array_equal(engine(X.numpy()), Y_INT8)
    engine.save(tmp_path / "again.safetensors")
    assert contents(tmp_path / "again.safetensors") == contents(GOLDEN / "program_int8.safetensors")


def contents(path):
    with safe_open(path, "np") as file:
        return file.metadata(), {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
