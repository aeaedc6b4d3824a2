"""A part of a captured model that stays in torch."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from splore.capture.lowering import Exported, module_name
from splore.capture.onnx_segment import faster
from splore.capture.partition import Piece, is_batch, tells_batch
from splore.engine.in_torch import SegmentInTorch


class _Timed(fx.Interpreter):
    """Runs a graph and notes how long each operator takes."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.ms: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - what the operator gives
        start = time.perf_counter()
        found = super().run_node(n)
        if n.op == "call_function":
            name = f"{n.target} ({module_name(n)})"
            self.ms[name] = self.ms.get(name, 0.0) + 1e3 * (time.perf_counter() - start)
        return found


class _Results(nn.Module):
    """A model that gives a tuple of the tensors that its model gives in whatever structure."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(leaf for leaf in tree_leaves(self.model(*inputs)) if isinstance(leaf, Tensor))


@dataclass(frozen=True)
class TorchSegment:
    """Runs in torch: `graph` takes values and gives a tuple of them.

    `batched` says of which values the first dimension is the batch, and `reasons` why it is no program, by operator.
    """

    graph: nn.Module
    batched: tuple[bool, ...]
    reasons: Mapping[str, str]
    runtime = "torch"
    note = ""

    @torch.no_grad()
    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        return self.graph(*values)

    def faster(self, threads: int, *values: Tensor) -> SegmentInTorch:
        """What runs this part faster on values like these: torch, or ONNX Runtime."""
        return faster(self, self.graph, self.batched, values, threads)

    @torch.no_grad()
    def costs(self, *values: Tensor) -> dict[str, float]:
        """The milliseconds of each operator, by the names that `reasons` has."""
        assert isinstance(self.graph, fx.GraphModule)
        timed = _Timed(self.graph)
        timed.run(*values)  # what is made at first is made now
        timed.ms.clear()
        timed.run(*values)
        return timed.ms

    def digest(self, update: Callable[[bytes], object]) -> None:
        """Tells all that decides what it gives: its operators and its constants."""
        update(str(getattr(self.graph, "graph", self.graph)).encode())
        for name, tensor in self.graph.state_dict().items():
            update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

    @classmethod
    def whole(cls, model: nn.Module, inputs: int) -> "TorchSegment":
        """A model of so many inputs."""
        root, graph = nn.Module(), fx.Graph()
        root.add_module("model", _Results(model))
        given = tuple(graph.placeholder(f"x{number}") for number in range(inputs))  # exporters want them by name
        graph.output(graph.call_module("model", given))
        return cls(fx.GraphModule(root, graph), (True,) * inputs, {})

    @classmethod
    def of(cls, piece: Piece, model: Exported) -> "TorchSegment":
        """The nodes of a piece of an exported graph as a module of their own."""
        root, graph = nn.Module(), fx.Graph()
        copied = {source: graph.placeholder(f"x{number}") for number, source in enumerate(piece.inputs)}
        batches = [source for source in piece.inputs if tells_batch(source, model)]

        def copy(node: fx.Node) -> fx.Node:
            if node not in copied:
                if node in model.constants:
                    root.register_buffer(node.name, model.constants[node])
                    copied[node] = graph.get_attr(node.name)
                elif is_batch(node, model):
                    # Any tensor of images tells it; the one that was asked may be in another segment.
                    copied[node] = graph.call_function(torch.ops.aten.sym_size.int, (copied[batches[0]], 0))
                else:
                    copied[node] = graph.node_copy(node, copy)
                    if node.target is torch.ops.aten.view.default:  # of what a program made, in another order
                        copied[node].target = torch.ops.aten.reshape.default
            return copied[node]

        for node in piece.nodes:
            copy(node)
        graph.output(tuple(copy(output) for output in piece.outputs))
        batched = tuple(tells_batch(source, model) for source in piece.inputs)
        return cls(fx.GraphModule(root, graph), batched, piece.reasons)
