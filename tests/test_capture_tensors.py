"""Tensors of any dimensions run whole in the engine: functions, blocks and nets, beside PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from test_capture import Call, decomposed, lively, program_of
from torch import Tensor, nn

from splore.capture.export import capture
from splore.engine.engine import Engine
from splore.engine.program import Conv, Program


def tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H W, C)."""
    return x.flatten(2).transpose(1, 2)


def heads(x: Tensor) -> Tensor:
    """(N, T, C) -> (N, 2, T, C / 2)."""
    return x.unflatten(2, (2, -1)).transpose(1, 2)


def windows(x: Tensor) -> Tensor:
    """(N, C, 8, 8) -> (4 N, 16, C)."""
    return x.view(-1, 4, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 4)


FUNCTIONS = {
    "linear over tokens": lambda m, x: m.linear(tokens(x)),
    "layer norm": lambda m, x: F.layer_norm(tokens(x), (4,), m.mean.flatten(), eps=1e-3),
    "layer norm of all": lambda m, x: F.layer_norm(x, x.shape[1:]),
    "group norm": lambda m, x: F.group_norm(x, 2, m.mean.flatten()),
    "softmax": lambda m, x: F.softmax(m.linear(x.mean((2, 3))), 1),
    "softmax over pixels": lambda m, x: x.flatten(2).softmax(-1),
    "reflected": lambda m, x: F.conv2d(F.pad(x, (1, 2, 1, 1), "reflect"), m.conv.weight.new_ones(2, 4, 3, 3)),
    "from the other side": lambda m, x: F.pad(x, (0, 2, 3, 0), "circular"),
    "cropped": lambda m, x: F.pad(x, (-1, 2, 0, -3)),
    "channels shuffled": lambda m, x: m.linear(x.view(-1, 2, 2, 8, 8).transpose(1, 2).reshape(x.shape).mean((2, 3))),
    "pixels shuffled": lambda m, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2).tanh(), 4),
    "mean that does not divide": lambda m, x: F.adaptive_avg_pool2d(x, (3, 5)),
    "gelu by tanh": lambda m, x: F.gelu(x, approximate="tanh"),
    "leaky": lambda m, x: F.elu(F.leaky_relu(x, 0.2)),
    "slopes": lambda m, x: F.prelu(x, m.mean.flatten()),
    "limits": lambda m, x: x.clamp(-0.25, 0.5).clamp_max(0.3) + x.clamp_min(-1),
    "powers": lambda m, x: (x**2 + 1).sqrt() * (x**2 + 1).rsqrt() + x.abs().exp(),
    "quotients": lambda m, x: x / (x.abs() + 1) + 2 / (1 + x.abs()) - x.flatten(2).norm(dim=2)[:, :, None, None],
    "of every pair": lambda m, x: x.mean((2, 3))[:, :, None] * x.amax((2, 3))[:, None] - x.mean((2, 3))[:, :1, None],
    "sums": lambda m, x: x.sum((1, 3)) + x.mean(1).amax(2),
    "positions": lambda m, x: tokens(x) + torch.arange(256.0).view(1, 64, 4) / 256,
    "joined tokens": lambda m, x: torch.cat([m.mean.view(1, 1, 4).expand(x.shape[0], -1, -1), tokens(x)], 1)[:, :9],
    "stacked": lambda m, x: torch.stack([x, x.tanh()], 2).unbind(1)[2],
    "split": lambda m, x: torch.cat(m.linear(tokens(x)).split([2, 3], -1)[::-1], -1),
    "rolled": lambda m, x: x.permute(0, 2, 3, 1).roll((2, -3), (1, 2)),
    "flipped": lambda m, x: x.flip(3),
    "windows": lambda m, x: windows(x).softmax(1).view(-1, 64, 4),
    "product": lambda m, x: tokens(x) @ x.flatten(2),
    "product of constants": lambda m, x: tokens(x) @ m.linear.weight.t(),
    "sum over letters": lambda m, x: torch.einsum("nchw,ncvw->nhvc", x, x.tanh()),
    "attention": lambda m, x: F.scaled_dot_product_attention(*[heads(tokens(y)) for y in (x, x.tanh(), -x)]),
    "attention to the past": lambda m, x: F.scaled_dot_product_attention(*[heads(tokens(x))] * 3, is_causal=True),
    "nearest": lambda m, x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda m, x: F.interpolate(x, (13, 5), mode="bilinear"),
    "bilinear to the corners": lambda m, x: F.interpolate(x, (13, 5), mode="bilinear", align_corners=True),
    "bicubic": lambda m, x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    "line": lambda m, x: F.max_pool1d(F.conv1d(x.flatten(2), m.conv.weight[:, :, 0].new_ones(5, 4, 3), stride=2), 3),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_that_run_whole(name):
    program_of(lively(Call(FUNCTIONS[name])), torch.randn(3, 3, 8, 8))


@pytest.mark.parametrize("kernel, stride, padding, extra", [(2, 2, 0, 0), (3, 2, 1, 1), (4, 3, 1, 0), (3, 1, 1, 0)])
def test_transposed_convolutions(kernel, stride, padding, extra):
    layers = nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 4, (kernel, 3), stride, padding, extra), nn.ReLU()
    program_of(lively(nn.Sequential(*layers)), torch.randn(2, 3, 7, 6))
    line = nn.Sequential(nn.Conv1d(3, 6, 3, padding="same"), nn.ConvTranspose1d(6, 4, kernel, stride, padding, extra))
    program_of(lively(line), torch.randn(2, 3, 17))


def test_a_decomposed_transformer_keeps_its_parts_and_its_file_runs(tmp_path):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu", norm_first=True)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)
    )
    model, x = decomposed(lively(model), 2, 0.1), torch.randn(3, 10, 8)
    program = program_of(model, x)
    assert any(isinstance(op, Conv) and op.weight.A is not None for op in program.ops)
    captured = capture(model, x)
    engine = Engine(captured.segments, captured.input, captured.output, 1)
    engine.save(tmp_path / "net.splore")
    loaded = Engine.load(tmp_path / "net.splore")
    assert loaded.input == (10, 8) and loaded.output == (10, 3)
    torch.testing.assert_close(loaded(x), engine(x))


@pytest.mark.parametrize("name", ["convnext_tiny", "shufflenet_v2_x0_5", "vit", "swin"])
def test_nets_of_torchvision_run_whole(name):
    from torchvision import models

    torch.manual_seed(0)
    if name == "vit":
        model: nn.Module = models.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=5)
        nn.init.normal_(model.heads[0].weight)
    elif name == "swin":
        model = models.swin_transformer.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5)
    else:
        model = models.get_model(name, weights=None, num_classes=5)
    program_of(model.eval(), torch.randn(2, 3, 32, 32))


def test_a_program_of_any_dimensions_says_what_its_caller_gives():
    program = program_of(nn.Linear(4, 2).eval(), torch.randn(3, 2, 3, 5, 4))
    assert isinstance(program, Program) and program.caller_shapes == ((2, 3, 5, 4), (2, 3, 5, 2))
    with pytest.raises(ValueError, match="dimensions of an image"):
        Program(program.input, program.ops, input_dims=(2, 3, 5, 5))
