"""What of a captured model stays in torch, and where the graph is cut into segments for it."""

import pytest
import torch
import torch.nn.functional as F
from test_capture import Call, expect_equal, lively, program_of, run
from torch import Tensor, nn

from splore.capture.export import capture
from splore.capture.torch_segment import TorchSegment
from splore.engine.program import Conv, Program

LEFT = [
    ("log softmax", lambda m, x: F.log_softmax(m.linear(x.mean((2, 3))), 1), ["Program", "TorchSegment"]),
    ("sums so far", lambda m, x: F.conv2d(x.cumsum(1), m.conv.weight.new_ones(2, 4, 3, 3)),
     ["Program", "TorchSegment", "Program"]),
    ("unknown within a residual", lambda m, x: x + torch.sin(x), ["Program", "TorchSegment"]),
    ("a maximum that does not divide", lambda m, x: F.adaptive_max_pool2d(x, 3), ["Program", "TorchSegment"]),
    ("over the batch", lambda m, x: x - x.mean(0), ["Program", "TorchSegment"]),
    ("grid of the batch", lambda m, x: x.reshape(1, -1, 8, 8).cos().view(x.shape), ["Program", "TorchSegment"]),
]  # fmt: skip


@pytest.mark.parametrize("function, kinds", [case[1:] for case in LEFT], ids=[case[0] for case in LEFT])
def test_functions_that_stay_in_torch(function, kinds):
    segments = expect_equal(lively(Call(function)), torch.randn(3, 3, 8, 8))
    assert [type(segment).__name__ for segment in segments] == kinds
    assert all(segment.reasons for segment in segments if isinstance(segment, TorchSegment))


def around(m: nn.Module, x: Tensor) -> Tensor:
    """A residual around an unknown operator, and one around another convolution behind it."""
    y = m.more(x)
    z = y + m.more(torch.sin(y))
    return m.more(z) + torch.cos(x)


def pyramid(m: nn.Module, x: Tensor) -> dict[str, object]:
    """Results at several depths, one of them in torch, one of them twice, and what is no tensor."""
    a = m.more(x)
    b = m.more(F.max_pool2d(a, 2))
    return {"deep": [b, torch.log_softmax(b.mean((2, 3)), 1)], "shallow": (a, b), "none": None, "number": 3}


STRUCTURES = [
    ("unknown within residuals", around, 3),
    ("several results", pyramid, 2),
    ("slices written", lambda m, x: m.more(torch.slice_scatter(x, m.more(x)[:, :2], 1, 0, 2)), 2),
    ("split by torch", lambda m, x: sum(m.more(part.cumsum(1)) for part in (x, x.flip(1))), 2),
    ("size of the batch", lambda m, x: m.more(x.reshape(1, -1, 8, 8).cos().view(x.shape[0], 4, 8, 8)) + x.sin(), 2),
    ("no batch", lambda m, x: m.more(x) * (x.reshape(-1, 8).cumsum(1).shape[0] / x.shape[0]) + x.sin(), 2),
]  # fmt: skip


@pytest.mark.parametrize("function, programs", [case[1:] for case in STRUCTURES], ids=[case[0] for case in STRUCTURES])
def test_an_unknown_operator_keeps_only_its_neighbours_in_torch(function, programs):
    model = Call(function)
    model.more = nn.Conv2d(4, 4, 3, padding=1)
    model, x = lively(model), torch.randn(3, 3, 8, 8)
    captured = capture(model, x)
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(run(captured, x), expected, rtol=1e-4, atol=1e-4)
    assert sum(isinstance(segment, Program) for segment in captured.segments) >= programs
    convolved = [op for segment in captured.segments if isinstance(segment, Program) for op in segment.ops]
    assert sum(isinstance(op, Conv) and op.kernel == (3, 3) for op in convolved) >= 2


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised in each call."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (variance + 1e-5).sqrt(), self.bias)


def test_what_several_results_of_constants_make_is_folded():
    program = program_of(lively(nn.Sequential(Standardised(3, 5, 3), nn.ReLU())), torch.randn(2, 3, 8, 8))
    assert len(program.ops) == 1
