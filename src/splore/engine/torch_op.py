"""The engine as one operator of torch, so that torch.compile and torch.export see a single node."""

import hashlib
import json
from weakref import WeakSet

import torch
from torch import Tensor, nn

from splore.engine import program_file
from splore.engine.engine import Engine
from splore.engine.program import arrays
from splore.engine.program_segment import ProgramSegment

_engines: dict[str, "WeakSet[Engine]"] = {}


@torch.library.custom_op("splore::engine", mutates_args=(), device_types="cpu")
def run_engine(x: Tensor, handle: str, output: list[int]) -> Tensor:
    """The result (N, *output) of the engine with this handle for a batch x, contiguous and in memory of its own."""
    engine = next(iter(_engines.get(handle, ())), None)
    if engine is None:
        raise RuntimeError("this graph refers to an engine that is not here: load or compile it, and call as_module()")
    y = engine(x)
    return y.clone(memory_format=torch.contiguous_format) if y.data_ptr() == x.data_ptr() else y.contiguous()


@run_engine.register_fake
def _(x: Tensor, handle: str, output: list[int]) -> Tensor:
    if x.dtype != torch.float32:
        raise ValueError(f"expected float32, found {x.dtype}: an engine has one type, under autocast too")
    return x.new_empty(x.shape[0], *output)


class EngineModule(nn.Module):
    """Holds an engine, and calls it as `torch.ops.splore.engine`: (N, *engine.input) -> (N, *engine.output).

    `handle` is the engine's content: a graph that was exported in one process runs that engine in another, or none.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine, self.handle = engine, _content(engine)
        _engines.setdefault(self.handle, WeakSet()).add(engine)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.splore.engine(x, self.handle, list(self.engine.output))


def _content(engine: Engine) -> str:
    """A digest of all that decides what the engine computes."""
    digest = hashlib.sha256(repr((engine._flow.reads, engine._flow.results, engine.input, engine.output)).encode())
    for segment in engine._segments:
        if isinstance(segment, ProgramSegment):
            program = segment.program
            structure = json.dumps(program_file.describe(program))
            tensors = {f"{i}.{name}": array for i, op in enumerate(program.ops) for name, array in arrays(op)}
            digest.update(program_file.checksum(structure, tensors).encode())
        else:
            segment.digest(digest.update)
    return digest.hexdigest()
