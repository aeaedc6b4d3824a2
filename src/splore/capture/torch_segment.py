"""A part of a captured model that stays in torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn


@dataclass(frozen=True)
class TorchSegment:
    """Runs in torch: `graph` takes one tensor and gives one. `reasons` says why it is no program, by operator."""

    graph: nn.Module
    reasons: Mapping[str, str]

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return self.graph(x)

    @classmethod
    def of(
        cls,
        nodes: Iterable[fx.Node],
        source: fx.Node,
        result: fx.Node,
        constants: Mapping[fx.Node, Tensor],
        reasons: Mapping[str, str],
    ) -> "TorchSegment":
        """The nodes of an exported graph, from `source` to `result`, as a module of their own."""
        root, graph = nn.Module(), fx.Graph()
        copied = {source: graph.placeholder("x")}

        def copy(node: fx.Node) -> fx.Node:
            if node not in copied:
                if node in constants:
                    root.register_buffer(node.name, constants[node])
                    copied[node] = graph.get_attr(node.name)
                elif node.target is torch.ops.aten.sym_size.int and node.args[1] == 0:
                    # Every tensor has the same batch size; the one that was asked for may be in another segment.
                    copied[node] = graph.call_function(node.target, (copied[source], 0))
                else:
                    copied[node] = graph.node_copy(node, copy)
            return copied[node]

        for node in nodes:
            copy(node)
        graph.output(copy(result))
        return cls(fx.GraphModule(root, graph), reasons)
