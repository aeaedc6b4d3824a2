"""Parts of a model that the engine has no operators for, in ONNX Runtime."""

import os
import pickle

import pytest
import torch
from torch import nn

import splore
from splore.capture.export import capture
from splore.capture.onnx_segment import OnnxSegment, exported
from splore.capture.torch_segment import TorchSegment
from splore.engine.engine import Engine

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Unknown(nn.Module):
    """Two convolutions, and between them operators that the engine does not have, one of them over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.second(torch.cumsum(torch.cos(y), 1) - y.mean(0)) + torch.cos(y[:, :4, 1:-1, 1:-1])


def model_and_parts(batch: int) -> tuple[nn.Module, list, Engine]:
    torch.manual_seed(0)
    model, x = Unknown().eval(), torch.randn(batch, 3, 12, 12)
    captured = capture(model, [x])
    engine = Engine(captured.segments, captured.input, captured.output, 2, captured.flow)
    read: list[tuple] = []
    engine._run([x.numpy()], look=lambda segment, values: read.append((segment, values)))
    return model, read, engine


def replaced(engine: Engine, read: list) -> list[OnnxSegment]:
    """ONNX Runtime in all parts in torch, whatever is faster."""
    made = []
    for segment, values in read:
        graph = exported(segment.graph, segment.batched, [torch.from_numpy(value) for value in values])
        made.append(OnnxSegment(segment, graph, 2))
        engine._segments[engine._segments.index(segment)] = made[-1]
    return made


@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_gives_what_the_model_gives(batch):
    model, read, engine = model_and_parts(batch)
    assert replaced(engine, read)
    again = pickle.loads(pickle.dumps(engine))
    for size in (1, 2, 5):
        x = torch.randn(size, 3, 12, 12)
        expected = model(x).detach()
        torch.testing.assert_close(engine(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again(x), expected, rtol=1e-4, atol=1e-5)


def test_a_forked_child_gives_it_too():
    model, read, engine = model_and_parts(2)
    replaced(engine, read)
    x = torch.randn(2, 3, 12, 12)
    expected = engine(x)
    child = os.fork()
    if not child:
        os._exit(0 if torch.allclose(engine(x), expected, atol=1e-5) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_faster_one_runs_and_the_plan_says_which(monkeypatch):
    model, read, engine = model_and_parts(2)
    ms = {"torch": 5.0, "ONNX Runtime": 4.0}
    monkeypatch.setattr("splore.capture.onnx_segment._ms", lambda segment, values: ms[segment.runtime])
    (segment, values) = read[0]
    values = [torch.from_numpy(value) for value in values]
    chosen = segment.faster(2, *values)
    assert isinstance(chosen, OnnxSegment)
    engine._segments[engine._segments.index(segment)] = chosen
    assert "In ONNX Runtime, 4 ms, for 5 ms in torch" in engine.summary()
    ms["ONNX Runtime"] = 6.0
    assert segment.faster(2, *values) is segment
    monkeypatch.setattr("splore.capture.onnx_segment.PACKAGES", ("no_such_package",))
    ms["ONNX Runtime"] = 4.0
    assert segment.faster(2, *values) is segment


def test_the_dense_network_runs_there_where_that_is_fastest(monkeypatch):
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), torch.randn(2, 3, 12, 12)
    ms = {"torch": 5.0, "ONNX Runtime": 4.0}
    monkeypatch.setattr("splore.capture.onnx_segment._ms", lambda segment, values: ms[segment.runtime])
    monkeypatch.setattr("splore.engine.engine.median_ms", lambda *_: (6.0, 4.0))
    engine = splore.compile(model, x)
    assert engine.summary().startswith("Runs the dense network in ONNX Runtime, 4 ms")
    torch.testing.assert_close(engine(x[:1]), model(x[:1]).detach(), rtol=1e-4, atol=1e-5)


def test_a_part_that_can_not_be_exported_stays_in_torch(monkeypatch):
    class Solved(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.lstsq(x, x).solution

    ms = {"torch": 5.0, "ONNX Runtime": 1.0}
    monkeypatch.setattr("splore.capture.onnx_segment._ms", lambda segment, values: ms[segment.runtime])
    assert isinstance(TorchSegment.whole(nn.Linear(3, 3), 1).faster(2, torch.randn(2, 3)), OnnxSegment)
    segment = TorchSegment.whole(Solved(), 1)
    assert segment.faster(2, torch.eye(3)[None].repeat(2, 1, 1)) is segment
