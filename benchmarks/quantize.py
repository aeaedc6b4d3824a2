"""What eight bits lose: a trained net rounded by calibration and by fine-tuning, beside what other runtimes' int8 lose.

    python benchmarks/quantize.py dense.safetensors model.safetensors --root DIR --json benchmarks/results/quantize.json

The first file is the dense net, which ONNX Runtime and OpenVINO (by NNCF) quantise with their own defaults on the same
training images, unless `--peers` names none; each is compared with the same net in float32. All test images are
classified, by the engine's programs in float32 and in eight bits where the net is ours.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rows import add_row
from runtimes import export, quiet
from torch import nn

import splore
from splore.deploy.runtimes import onnx_session
from splore.engine.quantise import quantise
from splore.postprocess.quantize import captured
from splore.runs.eight_bits import to_eight_bits
from splore.runs.prepare import accelerator_of, open_split
from splore.runs.progress import Display
from splore.runs.recipe_file import load_recipe
from splore.runs.stop import StopRequest
from splore.vision import Data

Classify = Callable[[NDArray[np.float32]], NDArray[np.float32]]
BATCH = 100
IMAGES = 500  # to calibrate by, where the name of a row does not say so
KEY = ("net", "file", "method")


def onnx_runtime_int8(model: nn.Module, images: NDArray[np.float32]) -> Classify:
    """ONNX Runtime's static quantisation, QDQ, int8 weights for each channel."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        left = list(images.reshape(-1, BATCH, *images.shape[1:]))

        def get_next(self) -> dict | None:
            return {"x": self.left.pop()} if self.left else None

    with tempfile.TemporaryDirectory() as folder:
        plain, ready, small = (Path(folder) / f"{name}.onnx" for name in ("plain", "ready", "small"))
        export(model, torch.from_numpy(images[:BATCH]), plain)
        quant_pre_process(str(plain), str(ready))
        quantize_static(str(ready), str(small), Reader(), per_channel=True)
        return onnx_session(small, torch.get_num_threads())


def openvino_int8(model: nn.Module, images: NDArray[np.float32]) -> Classify:
    """NNCF's post-training quantisation with its defaults, run by OpenVINO."""
    import nncf
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        net = openvino.Core().read_model(export(model, torch.from_numpy(images[:BATCH]), Path(folder) / "net.onnx"))
        batches = list(images.reshape(-1, BATCH, *images.shape[1:]))
        small = nncf.quantize(net, nncf.Dataset(batches), subset_size=len(batches))
        request = openvino.Core().compile_model(small, "CPU").create_infer_request()
    return lambda x: next(iter(request.infer(x).values())).copy()


PEERS = {"ONNX Runtime": onnx_runtime_int8, "OpenVINO": openvino_int8}


def correct(classify: Classify, data: Data) -> float:
    """The accuracy in % on the test images."""
    right = seen = 0
    for x, y in data.test.epoch(0):
        for images, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            if len(images) == BATCH:
                right += int((classify(images.contiguous().numpy()).argmax(1) == labels.numpy()).sum())
                seen += BATCH
    return 100 * right / seen


def program_of(model: nn.Module, data: Data) -> splore.Engine:
    """The model in the engine, in eight bits where it was quantised, though float32 be faster."""
    (program,) = captured(model, torch.zeros(1, *data.image_shape)).segments
    small = quantise(program, model.activation_ranges) if hasattr(model, "activation_ranges") else program
    return splore.Engine((small,), program.input, (data.num_classes,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="model files, that of the dense net first")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--root")
    parser.add_argument("--images", type=int, default=IMAGES, help="training images to calibrate by")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[*PEERS], help="other runtimes to compare with")
    parser.add_argument("--epochs", type=int, nargs="*", default=[0], help="of fine-tuning with fake quantisation")
    parser.add_argument("--ranges", nargs="+", default=["mse", "percentile", "max"])
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--precision", default="fp32", help="of fine-tuning, as hardware.precision in a recipe")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quiet()
    words = [f"--data.name={options.data}", f"--data.root={options.root}", f"--quantize.images={options.images}"]
    words += ["--data.batch_size=100", "--hardware.channels_last=false", f"--hardware.precision={options.precision}"]
    for file in options.files:
        recipe = load_recipe(overrides=words)
        accelerator = accelerator_of(recipe.hardware, Path())
        data = open_split(recipe.data, 0, accelerator, torch.contiguous_format)
        model = splore.load(file).eval()
        whole = correct(program_of(model, data), data)

        def row(
            method: str, accuracy: float, file: str = file, whole: float = whole, **more: float | int | str
        ) -> None:
            print(f"{file} {method}: {accuracy:.2f} %, {accuracy - whole:+.2f} {more or ''}", flush=True)
            found = {"file": Path(file).stem, "net": Path(file).parent.name, "method": method, "accuracy": accuracy}
            if options.json:
                add_row(options.json, found | {"float32": whole, "loss": whole - accuracy} | more, KEY)

        if file == options.files[0]:
            images = torch.cat([x for x, _ in islice(data.train.epoch(0), options.images // BATCH)])
            for name in options.peers:
                row(f"{name} int8", correct(PEERS[name](copy.deepcopy(model), images.numpy()), data))
        for epochs in options.epochs:
            for ranges in options.ranges if epochs == 0 else options.ranges[:1]:
                more = [f"--quantize.epochs={epochs}", f"--quantize.ranges={ranges}", f"--quantize.lr={options.lr}"]
                recipe = load_recipe(overrides=[*words, *more])
                net = copy.deepcopy(model)
                label, fields = "calibrated", {"images": options.images}
                if epochs:
                    label = f"fine-tuned for {epochs} at {options.lr:g}"
                    fields |= {"lr": options.lr, "type": options.precision}
                    with Display() as display:
                        to_eight_bits(net, recipe, data, accelerator, display, StopRequest())
                else:
                    splore.quantize(net, data.train, images=options.images, ranges=ranges)
                if options.images != IMAGES:
                    label += f", {options.images} images"
                row(f"{label}, {ranges}", correct(program_of(net.eval(), data), data), **fields)


if __name__ == "__main__":
    main()
