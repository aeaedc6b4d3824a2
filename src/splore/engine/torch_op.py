"""The engine as one operator of torch, so that torch.compile and torch.export see a single node."""

from itertools import count
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from splore.engine.engine import Engine

_engines: "WeakValueDictionary[int, Engine]" = WeakValueDictionary()
_handles = count()


@torch.library.custom_op("splore::engine", mutates_args=(), device_types="cpu")
def run_engine(x: Tensor, handle: int, output: list[int]) -> Tensor:
    """The result (N, *output) of the engine with this handle for a batch x."""
    engine = _engines.get(handle)
    if engine is None:
        raise RuntimeError("this graph refers to an engine of another process: load the engine, and export it again")
    return engine(x)


@run_engine.register_fake
def _(x: Tensor, handle: int, output: list[int]) -> Tensor:
    return x.new_empty(x.shape[0], *output)


class EngineModule(nn.Module):
    """Holds an engine, and calls it as `torch.ops.splore.engine`: (N, *engine.input) -> (N, *engine.output)."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine, self.handle = engine, next(_handles)
        _engines[self.handle] = engine

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.splore.engine(x, self.handle, list(self.engine.output))
