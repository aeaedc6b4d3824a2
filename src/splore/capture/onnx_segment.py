"""A part of a model that stays in torch, run by ONNX Runtime where that is installed and faster."""

import contextlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from splore.engine import openmp
from splore.engine.in_torch import SegmentInTorch
from splore.engine.program_segment import median_ms

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
WORTH = 0.1  # milliseconds in torch from which a part is tried: less is not worth the seconds that exporting takes
TOLERANCE = 1e-4  # of the largest result


class OnnxSegment:
    """Runs a part of a model in ONNX Runtime; in a forked child, to which its threads don't come along, in torch."""

    runtime = "ONNX Runtime"

    def __init__(self, segment: SegmentInTorch, model: bytes, threads: int, note: str = "") -> None:
        import onnxruntime

        self.segment, self.model, self.threads, self.note = segment, model, threads, note
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the next segment needs the cores
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._names = [argument.name for argument in self._session.get_inputs()]

    @property
    def reasons(self) -> Mapping[str, str]:
        return self.segment.reasons

    def __call__(self, *values: Tensor) -> Sequence[Tensor]:
        if openmp.forked:
            return self.segment(*values)
        given = dict(zip(self._names, (np.ascontiguousarray(value.numpy()) for value in values), strict=True))
        return [torch.from_numpy(result) for result in self._session.run(None, given)]

    def faster(self, threads: int, *values: Tensor) -> SegmentInTorch:
        return self

    def costs(self, *values: Tensor) -> Mapping[str, float]:
        return self.segment.costs(*values)

    def digest(self, update: Callable[[bytes], object]) -> None:
        self.segment.digest(update)

    def __reduce__(self) -> tuple:
        return _read, (self.segment, self.model, self.threads, self.note)


def faster(
    segment: SegmentInTorch, graph: nn.Module, batched: Sequence[bool], values: Sequence[Any], threads: int
) -> SegmentInTorch:
    """What runs a part faster on values like these: torch, or ONNX Runtime. Each is timed alone.

    Torch, where ONNX Runtime is not installed, can't take the part, or computes something else. `batched` says of which
    values the first dimension is the batch.
    """
    if not all(importlib.util.find_spec(package) for package in PACKAGES):
        return segment
    if not all(isinstance(value, Tensor) for value in values):
        return segment
    in_torch = _ms(segment, values)
    if in_torch < WORTH:
        return segment
    try:
        other = OnnxSegment(segment, exported(graph, batched, values), threads)
        if not all(map(_close, other(*values), segment(*values))):
            return segment
        in_onnx = _ms(other, values)
    except Exception:  # exporters have no error in common, and torch computes it all
        return segment
    if in_onnx > 0.95 * in_torch:
        return segment
    other.note = f" {in_onnx:.3g} ms, for {in_torch:.3g} ms in torch"
    return other


def exported(graph: nn.Module, batched: Sequence[bool], values: Sequence[Tensor]) -> bytes:
    """A graph as an ONNX model of an open batch size."""
    batch = torch.export.Dim("batch", min=1)
    # A batch of one would be taken for a constant.
    examples = tuple(torch.cat([x, x]) if is_batch else x for x, is_batch in zip(values, batched, strict=True))
    open_sizes = [{0: batch} if is_batch else None for is_batch in batched]
    with tempfile.TemporaryDirectory() as folder, quiet_exporters():
        program = torch.onnx.export(
            graph, examples, dynamo=True, dynamic_shapes=open_sizes, external_data=False, verbose=False
        )
        assert program is not None
        program.save(path := Path(folder) / "part.onnx")
        return path.read_bytes()


@contextlib.contextmanager
def quiet_exporters() -> Iterator[None]:
    """Without the warnings and lines of the exporters, and without gradients."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _read(segment: SegmentInTorch, model: bytes, threads: int, note: str) -> SegmentInTorch:
    """An OnnxSegment, or its part in torch where ONNX Runtime is not installed."""
    return OnnxSegment(segment, model, threads, note) if importlib.util.find_spec("onnxruntime") else segment


def _ms(segment: SegmentInTorch, values: Sequence[Tensor]) -> float:
    (ms,) = median_ms(lambda: segment(*values))
    return ms


def _close(found: Tensor, expected: Any) -> bool:  # noqa: ANN401 - what an operator of torch gives
    if not isinstance(expected, Tensor) or found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    return torch.allclose(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
