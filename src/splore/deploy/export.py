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
from splore.deploy.runtimes import Run, missing
from splore.design.wrappers import network_within
from splore.engine.engine import run_torch
from splore.forward import evaluating
from splore.machine import usable_cores

Target = Literal["onnx", "onnx-compact", "openvino", "pt2", "dense", "executorch", "engine"]
TOLERANCE = 1e-4
"""How far an export's outputs may lie from the model's, as a share of the largest."""


@dataclass(frozen=True)
class Format:
    """How a target's file is written, how its name usually ends, and what has to be installed for it."""

    write: Callable[[nn.Module, Tensor, Path, int], Run]
    suffix: str
    packages: tuple[str, ...] = ()


ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS: dict[Target, Format] = {
    "onnx": Format(formats.to_onnx, ".onnx", ONNX),
    "onnx-compact": Format(formats.to_compact_onnx, ".onnx", ONNX),
    "openvino": Format(formats.to_openvino, ".xml", ("onnx", "onnxscript", "openvino")),
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
        error: the largest difference from the model's outputs on random images, as a share of the largest output.
        run: the file as its runtime runs it: NumPy (N, ...) to NumPy (N, ...), both float32.
    """

    path: Path
    bytes: int
    error: float
    run: Run


def export(
    model: nn.Module, path: str | os.PathLike[str], to: Target, example_input: Tensor, threads: int | None = None
) -> Export:
    """Writes a network, decomposed or not, for another runtime, reads the file back, and compares what it computes.

    Args:
        model: the network, on the CPU in float32; it is left as it is, and exported in evaluation mode.
        path: the file to write.
        to: the target.
            - "onnx": an ONNX file of dense layers, A·B + S folded; one that is low-rank only becomes two;
            - "onnx-compact": an ONNX file of A, B and sparse S, which ONNX Runtime puts together when it opens it;
            - "openvino": an IR of the same layers as "onnx", .xml and .bin;
            - "pt2": the same layers as a program of torch.export;
            - "dense": the state dict of the dense net, for the original code;
            - "executorch": the same layers as "onnx" for ExecuTorch with XNNPACK, one image at a time;
            - "engine": a program file for splore's own engine.
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
    with evaluating(model):
        results = run_torch(model, [x.numpy()])
        if len(results) != 1:
            raise ValueError(f"expected a model that gives one tensor, found {len(results)}")
        try:
            run = form.write(model, x, path, threads)
        except (ImportError, OSError):
            raise
        except Exception as failure:  # exporters have no error in common
            raise ValueError(f"the model can't be exported to {to}: {_first_line(failure)}") from failure
    found = np.concatenate([run(x.numpy()), run(x.numpy()[:1])])
    expected = np.concatenate([results[0], results[0][:1]])
    error = float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
    files = [path, path.with_suffix(".bin")] if to == "openvino" else [path]
    if not error <= TOLERANCE:
        for file in files:
            file.unlink()
        raise ValueError(
            f"expected the outputs of the model from {path}, found others by {error:.1e} of the largest: the file is "
            "removed; another target may do"
        )
    return Export(path, sum(file.stat().st_size for file in files), error, run)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
