"""An engine away from where it was compiled: in a file, without torch, and as one operator of torch."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from test_capture import decomposed, lively
from test_engine import Tail, engine_of, expect_close, small_net
from torch import nn

from splore.engine import program_segment
from splore.engine.engine import Engine
from splore.vision import build

pytestmark = pytest.mark.filterwarnings("ignore:the native library can't be loaded")


def test_saving_and_loading_is_the_identity(tmp_path):
    engine = engine_of(small_net(), torch.randn(1, 3, 16, 16))
    engine.save(tmp_path / "net.splore")
    loaded = Engine.load(tmp_path / "net.splore", threads=1)
    assert (loaded.input, loaded.output, loaded.threads) == ((3, 16, 16), (10,), 1)
    x = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(loaded(x), engine(x), rtol=1e-5, atol=1e-5)


def test_a_model_of_vectors(tmp_path):
    model = decomposed(nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 4)), 3, 0.1).eval()
    engine = engine_of(model, torch.randn(1, 40))
    expect_close(engine, model, torch.randn(20, 40))
    engine.save(tmp_path / "net.splore")
    assert Engine.load(tmp_path / "net.splore")(np.zeros((2, 40), np.float32)).shape == (2, 4)


WITHOUT_TORCH = """
    import sys, time
    import numpy as np

    class NoTorch:
        def find_spec(self, name, *_):
            if name.partition(".")[0] == "torch":
                raise ImportError("there is no torch here")

    sys.meta_path.insert(0, NoTorch())
    x = np.load(sys.argv[2])
    start = time.perf_counter()
    from splore.engine.engine import Engine
    engine = Engine.load(sys.argv[1])
    seconds = time.perf_counter() - start
    np.save(sys.argv[3], engine(x))
    assert not any(name.partition(".")[0] == "torch" for name in sys.modules)
    print(seconds)
"""


def test_a_saved_engine_runs_without_torch(tmp_path):
    engine = engine_of(lively(decomposed(build("vgg19", 10, 3), 4, 0.02)), torch.randn(1, 3, 32, 32))
    engine.save(tmp_path / "net.splore")
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    script = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(WITHOUT_TORCH)]
    files = [str(tmp_path / name) for name in ("net.splore", "x.npy", "y.npy")]
    path = os.pathsep.join([str(Path(program_segment.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run([*script, *files], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert ran.returncode == 0, ran.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), engine(x), rtol=1e-4, atol=1e-4)
    assert float(ran.stdout) < 2.0  # 0.1 s on an idle machine; a loaded one may be slower


def test_one_operator_for_torch():
    model = small_net()
    x = torch.randn(2, 3, 16, 16)
    module = engine_of(model, x).as_module()
    expected = module(x)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: batch},))
    calls = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert calls.count(torch.ops.splore.engine.default) == 1
    assert exported.module()(torch.randn(5, 3, 16, 16)).shape == (5, 10)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    torch.library.opcheck(torch.ops.splore.engine.default, (x, module.handle, [10]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_operator_refuses_other_types_before_it_runs(dtype):
    module = engine_of(small_net(), torch.randn(1, 3, 16, 16)).as_module()
    for device in ("cpu", "meta"):
        with pytest.raises(ValueError, match=f"expected float32.*found {dtype}"):
            torch.ops.splore.engine(torch.zeros(1, 3, 16, 16, dtype=dtype, device=device), module.handle, [10])


def test_a_handle_is_the_content_of_an_engine(tmp_path):
    x = torch.randn(1, 3, 16, 16)
    engines = [engine_of(small_net(seed), x) for seed in (0, 1)] + [engine_of(Tail().eval(), x)]
    modules = [engine.as_module() for engine in engines]
    assert len({module.handle for module in modules}) == 3
    assert engine_of(Tail().eval(), x).as_module().handle == modules[2].handle
    engines[0].save(tmp_path / "net.splore")
    handle, expected = modules[0].handle, modules[0](x)
    del engines, modules
    with pytest.raises(RuntimeError, match="an engine that is not here"):
        torch.ops.splore.engine(x, handle, [10])
    again = Engine.load(tmp_path / "net.splore").as_module()  # as another process would
    assert again.handle == handle
    torch.testing.assert_close(torch.ops.splore.engine(x, handle, [10]), expected)


class Permuted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.conv(x)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("model", [Permuted().eval(), nn.Identity().eval()])
def test_a_result_that_lies_otherwise_in_memory_under_torch_compile(model):
    x = torch.randn(2, 3, 8, 8)
    module = engine_of(model, x).as_module()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    torch.library.opcheck(torch.ops.splore.engine.default, (x, module.handle, list(module.engine.output)))


def test_an_operator_whose_engine_is_gone():
    module = engine_of(small_net(), torch.randn(1, 3, 16, 16)).as_module()
    handle = module.handle
    del module
    with pytest.raises(RuntimeError, match="refers to an engine"):
        torch.ops.splore.engine(torch.randn(1, 3, 16, 16), handle, [10])
