"""The engine: equal to PyTorch and to its reference, for every kind of input, with and without torch or the library."""

import re

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import floats, random_program
from test_capture import decomposed, lively
from torch import nn
from torch._subclasses import FakeTensorMode

from splore.capture.compile import compile
from splore.capture.export import capture
from splore.design.matrix import Scheme
from splore.engine import program_segment, reference
from splore.engine.engine import Engine
from splore.vision import build
from splore.vision.nets.residual import PreActResNet, ResNet


def has_native() -> bool:
    try:
        from splore.engine.native import load_library

        load_library()
    except OSError:
        return False
    return True


needs_native = pytest.mark.skipif(not has_native(), reason="the native library is not built")
pytestmark = pytest.mark.filterwarnings("ignore:the native library can't be loaded")


def engine_of(model: nn.Module, x: torch.Tensor, threads: int | None = None) -> Engine:
    """The engine without the choice of running everything in torch, which could win on small nets."""
    captured = capture(model, x)
    return Engine(captured.segments, captured.input, captured.output, threads, flow=captured.flow)


def small_net(seed: int = 0) -> nn.Module:
    return decomposed(lively(ResNet(8, 10, 3), seed), 2, 0.1)


@torch.no_grad()
def expect_close(engine: Engine, model: nn.Module, x: torch.Tensor) -> None:
    expected = model(x)
    found = engine(x)
    assert isinstance(found, torch.Tensor) and found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


NETS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=7),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=7),
    "efficientnet_b0": lambda: torchvision.models.efficientnet_b0(num_classes=7),
    "vgg19": lambda: decomposed(build("vgg19", 10, 3), 4, 0.02),
    "resnet20": lambda: decomposed(ResNet(20, 10, 3), 3, 0.15, Scheme.SPATIAL),
    "preactresnet20": lambda: decomposed(PreActResNet(20, 10, 3), 3, 0.15),
}


@needs_native
@pytest.mark.parametrize("name", NETS)
def test_equals_the_model(name):
    model = lively(NETS[name]())
    engine = engine_of(model, torch.randn(1, 3, 32, 32))
    for images in (1, 3, 17) if name != "efficientnet_b0" else (2,):
        engine.plan(images)
        expect_close(engine, model, torch.randn(images, 3, 32, 32))


@needs_native
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([1, 2, 7, 8, 16, 17, 33]), st.sampled_from([1, 2]))
def test_native_equals_the_reference(seed, images, threads):
    from splore.engine.native import NativeProgram

    program = random_program(seed)
    x = floats(np.random.default_rng(seed), images, *program.input)
    native = NativeProgram(program, threads=threads)
    native.plan(images)
    expected = reference.run(program, x)
    np.testing.assert_allclose(native.run(x), expected, rtol=1e-4, atol=1e-4 * max(1e-6, float(np.abs(expected).max())))


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
@needs_native
def test_every_instruction_set_equals_the_reference(isa):
    from splore.engine.native import NativeError, NativeProgram

    for seed in range(20):
        program = random_program(seed)
        try:
            native = NativeProgram(program, isa)
        except NativeError as error:
            pytest.skip(str(error))
        assert native.isa == isa
        x = floats(np.random.default_rng(seed), 9, *program.input)
        expected = reference.run(program, x)
        np.testing.assert_allclose(
            native.run(x), expected, rtol=1e-4, atol=1e-4 * max(1e-6, float(np.abs(expected).max()))
        )


def test_any_batch_and_both_kinds_of_arrays():
    model = small_net()
    engine = engine_of(model, torch.randn(4, 3, 16, 16))
    for images in (0, 1, 2, 9, 40):
        x = torch.randn(images, 3, 16, 16)
        y = engine(x)
        assert y.shape == (images, 10) and y.dtype == torch.float32
        if images:
            expect_close(engine, model, x)
        z = engine(x.numpy())
        assert isinstance(z, np.ndarray)
        np.testing.assert_allclose(z, y.numpy(), rtol=1e-5, atol=1e-5)
    turned = torch.randn(2, 16, 16, 3).permute(0, 3, 1, 2)  # channels last in memory
    expect_close(engine, model, turned)
    read_only = np.broadcast_to(np.float32(1), (2, 3, 16, 16))
    np.testing.assert_allclose(engine(read_only), engine(np.ones((2, 3, 16, 16), np.float32)), rtol=1e-5, atol=1e-5)


def fake(*shape):
    with FakeTensorMode():
        return torch.zeros(shape)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(1, 3, 8, 8), r"of shape \(N, 3, 16, 16\), found torch.float32 of shape \(1, 3, 8, 8\)"),
        (np.zeros((3, 16, 16), np.float32), "expected float32 of shape"),
        (np.zeros((1, 3, 16, 16)), "found float64"),
        (torch.zeros(1, 3, 16, 16).half(), "found torch.float16"),
        ([[0.0]], "a NumPy array or a torch tensor, found list"),
        (np.float32(0), "found float32"),
        (np.zeros((), np.float32), r"found float32 of shape \(\)"),
        (torch.zeros(()), r"found torch.float32 of shape \(\)"),
        (np.zeros((1, 3, 16, 16), ">f4"), "found >f4"),
        (np.zeros((1, 3, 16, 16), object), "found object"),
        (np.ma.zeros((1, 3, 16, 16), np.float32), "found MaskedArray"),
        (torch.zeros(1, 3, 16, 16, device="meta"), "on the CPU, found one of torch.strided on meta"),
        (torch.zeros(1, 3, 16, 16).to_sparse(), "a dense tensor on the CPU, found one of torch.sparse_coo"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.complex64), "found torch.complex64"),
        (None, "found NoneType"),
        (torch.nested.nested_tensor([torch.zeros(3, 16, 16)]), "found Tensor that is nested"),
        (fake(1, 3, 16, 16), "numbers in memory, found FakeTensor: use `as_module"),
    ],
)  # fmt: skip
def test_other_inputs_are_refused(x, message):
    engine = engine_of(small_net(), torch.randn(1, 3, 16, 16))
    with pytest.raises(ValueError, match=message):
        engine(x)


def test_inputs_of_every_odd_kind():
    """Whatever holds float32 numbers of the right shape, however it lies in memory."""
    engine = engine_of(Tail().eval(), torch.randn(1, 3, 16, 16))
    x = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    wide = np.zeros((4, 3, 32, 33), np.float32)
    wide[:, :, ::2, 1:17] = x
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    backwards = np.ascontiguousarray(x[::-1, :, :, ::-1])[::-1, :, :, ::-1]
    frozen = x.copy()
    frozen.flags.writeable = False
    t = torch.from_numpy(x)
    negative = torch.complex(t, -t).conj().imag
    assert negative.is_neg()
    kinds = [
        backwards, wide[:, :, ::2, 1:17], unaligned, frozen, np.asfortranarray(x), x.view(np.memmap),
        t.clone().requires_grad_(), nn.Parameter(t), t.to(memory_format=torch.channels_last), negative,
        torch.from_numpy(wide)[:, :, ::2, 1:17], t.clone().requires_grad_() * 1,
    ]  # fmt: skip
    expected = engine(x)
    for kind in kinds:
        y = engine(kind)
        assert type(y) is (torch.Tensor if isinstance(kind, torch.Tensor) else np.ndarray)
        assert not isinstance(y, torch.Tensor) or not y.requires_grad
        np.testing.assert_allclose(np.asarray(y), expected, rtol=1e-5, atol=1e-6)
    for empty in (x[:0], t[:0]):
        assert tuple(engine(empty).shape) == (0, 10)


def test_without_the_library_the_reference_runs(monkeypatch):
    monkeypatch.setattr(program_segment, "_native", lambda *_: (None, "no such file"))
    model = small_net()
    with pytest.warns(RuntimeWarning, match=r"can't be loaded \(no such file\).*tens of times slower"):
        engine = engine_of(model, torch.randn(1, 3, 16, 16))
    expect_close(engine, model, torch.randn(3, 3, 16, 16))
    assert "NumPy reference: no such file" in engine.summary()


@needs_native
def test_what_the_library_refuses_does_not_run_in_numpy(monkeypatch):
    monkeypatch.setenv("SPLORE_ISA", "avx215")
    with pytest.raises(
        ValueError, match="can't run this program.*'avx215'; expected avx512vnni, avx512, avxvnni, avx2 or generic"
    ):
        engine_of(small_net(), torch.randn(1, 3, 16, 16))


class Tail(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(self.net(x), 1)


def test_what_the_engine_does_not_know_runs_in_torch(tmp_path):
    model = Tail().eval()
    engine = engine_of(model, torch.randn(2, 3, 16, 16))
    expect_close(engine, model, torch.randn(5, 3, 16, 16))
    assert "In torch:\n  aten.cumsum.default (cumsum): the engine has no such operator" in engine.summary()
    with pytest.raises(ValueError, match="a part of this model needs torch.*\n.*\n.*cumsum"):
        engine.save(tmp_path / "net.splore")
    timed = compile(model, torch.randn(2, 3, 16, 16), threads=1).summary()
    assert re.search(r"cumsum\): the engine has no such operator, \S+ ms\n  with what is next to it: \S+ ms", timed)


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        h = torch.relu(self.net(x))
        return {"out": self.head(h), "more": (h.mean((2, 3)), [h])}


@pytest.mark.parametrize("dense", [False, True])
def test_several_results_as_the_model_gives_them(dense, tmp_path, monkeypatch):
    times = (2.0, 1.0) if dense else (1.0, 2.0)
    monkeypatch.setattr("splore.engine.engine.median_ms", lambda *_: times)
    model, x = lively(Several()), torch.randn(2, 3, 16, 16)
    engine = compile(model, x, threads=1)
    for images in (3, 0, 1):
        x = torch.randn(images, 3, 16, 16)
        with torch.no_grad():
            expected = model(x)
        torch.testing.assert_close(engine(x), expected, rtol=1e-4, atol=1e-4)
        in_numpy = engine(x.numpy())
        assert isinstance(in_numpy["more"][1][0], np.ndarray) and type(in_numpy["more"]) is tuple
    assert engine.output == {"out": (4, 12, 12), "more": ((8,), [(8, 14, 14)])}
    with pytest.raises(ValueError, match="several"):
        engine.as_module()
    engine.save(tmp_path / "net.splore")
    loaded = Engine.load(tmp_path / "net.splore", threads=1)
    assert loaded.output == engine.output
    torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_are_checked(threads):
    with pytest.raises(ValueError, match="at least one thread"):
        engine_of(small_net(), torch.randn(1, 3, 16, 16), threads)
