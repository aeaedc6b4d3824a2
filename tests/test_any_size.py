"""Engines for images of any height and width: captured anew for each, or one program with rules for all."""

import json
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_capture import Call, lively
from torch import Tensor, nn

from splore.capture.compile import compile
from splore.engine.any_size import AnySize, Count
from splore.engine.engine import Engine
from splore.files import sealed

pytestmark = [
    pytest.mark.filterwarnings("ignore:the native library can't be loaded"),
    pytest.mark.usefixtures("untimed"),
]


class Segmenter(nn.Module):
    """Each operation whose attributes follow the size: strides, pools, enlargements, shuffles, gates."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.gate, self.up = nn.Conv2d(16, 16, 1), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.first(x))
        y = F.max_pool2d(F.relu(self.down(x)), 3, 2, 1)
        y = y * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(y, 1)))
        y = self.up(F.interpolate(y, scale_factor=2, mode="bilinear"))
        return {"out": F.pixel_shuffle(self.last(y), 2)}


def expect_equal(engine: Engine, model: nn.Module, *sizes: tuple[int, int]) -> None:
    for size in sizes:
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(engine(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_file_of_any_size_runs_each_as_the_model_does(tmp_path):
    model = lively(Segmenter())
    engine = compile(model, torch.randn(1, 3, 16, 24), 1, any_size=True)
    engine.save(tmp_path / "net.splore")
    loaded = Engine.load(tmp_path / "net.splore", 1)
    for each in (engine, loaded):
        expect_equal(each, model, (16, 24), (32, 24), (40, 56), (23, 17))
    with pytest.raises(ValueError, match=r"\(N, 3, 16, 24\)"):
        loaded(torch.randn(1, 4, 16, 24))


def test_sizes_that_differ_by_less_than_a_step_are_refused():
    def halves(m: nn.Module, x: Tensor) -> Tensor:
        return x + F.interpolate(m.shrink(x), scale_factor=2)  # fits even sizes only

    model = Call(halves)
    model.shrink = nn.Conv2d(4, 4, 3, stride=2, padding=1)
    model = lively(model)
    engine = compile(model, torch.randn(1, 3, 16, 16), 1, any_size=True)
    expect_equal(engine, model, (16, 16), (24, 48))
    with pytest.raises(ValueError, match="multiples of 8"):
        engine(torch.randn(1, 3, 17, 16))


REFUSED = [
    ("positions", lambda m, x: x + m.positions[:, :, : x.shape[2], : x.shape[3]], "depends on the size"),
    ("a sum", lambda m, x: x.sum((2, 3)), "depends on the size"),
    ("padded to a multiple", lambda m, x: F.avg_pool2d(F.pad(x, (0, -x.shape[3] % 7, 0, -x.shape[2] % 7)), 7), "size"),
    ("one size alone", lambda m, x: m.wide(x.flatten(1)), "can't follow"),
    ("in torch", lambda m, x: x.cumsum(1), "needs torch"),
]  # fmt: skip


@pytest.mark.parametrize("function, message", [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_depends_on_the_size_otherwise_is_refused(function, message):
    model = Call(function)
    model.positions, model.wide = nn.Parameter(torch.randn(1, 4, 200, 200)), nn.Linear(1024, 5)
    with pytest.raises(ValueError, match=message):
        compile(lively(model), torch.randn(1, 3, 16, 16), 1, any_size=True)


def test_an_engine_captures_the_model_anew_for_another_size_and_keeps_the_last_few(monkeypatch):
    monkeypatch.setattr("splore.engine.sizes.MOST", 2)
    model = lively(Segmenter())
    engine = compile(model, torch.randn(1, 3, 16, 16), 1)
    expect_equal(engine, model, (16, 16), (32, 16), (24, 24), (32, 16), (40, 16))
    assert list(engine._sizes._engines) == [((3, 32, 16),), ((3, 40, 16),)]
    first = engine._sizes._engines[(3, 32, 16),]
    engine(torch.randn(1, 3, 32, 16))
    assert engine._sizes._engines[(3, 32, 16),] is first
    model.first.weight.data.zero_()  # the engine is a snapshot, for other sizes too
    assert engine(torch.ones(1, 3, 48, 16))["out"].abs().max() > 0


def test_a_known_size_does_not_wait_while_another_is_planned():
    model = lively(Segmenter())
    engine = compile(model, torch.randn(1, 3, 16, 16), 1)
    expect_equal(engine, model, (32, 16))
    plan, begun, go_on = engine._sizes._make, threading.Event(), threading.Event()

    def slowly(inputs):
        begun.set()
        assert go_on.wait(60)
        return plan(inputs)

    engine._sizes._make = slowly
    other = threading.Thread(target=engine, args=(torch.randn(1, 3, 40, 16),))
    other.start()
    assert begun.wait(60)
    expect_equal(engine, model, (16, 16), (32, 16))
    assert other.is_alive()
    go_on.set()
    other.join()
    assert list(engine._sizes._engines) == [((3, 32, 16),), ((3, 40, 16),)]


def test_a_size_that_the_model_refuses_is_an_error_that_says_so():
    model = Call(lambda m, x: m.wide(x.flatten(1)))
    model.wide = nn.Linear(256, 5)
    engine = compile(lively(model), torch.randn(1, 3, 8, 8), 1)
    with pytest.raises(ValueError, match="takes no images of 9 x 8"):
        engine(np.zeros((1, 3, 9, 8), np.float32))


def test_rules_survive_their_text():
    model = lively(Segmenter())
    rules = compile(model, torch.randn(1, 3, 16, 24), 1, any_size=True)._any_size
    assert AnySize.from_json(json.loads(json.dumps(rules.to_json()))) == rules
    assert {"whole", "order", "enlarge"} == {rule[1] for rule in rules.to_json()["rules"]}


@pytest.mark.parametrize(
    "rules",
    [
        [], {"step": 0, "rules": []}, {"step": 1}, {"step": 1, "rules": [[0]]}, {"step": 1, "rules": [[0, "none"]]},
        {"step": 1, "rules": [[0, "order", [1, 2, 3, 4, 0]]]}, {"step": 1, "rules": [[0, "order", [1, 2]]]},
        {"step": 1, "rules": [["0", "whole"]]}, {"step": 1, "rules": [[0, "enlarge", ["near", "far"], [], False]]},
    ],
)  # fmt: skip
def test_a_text_that_holds_no_rules_is_refused(rules):
    with pytest.raises(ValueError, match="expected|nested"):
        AnySize.from_json(rules)


def test_rules_that_ask_for_too_much_are_refused(tmp_path):
    engine = compile(lively(Segmenter()), torch.randn(1, 3, 16, 24), 1, any_size=True)
    program, found = engine._segments[0].program, engine._any_size.to_json()
    for rule in found["rules"]:
        if rule[1] == "enlarge":
            rule[3] = [[0, 1 << 25, 0, 0, 1]] * 2
    engine._any_size = AnySize.from_json(found)
    assert program.input == (3, 16, 24)
    with pytest.raises(ValueError, match="takes no images"):
        engine(torch.randn(1, 3, 32, 24))


def test_a_count_divides_or_is_refused():
    assert Count(rows=2, constant=1).of((3, 5, 7)) == 11
    assert Count(pixels=1, divisor=5).of((3, 5, 7)) == 7
    with pytest.raises(ValueError, match="does not divide"):
        Count(rows=1, divisor=2).of((3, 5, 7))


def test_what_was_sealed_and_altered_is_refused(tmp_path):
    text = json.loads(sealed("interface", {"inputs": []}))
    assert text["interface"] == '{"inputs": []}' and len(text["sha256"]) == 64
