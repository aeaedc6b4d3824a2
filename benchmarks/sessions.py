"""ONNX files in ONNX Runtime and in OpenVINO; without torch, so that a process of its own can do without."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]


def onnx_session(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = [argument.name for argument in session.get_inputs()]
    return lambda x: session.run(None, {name: x})[0]


def openvino_model(path: Path, threads: int) -> Run:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }  # fmt: skip
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda x: next(iter(request.infer(x, share_inputs=True).values())).copy()
