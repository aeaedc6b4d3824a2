"""The engine's time and memory, and those of other runtimes with the same network exported for them."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from splore.deploy.latency import Latency, measure
from splore.deploy.memory import peak_mib
from splore.deploy.runtimes import Run, missing, onnx_session, openvino_model
from splore.engine.engine import Engine

if TYPE_CHECKING:
    from torch import nn

ENGINE, ONNX_RUNTIME, OPENVINO, TORCH = "engine", "ONNX Runtime", "OpenVINO", "PyTorch"


@dataclass(frozen=True)
class Row:
    """What one runtime takes.

    Attributes:
        runtime: its name.
        latency: of a batch.
        peak_mib: of a fresh process that runs the file; None where it was not measured.
        error: the largest difference from the engine's outputs, as a share of the largest output.
    """

    runtime: str
    latency: Latency
    peak_mib: float | None
    error: float


def bench(
    engine: Engine, batch: int, program: Path | None, onnx: Path | None, dense: "nn.Module | None", seconds: float
) -> list[Row]:
    """Times the engine on random images, and the same network in other runtimes: from `onnx` in those that are
    installed, and `dense` in PyTorch. They take turns, for so many seconds each.

    `program` is the engine's file, of which the memory is measured.
    """
    x = np.random.default_rng(0).standard_normal((batch, *engine.input), dtype=np.float32)
    runs: dict[str, Run] = {ENGINE: engine}
    if onnx is not None and not missing("onnxruntime"):
        runs[ONNX_RUNTIME] = onnx_session(onnx, engine.threads)
    if onnx is not None and not missing("openvino"):
        runs[OPENVINO] = openvino_model(onnx, engine.threads)
    if dense is not None:
        runs[TORCH] = _torch(dense)
    expected = engine(x)
    errors = {name: _error(run(x), expected) for name, run in runs.items()}
    files = {ENGINE: program, ONNX_RUNTIME: onnx, OPENVINO: onnx}
    return [
        Row(name, latency, _peak(name, files.get(name), x.shape, engine.threads), errors[name])
        for name, latency in measure(runs, x, seconds).items()
    ]


def _torch(dense: "nn.Module") -> Run:
    from splore.engine.engine import run_torch

    return lambda x: run_torch(dense, [x])[0]


def _error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


def _peak(runtime: str, file: Path | None, shape: Sequence[int], threads: int) -> float | None:
    if file is not None:
        with suppress(RuntimeError):  # a system without /proc
            return peak_mib(runtime, file, tuple(shape), threads)
    return None
