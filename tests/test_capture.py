"""Capture: the program computes what the model does, with what can be joined joined, and leaves the rest to torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from splore.capture.export import Captured, capture
from splore.capture.torch_segment import TorchSegment
from splore.design.layers import LowRankSparseConv2d, LowRankSparseLinear, decomposed_layers
from splore.design.matrix import Scheme
from splore.engine import reference
from splore.engine.program import Act, Affine, Conv, Program
from splore.vision.nets.residual import PreActResNet, ResNet


def run(captured: Captured, x: Tensor) -> Any:
    """The segments as they flow, the programs in NumPy."""

    def call(segment: Program | TorchSegment, values: list[Tensor]) -> Sequence[Tensor]:
        if isinstance(segment, TorchSegment):
            return segment(*values)
        (x,) = values
        y = reference.run(segment, x.numpy().reshape(len(x), *segment.input))
        return [torch.from_numpy(y.reshape(len(y), *segment.caller_shapes[1]))]

    return captured.flow.structure(captured.flow.run(captured.segments, [x], call))


@torch.no_grad()
def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode, with batch normalisations that do something and weights that keep values near one."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return model.eval()


@torch.no_grad()
def decomposed(model: nn.Module, rank: int, density: float, scheme: Scheme = Scheme.CHANNEL) -> nn.Module:
    """The model with every ungrouped convolution and linear layer random, of this structure."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear) and getattr(module, "groups", 1) == 1:
            kind = LowRankSparseConv2d if isinstance(module, nn.Conv2d) else LowRankSparseLinear
            m, k = kind(module, 1, True, scheme).S.shape
            r = min(rank, m, k)
            layer = kind(module, r, density > 0 or r == 0, scheme)
            A, B = torch.randn(m, r) / max(1, r), torch.randn(r, k) / k**0.5
            mask = torch.rand(m, k) < density
            S = torch.randn(m, k) * mask / max(1, density * k) ** 0.5 if layer.S is not None else None
            layer.set_parts(A, B, S, mask if S is not None else None)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer.eval())
    return model


@torch.no_grad()
def expect_equal(model: nn.Module, x: Tensor) -> tuple[Program | TorchSegment, ...]:
    """Captures the model, and expects its segments to compute the same as it; gives the segments."""
    captured = capture(model, x)
    expected = model(x)
    found = run(captured, x)
    assert (captured.input, captured.output) == (tuple(x.shape[1:]), tuple(expected.shape[1:]))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    torch.testing.assert_close(captured.dense(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    return captured.segments


def program_of(model: nn.Module, x: Tensor) -> Program:
    (program,) = expect_equal(model, x)
    assert isinstance(program, Program)
    return program


def convolutions(program: Program) -> list[Conv]:
    return [op for op in program.ops if isinstance(op, Conv)]


class Call(nn.Module):
    """A model of one function, with a convolution before it."""

    def __init__(self, function, channels=4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, 5)
        self.register_buffer("mean", torch.randn(1, channels, 1, 1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.conv(x))


@pytest.mark.parametrize(
    "build, ops",
    [
        (lambda: torchvision.models.resnet18(num_classes=7), 22),
        (lambda: torchvision.models.mobilenet_v2(num_classes=7), 53),
        (lambda: torchvision.models.efficientnet_b0(num_classes=7), 109),
        (lambda: ResNet(20, 10, 3), 23),
        (lambda: PreActResNet(20, 10, 3), 24),
    ],
    ids=["resnet18", "mobilenet_v2", "efficientnet_b0", "resnet20", "preactresnet20"],
)
def test_whole_nets_are_one_program_of_few_operations(build, ops):
    model = lively(build())
    program = program_of(model, torch.randn(2, 3, 32, 32))
    assert len(program.ops) == ops
    assert not any(isinstance(op, Affine) and op.act is Act.NONE for op in program.ops)


@pytest.mark.parametrize("name", ["vgg19", "preactresnet56", "digits_cnn"])
def test_nets_of_the_zoo(name):
    from splore.vision import build

    model = build(name, 10, 1 if name == "digits_cnn" else 3)
    x = torch.randn(2, 1, 8, 8) if name == "digits_cnn" else torch.randn(2, 3, 32, 32)
    program_of(decomposed(lively(model), 2, 0.1), x)


def test_vgg11_at_full_size():
    program = program_of(lively(torchvision.models.vgg11(num_classes=7)), torch.randn(1, 3, 224, 224))
    assert [type(op).__name__ for op in program.ops].count("Conv") == 11


@pytest.mark.parametrize("scheme", list(Scheme))
@pytest.mark.parametrize("rank, density", [(2, 0.1), (3, 0), (0, 0.1), (1, 0.9)])
def test_decomposed_layers_keep_their_parts(rank, density, scheme):
    model = decomposed(lively(ResNet(8, 10, 3)), rank, density, scheme)
    program = program_of(model, torch.randn(2, 3, 16, 16))
    weights = [conv.weight for conv in convolutions(program)]
    if density == 0.9:
        assert all(weight.dense is not None for weight in weights)
    else:
        assert any(weight.values is not None for weight in weights) == (density > 0)
        assert any(weight.A is not None for weight in weights) == (rank > 0)
        stored = sum(
            part.size
            for weight in weights
            for part in (weight.dense, weight.A, weight.B, weight.values)
            if part is not None
        )
        given = [part for layer in decomposed_layers(model).values() for part in (layer.A, layer.B, layer.S)]
        assert stored <= sum(int(part.count_nonzero()) for part in given if part is not None) * 1.3


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000))
def test_a_decomposed_convolution_of_any_shape(seed):
    torch.manual_seed(seed)
    c, n, kh, kw, sh, sw = (int(torch.randint(1, top, ())) for top in (9, 9, 4, 4, 3, 3))
    padding = ["same", "valid", (kh // 2, kw - 1)][seed % 3] if (sh, sw) == (1, 1) else (kh - 1, kw // 2)
    conv = nn.Conv2d(c, n, (kh, kw), (sh, sw), padding, dilation=1 + seed % 2, bias=seed % 5 > 0)
    model = decomposed(nn.Sequential(conv, nn.BatchNorm2d(n), nn.ReLU()), seed % 4, 0.3, list(Scheme)[seed % 2])
    program_of(lively(model), torch.randn(2, c, 9, 8))


def test_nothing_in_the_model_changes():
    model = decomposed(lively(ResNet(8, 10, 3)), 2, 0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = list(model.named_modules())
    expect_equal(model, torch.randn(1, 3, 8, 8))
    assert list(model.named_modules()) == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_pruned_dense_weights_become_sparse():
    model = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)))
    with torch.no_grad():
        model[2].weight.mul_(torch.rand_like(model[2].weight) < 0.1)
    first, second = convolutions(program_of(model, torch.randn(1, 3, 8, 8)))
    assert first.weight.dense is not None
    assert second.weight.values is not None


def test_one_layer_used_twice():
    layer = decomposed(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)), 1, 0.2)[0]
    program = program_of(nn.Sequential(layer, nn.ReLU(), layer).eval(), torch.randn(2, 3, 6, 6))
    assert len(program.ops) == 2
    assert all(conv.weight.values is not None for conv in convolutions(program))


JOINED = [
    ("relu6", lambda m, x: F.relu6(m.norm(x)), 1),
    ("clamp", lambda m, x: x.clamp(0, 6).clamp(min=0), 2),
    ("silu", lambda m, x: F.silu(x) + 1, 2),
    ("hardswish", lambda m, x: F.hardswish(x), 1),
    ("hardsigmoid", lambda m, x: F.hardsigmoid(x), 1),
    ("gelu", lambda m, x: F.gelu(x), 1),
    ("in place", lambda m, x: F.relu_(m.norm(x)).add_(x), 3),
    ("normalised by constants", lambda m, x: m.conv.weight.new_ones(1) * ((x - m.mean) / 2), 1),
    ("constant minus image", lambda m, x: 1 - x, 1),
    ("product added", lambda m, x: torch.addcmul(torch.addcmul(m.mean, m.mean, x), x, x), 5),
    ("residual of itself", lambda m, x: torch.relu(x + x), 2),
    ("squeeze and excite", lambda m, x: x.mean((2, 3), keepdim=True).sigmoid() * x, 4),
    ("global maximum", lambda m, x: m.linear(x.amax((-1, -2))), 3),
    ("flat", lambda m, x: x[:, :, ::2, ::2].flatten(1), 2),
    ("view", lambda m, x: m.linear(F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)), 3),
    ("squeezed", lambda m, x: m.linear(F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1))[:, :, None, None], 3),
    ("average pools", lambda m, x: F.avg_pool2d(F.avg_pool2d(x, 3, 2, 1), 2, ceil_mode=True), 3),
    ("max pools", lambda m, x: F.max_pool2d(F.max_pool2d(x, 3, 2, 1, ceil_mode=True), 2, 1), 3),
    ("adaptive pool", lambda m, x: F.adaptive_avg_pool2d(x, (4, 2)), 2),
    ("shortcut without weights", lambda m, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + m.mean.mean(), 3),
    ("joined and split", lambda m, x: torch.mul(*torch.cat([x, m.norm(x)], 1).chunk(2, 1)), 6),
    ("some channels", lambda m, x: x[:, 1:3], 2),
    ("padded", lambda m, x: F.conv2d(F.pad(x, (1, 2, 0, 1)), m.conv.weight.new_ones(2, 4, 3, 3)), 2),
    ("only padded", lambda m, x: F.pad(x, (1, 2, 0, 1)), 2),
    ("dropout", lambda m, x: F.dropout2d(F.dropout(x, training=m.training), training=m.training).contiguous(), 1),
]  # fmt: skip


@pytest.mark.parametrize("function, ops", [case[1:] for case in JOINED], ids=[case[0] for case in JOINED])
def test_functions_that_the_engine_knows(function, ops):
    program = program_of(lively(Call(function)), torch.randn(3, 3, 8, 8))
    assert len(program.ops) == ops


def test_pre_activation_goes_into_the_convolutions_that_read_it():
    program = program_of(lively(PreActResNet(8, 10, 3)), torch.randn(2, 3, 16, 16))
    assert sum(conv.pre is not None for conv in convolutions(program)) == 5  # three blocks and two shortcuts
    assert [op.act for op in program.ops if isinstance(op, Affine)] == [Act.RELU]  # the last one, before the mean


def test_dropout_that_is_off_is_no_chance():
    program_of(lively(nn.Sequential(nn.Conv2d(3, 5, 3), nn.Dropout(0.5), nn.Dropout2d(), nn.AlphaDropout())),
               torch.randn(2, 3, 8, 8))  # fmt: skip


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_other_paddings_of_a_decomposed_layer(mode):
    model = decomposed(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, padding_mode=mode)), 1, 0.2)
    segments = expect_equal(model.eval(), torch.randn(2, 3, 6, 6))
    assert convolutions(segments[-1])[0].weight.values is not None


def test_a_model_of_vectors():
    model = decomposed(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)), 2, 0.1)
    program = program_of(model.eval(), torch.randn(3, 20))
    assert program.flat_input and program.flat_output
    assert len(program.ops) == 2


def test_a_model_that_does_nothing_stays_in_torch():
    (segment,) = expect_equal(nn.Identity().eval(), torch.randn(2, 3, 4, 4))
    assert isinstance(segment, TorchSegment)


@pytest.mark.parametrize(
    "model, x, message",
    [
        (nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), "eval mode"),
        (nn.Conv2d(3, 4, 3).double().eval(), torch.randn(1, 3, 8, 8), "float32 model, found weight"),
        (nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 8, 8).double(), "float32 example input"),
        (nn.Linear(3, 4).eval(), torch.randn(3), "float32 example input"),
        (nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 5, 8, 8), "torch.export can't follow"),
        (Call(lambda m, x: None).eval(), torch.randn(1, 3, 8, 8), "expected tensors in and out"),
        (Call(lambda m, x: (x, m.mean)).eval(), torch.randn(1, 3, 8, 8), "first dimension is the batch"),
        (Call(lambda m, x: x + torch.rand(4, 1, 1)).eval(), torch.randn(1, 3, 8, 8), "draws random numbers"),
        (Call(lambda m, x: x * torch.rand_like(x)).eval(), torch.randn(1, 3, 8, 8), "draws random numbers"),
        (Call(lambda m, x: F.dropout(x, training=True)).eval(), torch.randn(1, 3, 8, 8), "draws random numbers"),
        (Call(lambda m, x: x.sum()).eval(), torch.randn(1, 3, 8, 8), "first dimension is the batch"),
        (Call(lambda m, x: x if x.sum() > 0 else -x).eval(), torch.randn(1, 3, 8, 8), "torch.export can't follow"),
    ],
)  # fmt: skip
def test_models_that_can_not_be_captured(model, x, message):
    with pytest.raises(ValueError, match=message):
        capture(model, x)


def test_weights_of_double_batch_norm_statistics():
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4)))
    program = program_of(model, torch.randn(2, 3, 4, 4))
    assert len(program.ops) == 1
    assert program.ops[0].bias.dtype == np.float32
