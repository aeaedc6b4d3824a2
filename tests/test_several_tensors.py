"""Models of several inputs and results: as one program, with a part in torch, and in a file."""

import hashlib
import json
from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from test_capture import lively
from torch import Tensor, nn

from splore.capture.compile import compile
from splore.engine.engine import Engine
from splore.engine.flow import Packed
from splore.engine.interface import Interface, Tree
from splore.files import sealed

pytestmark = [
    pytest.mark.filterwarnings("ignore:the native library can't be loaded"),
    pytest.mark.usefixtures("untimed"),
]


class Both(nn.Module):
    """A map moved by a vector, and what is made of it."""

    def __init__(self, in_torch: bool = False) -> None:
        super().__init__()
        self.conv, self.linear, self.last = nn.Conv2d(3, 8, 3), nn.Linear(5, 8), nn.Conv2d(8, 4, 1)
        self.in_torch = in_torch

    def forward(self, x: Tensor, v: Tensor) -> dict[str, object]:
        h = torch.relu(self.conv(x) + self.linear(v)[:, :, None, None])
        h = h.cumsum(1) if self.in_torch else h
        return {"map": self.last(h), "more": (h.mean((2, 3)), [2 * v, None, 7])}


def examples(images: int) -> tuple[Tensor, Tensor]:
    return torch.randn(images, 3, 9, 7), torch.randn(images, 5)


def expect_equal(engine: Engine, model: nn.Module, images: int) -> None:
    given = examples(images)
    with torch.no_grad():
        expected = model(*given)
    torch.testing.assert_close(engine(*given), expected, rtol=1e-4, atol=1e-4)
    in_numpy = engine(*(each.numpy() for each in given))
    assert isinstance(in_numpy["map"], np.ndarray) and in_numpy["more"][1][1:] == [None, 7]


@pytest.mark.parametrize("in_torch", [False, True])
def test_several_inputs_and_results_as_the_model_has_them(in_torch, tmp_path):
    model = lively(Both(in_torch))
    engine = compile(model, examples(2), 1)
    assert engine.input == ((3, 9, 7), (5,)) and engine.output["more"] == ((8,), [(5,), None, 7])
    for images in (1, 3, 0):
        expect_equal(engine, model, images)
    x, v = torch.randn(2, 3, 12, 5), torch.randn(2, 5)
    with torch.no_grad():
        torch.testing.assert_close(engine(x, v), model(x, v), rtol=1e-4, atol=1e-4)
    if in_torch:
        with pytest.raises(ValueError, match="needs torch.*\n.*\n.*cumsum"):
            engine.save(tmp_path / "net.splore")
        return
    assert len(engine._segments) == 1
    engine.save(tmp_path / "net.splore")
    loaded = Engine.load(tmp_path / "net.splore", 1)
    assert (loaded.input, loaded.output) == (engine.input, engine.output)
    for images in (1, 3, 0):
        expect_equal(loaded, model, images)


def test_inputs_that_are_not_those_of_the_model_are_refused():
    engine = compile(lively(Both()), examples(1), 1)
    x, v = examples(2)
    for inputs, message in (
        ((x,), "expected 2 inputs, found 1"), ((x, v[:1]), "of one batch"), ((v, x), "float32 of shape"),
        ((x[..., :2], v), "takes no images of 9 x 2"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            engine(*inputs)
    with pytest.raises(ValueError, match="one batch size"):
        compile(lively(Both()), (x, v[:1]), 1)


def test_a_dense_network_that_is_faster_gives_the_same(monkeypatch):
    monkeypatch.setattr("splore.capture.onnx_segment.PACKAGES", ("no_such_package",))  # a timing would choose
    monkeypatch.setattr("splore.engine.engine.median_ms", lambda *_: (2.0, 1.0))
    model = lively(Both())
    engine = compile(model, examples(1), 1)
    assert engine.summary().startswith("Runs the dense network in torch")
    expect_equal(engine, model, 2)


def rewritten(path, text: str) -> None:
    """The program file with another text of its interface."""
    with safe_open(path, framework="numpy") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors, path, metadata | {"splore.interface": text})


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": [[3, 9, 7]]}, {"inputs": [[3, 9, 7], [-5]]}, {"inputs": 3},
        {"results": {"shapes": [[4]], "form": {"tensor": 0}}},
        {"results": {"shapes": [[4, 7, 5], [8], [5]], "form": {"tensor": 3}}},
        {"results": {"shapes": [[4, 7, 5], [8], [5]], "form": {"call": 0}}},
        {"results": {"shapes": [[4, 7, 5], [8], [5]], "form": {"value": [1]}}},
        {"any_size": {"step": 0}},
    ],
)  # fmt: skip
def test_an_interface_that_is_not_of_the_program_is_refused(change, tmp_path):
    path = tmp_path / "net.splore"
    engine = compile(lively(Both()), examples(1), 1)
    engine.save(path)
    whole = Interface(engine.input, engine._flow.structure).to_json()
    rewritten(path, sealed("interface", whole))
    Engine.load(path, 1)
    rewritten(path, sealed("interface", whole | change))
    with pytest.raises(ValueError, match="expected|no valid"):
        Engine.load(path, 1)
    text = json.loads(sealed("interface", whole))
    rewritten(path, json.dumps(text | {"interface": text["interface"].replace("map", "mop")}))
    with pytest.raises(ValueError, match="altered"):
        Engine.load(path, 1)


@pytest.mark.parametrize("depth", [400, 30_000])
def test_results_that_are_nested_deeply_are_read_or_refused(depth, tmp_path):
    path = tmp_path / "net.splore"
    engine = compile(lively(Both()), examples(1), 1)
    engine.save(path)
    inner = json.dumps(Interface(engine.input, engine._flow.structure).to_json() | {"any_size": None})
    inner = inner.replace('{"value": null}', '{"list": [' * depth + '{"value": null}' + "]}" * depth)
    text = {"interface": inner, "sha256": hashlib.sha256(inner.encode()).hexdigest()}
    rewritten(path, json.dumps(text))
    with suppress(ValueError):  # how deep Python goes differs by its version
        Engine.load(path, 1)


def test_results_in_classes_of_the_user_are_not_saved():
    class Own:
        def __init__(self, x: object) -> None:
            self.x = x

    with pytest.raises(ValueError, match="found Own"):
        Interface(results=Packed(((1,),), lambda results: Own(results[0]))).to_json()
    assert Tree((1, [{"a": None}]))([]) == (1, [{"a": None}])
