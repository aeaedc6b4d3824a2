"""The dense network in eight bits, and in bfloat16, in other runtimes, quantised by their makers' own tools."""

import tempfile
from pathlib import Path

import numpy as np

from splore.deploy.runtimes import Run, onnx_session, openvino_model


def onnx_runtime_int8(onnx: Path, calibration: np.ndarray, threads: int) -> Run:
    with tempfile.TemporaryDirectory() as directory:
        return onnx_session(onnx_int8_file(onnx, calibration, Path(directory)), threads)


def onnx_int8_file(onnx: Path, calibration: np.ndarray, folder: Path) -> Path:
    """ONNX Runtime's static quantisation: activations by tensor, weights by output channel, ranges of the extremes."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(_batches(onnx, calibration))

        def get_next(self) -> dict | None:
            return next(self.left, None)

    prepared, path = folder / "prepared.onnx", folder / "int8.onnx"
    quant_pre_process(str(onnx), str(prepared))
    quantize_static(
        str(prepared), str(path), Images(), QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    return path


def openvino_int8(onnx: Path, calibration: np.ndarray, threads: int) -> Run:
    with tempfile.TemporaryDirectory() as directory:
        return openvino_model(openvino_int8_file(onnx, calibration, Path(directory)), threads)


def openvino_int8_file(onnx: Path, calibration: np.ndarray, folder: Path) -> Path:
    """NNCF's post-training quantisation, which corrects biases too."""
    import nncf
    import openvino

    model = openvino.Core().read_model(str(onnx))
    dataset = nncf.Dataset(list(_batches(onnx, calibration)))
    path = folder / "int8.xml"
    openvino.save_model(nncf.quantize(model, dataset), str(path), compress_to_fp16=False)
    return path


def openvino_bf16(onnx: Path, calibration: np.ndarray, threads: int) -> Run:
    """OpenVINO in bfloat16, as far as it finds that this machine has it."""
    return openvino_model(onnx, threads, "bf16")


def _batches(onnx: Path, calibration: np.ndarray) -> list[dict[str, np.ndarray]]:
    """The images by the name of the network's input, in its batch size, repeated where they are too few."""
    import onnxruntime

    (given,) = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"]).get_inputs()
    batch = given.shape[0]
    whole = np.resize(calibration, (-(-len(calibration) // batch) * batch, *calibration.shape[1:]))
    return [{given.name: whole[start : start + batch]} for start in range(0, len(whole), batch)]
