"""What a network is for goes with its files, and an image becomes the input that the training's data set would make."""

import json

import numpy as np
import pytest
import torch
from images import CPU, write_images
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes
from torch import nn

import splore
from splore.engine.engine import Engine
from splore.engine.interface import load_task
from splore.task import Preprocessing, Task
from splore.vision import open_data

RGB = Preprocessing((6, 8), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
TASK = Task(("ant", "bee", 'a "quoted" ünïcode'), RGB)


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


@pytest.mark.parametrize("task", [TASK, Task(), Task(("one",)), Task((), Preprocessing((9, 9), (0.0,), (0.1,), 11))])
def test_a_task_survives_json(task):
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


@pytest.mark.parametrize("task", [TASK, Task(), None])
@pytest.mark.filterwarnings("ignore:the native library can't be loaded")
def test_a_task_goes_from_a_model_file_into_a_program_file(task, tmp_path, fast_plans):
    splore.save(net(), tmp_path / "model.safetensors", task=task)
    model = splore.load(tmp_path / "model.safetensors", net())
    assert getattr(model, "task", None) == task
    splore.save(model, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    splore.compile(model, torch.zeros(1, 3, 6, 8)).save(tmp_path / "net.splore")
    assert Engine.load(tmp_path / "net.splore").task == task


def test_an_altered_task_of_a_program_file_is_refused(tmp_path, fast_plans):
    model = net()
    model.task = TASK
    splore.compile(model, torch.zeros(1, 3, 6, 8)).save(tmp_path / "net.splore")
    data = (tmp_path / "net.splore").read_bytes()
    with safe_open(tmp_path / "net.splore", "np") as file:
        texts = file.metadata()
    for old, new in (("ant", "asp"), ("0.1", "0.2"), ('"task"', '"tusk"')):
        altered = texts | {"splore.task": texts["splore.task"].replace(old, new)}
        assert altered != texts
        (tmp_path / "altered.splore").write_bytes(to_bytes(from_bytes(data), altered))
        with pytest.raises(ValueError, match="task"):
            load_task(tmp_path / "altered.splore")
        with pytest.raises(ValueError, match="task"):
            Engine.load(tmp_path / "altered.splore")


@pytest.mark.parametrize(
    "wrong",
    [
        [], {}, {"classes": ["a"]}, {"classes": [1], "preprocessing": None}, {"classes": [], "preprocessing": {}},
        {"classes": [], "preprocessing": TASK.to_json()["preprocessing"] | {"size": [0, 4]}},
        {"classes": [], "preprocessing": TASK.to_json()["preprocessing"] | {"size": [4]}},
        {"classes": [], "preprocessing": TASK.to_json()["preprocessing"] | {"size": [6, 8], "mean": ["x", 1, 1]}},
        {"classes": [], "preprocessing": TASK.to_json()["preprocessing"] | {"size": [6, 8], "deviation": [0, 1, 1]}},
        {"classes": [], "preprocessing": TASK.to_json()["preprocessing"] | {"size": [6, 8], "mean": [0, 1]}},
        {"classes": [], "preprocessing": TASK.to_json()["preprocessing"] | {"size": [6, 8], "shorter_side": 7}},
    ],
)  # fmt: skip
def test_what_is_no_task_is_refused(wrong):
    with pytest.raises(ValueError):
        Task.from_json(json.loads(json.dumps(wrong)))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_small_images_become_what_the_data_set_made_of_them(mode, tmp_path):
    write_images(tmp_path, (8, 10), mode=mode)
    data = open_data("folder", str(tmp_path), 2, 0, CPU, workers=0)
    assert data.task.classes == ("ant", "bee")
    check_like_the_data_set(data, tmp_path, atol=1e-5)


@pytest.mark.parametrize("shape", [(260, 300), (500, 270), (120, 240), (256, 256)])
def test_large_images_become_what_the_data_set_made_of_them(shape, tmp_path):
    write_images(tmp_path, shape, counts={"train": 1, "test": 1})
    data = open_data("imagenet", str(tmp_path), 2, 0, CPU, workers=0)
    check_like_the_data_set(data, tmp_path, atol=1.01 / 255 / 0.224)  # resizing rounds to one of the 256 values


def check_like_the_data_set(data, root, atol):
    assert data.preprocessing.shape == data.image_shape
    expected = torch.cat([x for x, _ in data.test.epoch(0)]).numpy()
    paths = sorted(root.glob("test/*/*.png"))
    assert len(paths) == len(expected)
    for path, each in zip(paths, expected, strict=True):
        with Image.open(path) as image:
            np.testing.assert_allclose(data.preprocessing(image), each, atol=atol)
            np.testing.assert_allclose(data.preprocessing(np.array(image)), each, atol=atol)


def test_the_digits_become_what_the_data_set_made_of_them():
    data = open_data("digits", None, 450, 0, CPU)
    (x, _), *_ = data.test.epoch(0)
    pixels = (x[7, 0] * 16).round().byte().numpy()
    np.testing.assert_allclose(data.preprocessing(pixels), x[7], atol=1e-6)


@pytest.mark.parametrize("image", [np.zeros((6, 8, 4), np.uint8), np.zeros((6, 8, 3)), np.zeros((5, 8, 3), np.uint8)])
def test_an_image_of_another_kind_is_refused(image):
    with pytest.raises(ValueError, match="expected"):
        RGB(image)
