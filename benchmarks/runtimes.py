"""The dense network in other runtimes, each as fast as its settings make it: a function from images to results.

Each class loads in `__init__` and runs in `__call__`, NumPy (N, C, H, W) to NumPy (N, classes), in float32.
"""

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import int8_runtimes
import numpy as np
import torch
from torch import nn

from splore.deploy.runtimes import Run, onnx_session, openvino_model

CALIBRATION = 8  # images that ranges are measured on, at the most


def eager(model: nn.Module, x: torch.Tensor, threads: int) -> Run:
    """PyTorch without a compiler, in the memory format that is faster here."""
    return _faster([_torch(model, torch.contiguous_format), _torch(model, torch.channels_last)], x)


def compiled(model: nn.Module, x: torch.Tensor, threads: int) -> Run:
    """torch.compile with frozen weights (so that batch normalisation is folded), in the faster memory format."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    faster = torch.compile(model, dynamic=False)
    return _faster([_torch(faster, torch.contiguous_format), _torch(faster, torch.channels_last)], x)


def onnx_runtime(model: nn.Module, x: torch.Tensor, threads: int) -> Run:
    """ONNX Runtime with all graph optimisations."""
    with tempfile.TemporaryDirectory() as directory:
        return onnx_session(export(model, x, Path(directory) / "net.onnx"), threads)


def openvino(model: nn.Module, x: torch.Tensor, threads: int) -> Run:
    """OpenVINO, float32, one stream over all threads: what answers a single request soonest."""
    with tempfile.TemporaryDirectory() as directory:
        return openvino_model(export(model, x, Path(directory) / "net.onnx"), threads)


def export(model: nn.Module, x: torch.Tensor, path: Path) -> Path:
    """The dense model as ONNX, for this batch size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, verbose=False)
    return path


def onnx_runtime_int8(model: nn.Module, x: torch.Tensor, threads: int) -> Run:
    return _by_file(model, x, threads, int8_runtimes.onnx_runtime_int8)


def openvino_int8(model: nn.Module, x: torch.Tensor, threads: int) -> Run:
    return _by_file(model, x, threads, int8_runtimes.openvino_int8)


def openvino_bf16(model: nn.Module, x: torch.Tensor, threads: int) -> Run:
    return _by_file(model, x, threads, int8_runtimes.openvino_bf16)


def _by_file(model: nn.Module, x: torch.Tensor, threads: int, load: Callable[[Path, np.ndarray, int], Run]) -> Run:
    """What `load` makes of the exported model, ranges measured on the images themselves."""
    with tempfile.TemporaryDirectory() as directory:
        return load(export(model, x, Path(directory) / "net.onnx"), x.numpy()[:CALIBRATION], threads)


PEERS: dict[str, tuple[tuple[str, ...], Callable[[nn.Module, torch.Tensor, int], Run]]] = {
    "torch eager": (("torch",), eager),
    "torch.compile": (("torch",), compiled),
    "ONNX Runtime": (("onnx", "onnxscript", "onnxruntime"), onnx_runtime),
    "OpenVINO": (("onnx", "onnxscript", "openvino"), openvino),
    "ONNX Runtime int8": (("onnx", "onnxscript", "onnxruntime"), onnx_runtime_int8),
    "OpenVINO int8": (("onnx", "onnxscript", "openvino", "nncf"), openvino_int8),
    "OpenVINO bf16": (("onnx", "onnxscript", "openvino"), openvino_bf16),
}
"""What each peer needs installed, and what builds it."""


def missing(peer: str) -> list[str]:
    """The packages that a peer needs and that are not installed."""
    return [package for package in PEERS[peer][0] if importlib.util.find_spec(package) is None]


def versions() -> dict[str, str]:
    """Of every package that takes part."""
    packages = sorted({package for needed, _ in PEERS.values() for package in needed} | {"numpy"})
    return {package: version(package) for package in packages if importlib.util.find_spec(package)}


def quiet() -> None:
    """Keeps the runtimes from writing to the terminal between the figures."""
    os.environ.setdefault("ORT_LOGGING_LEVEL", "3")
    warnings.filterwarnings("ignore")


def _torch(model: nn.Module, layout: torch.memory_format) -> Run:
    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(x).to(memory_format=layout)).numpy()

    return run


def _faster(runs: list[Run], x: torch.Tensor) -> Run:
    from splore.engine.program_segment import median_ms

    images = x.numpy()
    times = median_ms(*(lambda run=run: run(images) for run in runs))
    return runs[times.index(min(times))]
