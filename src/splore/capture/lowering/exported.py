"""What the lowerings share: the exported model they look at, and what they give."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from splore.design.layers import LowRankSparse
from splore.engine.weight import Floats

Argument = Any  # of an operator: a node, a number, a list of either


class Unsupported(Exception):
    """The engine has no operation for an operator, or not with these arguments."""


@dataclass(frozen=True)
class Exported:
    """What the nodes of an exported model refer to."""

    batch: object  # the symbolic batch size
    constants: dict[fx.Node, Any]  # parameters, buffers, and what is computed from them alone: tensors, or some of them
    layers: dict[fx.Node, LowRankSparse]  # the decomposed layers, by the node of their weight
    names: dict[fx.Node, str]  # of the layers, by the nodes of their parameters

    def sizes(self, node: fx.Node) -> tuple[tuple[int, ...], int]:
        """The sizes of a node's tensor, as if the batch were one, and the dimension of the batch."""
        found = node.meta.get("val") if isinstance(node, fx.Node) and node not in self.constants else None
        if not isinstance(found, Tensor):
            raise Unsupported("it reads something that is no tensor of images")
        if found.dtype != torch.float32:
            raise Unsupported(f"it computes with {found.dtype}")
        sizes = [size if isinstance(size, int) else self.of_one(size) for size in found.shape]
        batches = [dim for dim, size in enumerate(found.shape) if not isinstance(size, int)]
        if len(batches) != 1 or 0 in sizes:
            raise Unsupported(f"its shape is {tuple(found.shape)}: one dimension must be the batch")
        return tuple(sizes), batches[0]

    def of_one(self, size: object) -> int:
        """What a size that is a multiple of the batch is for a batch of one."""
        expression, batch = size.node.expr, self.batch.node.expr  # type: ignore[attr-defined]
        one, *more = (int(expression.subs(batch, count)) for count in (1, 6, 35))
        if more != [6 * one, 35 * one]:
            raise Unsupported(f"the size {size}, which is no multiple of the batch")
        return one

    def array(self, node: fx.Node) -> Floats:
        """A constant tensor."""
        if node not in self.constants:
            raise Unsupported(f"its {node.name} depends on the input")
        return np.ascontiguousarray(self.constants[node].numpy(), np.float32)


def arguments(node: fx.Node) -> list[Argument]:
    """The arguments of a node in the order of the operator's schema, its defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return list(node.args)
    schema = node.target._schema.arguments
    given = dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs
    return [given.get(argument.name, argument.default_value) for argument in schema]


def module_name(node: fx.Node) -> str:
    """The path of the module that made a node, or else the node's own name."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return (stack[-1][0] if stack else "") or node.name


def pair(numbers: list[int] | int) -> tuple[int, int]:
    """(rows, columns) of an argument that may hold one number for both."""
    first, *rest = (numbers,) if isinstance(numbers, int) else numbers
    second = rest[0] if rest else first
    if not isinstance(first, int) or not isinstance(second, int):
        raise Unsupported("a size that depends on the batch")
    return first, second
