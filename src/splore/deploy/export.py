"""A compressed network to other runtimes, checked at once to compute the same."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from splore.deploy import formats
from splore.deploy.eight_bits import InBytes, in_bytes
from splore.deploy.runtimes import Run, missing
from splore.design.wrappers import network_within
from splore.engine.engine import run_torch
from splore.forward import evaluating
from splore.machine import usable_cores

Target = Literal["onnx", "onnx-compact", "openvino", "pt2", "dense", "executorch", "engine"]
TOLERANCE = 1e-4
"""How far an export's outputs may lie from the model's, as a share of the largest."""

TOLERANCE_IN_BYTES = 0.1
"""The same in eight bits, where the last digit of a sum may decide between two steps of a value, and each layer hands
such differences on: a ResNet-20 of random weights is at 0.025. Where a runtime is wrong, all of it is."""


@dataclass(frozen=True)
class Format:
    """How a target's file is written, how its name usually ends, what has to be installed for it, and how a quantised
    network is written, where that is another way."""

    write: Callable[[nn.Module, Tensor, Path, int], Run]
    suffix: str
    packages: tuple[str, ...] = ()
    write_in_bytes: Callable[[InBytes, nn.Module, Path, int], Run] | None = None


ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS: dict[Target, Format] = {
    "onnx": Format(formats.to_onnx, ".onnx", ONNX, formats.to_onnx_in_bytes),
    "onnx-compact": Format(formats.to_compact_onnx, ".onnx", ONNX),
    "openvino": Format(formats.to_openvino, ".xml", ("onnx", "onnxscript", "openvino"), formats.to_openvino_in_bytes),
    "pt2": Format(formats.to_pt2, ".pt2"),
    "dense": Format(formats.to_dense, ".safetensors"),
    "executorch": Format(formats.to_executorch, ".pte", ("executorch",)),
    "engine": Format(formats.to_engine, ".splore"),
}


@dataclass(frozen=True)
class Export:
    """A written file.

    Attributes:
        path: where it is.
        bytes: its size, with that of the weights next to it where the format has two files.
        error: the largest difference from the model's outputs on random images, as a share of the largest output; of a
            file in eight bits, from the outputs of the same arithmetic in integers.
        run: the file as its runtime runs it: NumPy (N, ...) to NumPy (N, ...), both float32.
        in_bytes: of a file in eight bits, the convolutions and linear layers that are, and all of them.
    """

    path: Path
    bytes: int
    error: float
    run: Run
    in_bytes: tuple[int, int] | None = None


def export(
    model: nn.Module, path: str | os.PathLike[str], to: Target, example_input: Tensor, threads: int | None = None
) -> Export:
    """Writes a network, decomposed or not, for another runtime, reads the file back, and compares what it computes.

    Args:
        model: the network, on the CPU in float32; it is left as it is, and exported in evaluation mode.
        path: the file to write.
        to: the target.
            - "onnx": an ONNX file of dense layers, A·B + S folded; one that is low-rank only becomes two. Of a model
              with `activation_ranges` (see `splore.quantize`) it is int8, by QuantizeLinear and DequantizeLinear;
            - "onnx-compact": an ONNX file of A, B and sparse S, which ONNX Runtime puts together when it opens it;
            - "openvino": an IR of the same layers as "onnx", .xml and .bin, int8 as there;
            - "pt2": the same layers as a program of torch.export;
            - "dense": the state dict of the dense net, for the original code;
            - "executorch": the same layers as "onnx" for ExecuTorch with XNNPACK, one image at a time;
            - "engine": a program file for splore's own engine, in eight bits where that is faster.
            The others hold the rounded weights of a quantised model in float32.
        example_input: a batch (N, C, H, W) or (N, C) of any size; the batch size stays open.
        threads: of the runtime that checks the file; every usable core by default.

    Raises:
        ImportError: what the target needs is not installed.
        ValueError: the model can't be exported, gives something else than one tensor, or the file computes something
            else, in which case it is removed.
    """
    form, model = FORMATS[to], network_within(model)
    lacking = missing(*form.packages)
    if lacking:
        raise ImportError(f'exporting to {to} needs {", ".join(lacking)}: pip install "splore[export]"')
    path, threads = Path(path), threads or usable_cores()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *example_input.shape[1:], generator=generator)  # a batch of one would be taken for a constant
    as_bytes = form.write_in_bytes if getattr(model, "activation_ranges", None) else None
    with evaluating(model):
        results = run_torch(model, [x.numpy()])
        if len(results) != 1:
            raise ValueError(f"expected a model that gives one tensor, found {len(results)}")
        expected, net = results[0], None
        try:
            if as_bytes is None:
                run = form.write(model, x, path, threads)
            else:
                net = in_bytes(model, x)
                expected = net(x.numpy())
                run = as_bytes(net, model, path, threads)
        except (ImportError, OSError):
            raise
        except Exception as failure:  # exporters have no error in common
            other = "; the other targets take its rounded weights in float32" if as_bytes else ""
            raise ValueError(f"the model can't be exported to {to}: {_first_line(failure)}{other}") from failure
    found = np.concatenate([run(x.numpy()), run(x.numpy()[:1])])
    expected = np.concatenate([expected, expected[:1]])
    error = float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
    files = [path, path.with_suffix(".bin")] if to == "openvino" else [path]
    if not error <= (TOLERANCE if net is None else TOLERANCE_IN_BYTES):
        for file in files:
            file.unlink()
        raise ValueError(
            f"expected the outputs of the model from {path}, found others by {error:.1e} of the largest: the file is "
            "removed; another target may do"
        )
    size = sum(file.stat().st_size for file in files)
    return Export(path, size, error, run, None if net is None else net.convolutions)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
