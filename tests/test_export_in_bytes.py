"""A quantised net to other runtimes in eight bits: what its integers compute, in a small file."""

import json

import numpy as np
import pytest
import torch
from command import splore as command
from torch import nn

import splore
from splore.deploy.eight_bits import in_bytes
from splore.deploy.export import export
from splore.deploy.runtimes import missing
from splore.design.matrix import Scheme
from splore.engine import reference
from splore.engine.quantise import quantise
from splore.postprocess.quantize import captured

pytestmark = pytest.mark.skipif(bool(missing("onnx", "onnxruntime")), reason="ONNX is not installed")
IMAGE = (3, 12, 12)
WITHIN = 0.02
"""Of the largest output: roundings that fall the other way, handed on from layer to layer."""


class Block(nn.Module):
    def __init__(self, c, n, stride):
        super().__init__()
        self.way = nn.Sequential(
            nn.Conv2d(c, n, 3, stride, 1, bias=False), nn.BatchNorm2d(n), nn.ReLU(),
            nn.Conv2d(n, n, 3, 1, 1, bias=False), nn.BatchNorm2d(n),
        )  # fmt: skip
        self.short = nn.Identity() if c == n else nn.Conv2d(c, n, 1, stride)

    def forward(self, x):
        return torch.relu(self.way(x) + self.short(x))


def residual():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), Block(16, 16, 1), Block(16, 32, 2),
        Block(32, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


class Gates(nn.Module):
    """Depthwise convolutions, a gate, a slow activation, two ways joined, pools, batch norm before a convolution."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 2, dilation=2, groups=8), nn.SiLU())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        self.norm, self.wide = nn.BatchNorm2d(16), nn.Conv2d(16, 12, 3, groups=2)
        self.last = nn.Sequential(nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1, 1), nn.Flatten(), nn.LazyLinear(5))

    def forward(self, x):
        x = self.first(x)
        y = self.depthwise(x)
        return self.last(self.wide(torch.relu(self.norm(torch.cat([y * self.gate(y), x], 1)))))


def quantised(model, design=None, image=IMAGE):
    torch.manual_seed(0)
    loader = [torch.randn(16, *image) for _ in range(2)]
    with torch.no_grad():
        model.train()(loader[0])
    if design is not None:
        splore.decompose(model, design)
        if design.sparse:
            splore.prune(model, params=0.4)
    splore.quantize(model, loader)
    return model.eval()


CASES = {
    "dense": (residual, None),
    "S in blocks": (residual, splore.Design(rank=0, block=4)),
    "L + S": (residual, splore.Design(rank=2, block=4)),
    "spatial L + S": (residual, splore.Design(rank=2, scheme=Scheme.SPATIAL)),
    "L": (residual, splore.Design(rank=2, sparse=False)),
    "spatial L": (residual, splore.Design(rank=2, scheme=Scheme.SPATIAL, sparse=False)),
    "gates": (Gates, None),
}


@pytest.mark.parametrize(
    ("to", "case"), [*(("onnx", case) for case in CASES), *(("openvino", case) for case in ("L + S", "L"))]
)
def test_the_file_computes_what_the_model_in_eight_bits_does(to, case, tmp_path):
    if missing(to):
        pytest.skip(f"{to} is not installed")
    make, design = CASES[case]
    model, x = quantised(make(), design), torch.randn(6, *IMAGE)
    done = export(model, tmp_path / ("net.onnx" if to == "onnx" else "net.xml"), to, x[:1], threads=1)
    layers = done.in_bytes[1]
    assert done.in_bytes == (layers, layers) and done.error < WITHIN
    found = done.run(x.numpy())
    np.testing.assert_allclose(found, in_bytes(model, x)(x.numpy()), rtol=0, atol=WITHIN * np.abs(found).max())
    (program,) = captured(model, x).segments
    engine = reference.run(quantise(program, model.activation_ranges), x.numpy()).reshape(found.shape)
    with torch.no_grad():
        floats = model(x).numpy()
    for other in (engine, floats):  # and their own rounding of a part of the values
        assert np.abs(found - other).max() < 0.06 * np.abs(other).max()


def test_all_is_integers_between_the_images_and_the_last_layer(tmp_path):
    import onnx
    import onnxruntime

    model = quantised(residual(), splore.Design(rank=2, block=4))
    export(model, tmp_path / "net.onnx", "onnx", torch.zeros(1, *IMAGE), threads=1)
    proto = onnx.load(tmp_path / "net.onnx")
    kinds = [node.op_type for node in proto.graph.node]
    convolutions = kinds.count("Conv")
    assert kinds.count("QuantizeLinear") >= convolutions and kinds.count("DequantizeLinear") >= 3 * convolutions
    weights = [each for each in proto.graph.initializer if each.name.endswith(".weight")]
    assert len(weights) == convolutions and all(each.data_type == onnx.TensorProto.INT8 for each in weights)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fast.onnx")
    onnxruntime.InferenceSession(tmp_path / "net.onnx", options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "fast.onnx").graph.node]
    assert kinds.count("QLinearConv") == convolutions - 1 and kinds.count("QLinearAdd") == 3


def test_it_is_less_than_a_third_of_the_file_in_float32(tmp_path):
    import onnx

    model = quantised(residual(), splore.Design(rank=2, block=4))
    model.task = splore.Task(tuple("abcdefghij"), splore.Preprocessing((12, 12), (0.5,) * 3, (0.2,) * 3))
    small = export(model, tmp_path / "net.onnx", "onnx", torch.zeros(1, *IMAGE), threads=1)
    assert small.bytes == (tmp_path / "net.onnx").stat().st_size and small.in_bytes == (10, 10)
    texts = {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert splore.Task.from_json(json.loads(texts["splore.task"])) == model.task
    del model.activation_ranges
    large = export(model, tmp_path / "net.onnx", "onnx", torch.zeros(1, *IMAGE), threads=1)
    assert large.in_bytes is None and 3 * small.bytes < large.bytes


def test_what_a_runtime_computes_wrongly_is_removed(tmp_path):
    if missing("openvino"):
        pytest.skip("openvino is not installed")
    padded = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AvgPool2d(2, 1, 1), nn.Flatten(), nn.LazyLinear(5))
    model = quantised(padded)
    try:  # OpenVINO 2026.4 takes the padded zeros of quantised means for other numbers
        assert export(model, tmp_path / "net.xml", "openvino", torch.zeros(1, *IMAGE), threads=1).error < WITHIN
    except ValueError as refusal:
        assert "the file is removed" in str(refusal) and not list(tmp_path.iterdir())


def test_vectors_go_in_as_well_and_any_number_of_them(tmp_path):
    model = quantised(nn.Sequential(nn.Linear(7, 20), nn.GELU(), nn.Linear(20, 4), nn.Hardswish()), image=(7,))
    done = export(model, tmp_path / "net.onnx", "onnx", torch.zeros(1, 7), threads=1)
    for count in (1, 5):
        x = torch.randn(count, 7)
        assert np.abs(done.run(x.numpy()) - in_bytes(model, x)(x.numpy())).max() < WITHIN


def test_channels_of_zeros_keep_their_biases(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(1, *IMAGE))
    with torch.no_grad():
        model[0].weight[:2] = torch.tensor([0.0, 1e-12])[:, None, None, None]
        model[0].bias[:] = torch.tensor([0.01, 0.7, -0.2, 0.0])
    model = quantised(model)
    done = export(model, tmp_path / "net.onnx", "onnx", torch.zeros(1, *IMAGE), threads=1)
    assert done.error < 1e-3


def test_ranges_of_old_files_leave_what_residuals_are_added_to_in_float32(tmp_path):
    model, x = quantised(residual()), torch.randn(3, *IMAGE)
    model.activation_ranges = {k: v for k, v in model.activation_ranges.items() if not k.endswith(".alone")}
    done = export(model, tmp_path / "net.onnx", "onnx", x, threads=1)
    assert done.in_bytes == (7, 10)
    (program,) = captured(model, x).segments
    engine = reference.run(quantise(program, model.activation_ranges), x.numpy()).reshape(3, 10)
    np.testing.assert_allclose(done.run(x.numpy()), engine, rtol=0, atol=WITHIN * np.abs(engine).max())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), "found Normalize '0.1'"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Threshold(0.1, 20)), "a part of this one needs torch"),
    ],
)
def test_what_has_no_such_form_is_refused_and_goes_in_float32(body, reason, tmp_path):
    model = quantised(nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match=f"{reason}.*float32"):
        export(model, tmp_path / "net.onnx", "onnx", torch.zeros(1, *IMAGE))
    assert not list(tmp_path.iterdir())
    assert export(model, tmp_path / "net.pt2", "pt2", torch.zeros(1, *IMAGE)).in_bytes is None


def test_ranges_of_another_net_are_refused(tmp_path):
    model = quantised(residual())
    model.activation_ranges = {"other": (0.0, 1.0)}
    with pytest.raises(ValueError, match="quantise the model again"):
        export(model, tmp_path / "net.onnx", "onnx", torch.zeros(1, *IMAGE))


def test_the_command_says_that_it_is_int8(tmp_path):
    torch.manual_seed(0)
    model = quantised(splore.build("digits_cnn", 10, 1), image=(1, 8, 8))
    splore.save(model, tmp_path / "digits.safetensors")
    done = command("export", "digits.safetensors", "--to=onnx", "--image=1,8,8", folder=tmp_path)
    assert done.code == 0 and "digits.onnx: int8, " in done.out and "layers in eight bits" in done.out, done
