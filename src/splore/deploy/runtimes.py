"""Exported files in the runtimes that they are for: each function gives one from NumPy images to NumPy results.

No torch is imported, but by the file of torch itself: a process that measures memory does without.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def missing(*packages: str) -> list[str]:
    """Those of the packages that are not installed."""
    return [package for package in packages if importlib.util.find_spec(package) is None]


def onnx_session(path: Path, threads: int) -> Run:
    """An ONNX file in ONNX Runtime, with all graph optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = [argument.name for argument in session.get_inputs()]
    return lambda x: session.run(None, {name: x})[0]


def openvino_model(path: Path, threads: int, precision: str = "f32") -> Run:
    """An ONNX file or an OpenVINO IR in OpenVINO, one stream over all threads: this answers a request soonest.

    `precision` is that of what the file has in floats: f32 or bf16.
    """
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }  # fmt: skip
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda x: next(iter(request.infer(x, share_inputs=True).values())).copy()


def torch_program(path: Path) -> Run:
    """A `.pt2` file in torch, with the threads that torch is set to."""
    import torch

    module = torch.export.load(path).module()
    return lambda x: _in_torch(module, x)


def executorch_program(path: Path) -> Run:
    """A `.pte` file in ExecuTorch."""
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    return lambda x: method.execute([torch.from_numpy(x)])[0].numpy()


def _in_torch(module: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:  # noqa: ANN401
    import torch

    with torch.inference_mode():
        return module(torch.from_numpy(x)).numpy()
