"""What the lowerings share: the exported model they look at, and what they give."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from splore.capture.fuse import Pad, Select
from splore.design.layers import LowRankSparse
from splore.engine.program import Op, Shape
from splore.engine.weight import Floats

Argument = Any  # of an operator: a node, a number, a list of either


class Unsupported(Exception):
    """The engine has no operation for an operator, or not with these arguments."""


@dataclass(frozen=True)
class Lowered:
    """The operations of a node: the first reads `sources`, each other the one before. None: nothing changes."""

    sources: tuple[fx.Node, ...]
    ops: tuple[Op | Pad | Select, ...] = ()


@dataclass(frozen=True)
class Exported:
    """What the nodes of an exported model refer to."""

    batch: object  # the symbolic batch size
    constants: dict[fx.Node, Any]  # parameters, buffers, and what is computed from them alone: tensors, or some of them
    layers: dict[fx.Node, LowRankSparse]  # the decomposed layers, by the node of their weight
    names: dict[fx.Node, str]  # of the layers, by the nodes of their parameters

    def shape(self, node: fx.Node) -> Shape:
        """The value of a node: (C, H, W) of a tensor (N, C, H, W); (C, 1, 1) of (N, C) or (N, C, 1)."""
        found = node.meta.get("val") if isinstance(node, fx.Node) and node not in self.constants else None
        if not isinstance(found, Tensor):
            raise Unsupported("it reads something that is no tensor of images")
        if found.dtype != torch.float32:
            raise Unsupported(f"it computes with {found.dtype}")
        sizes = tuple(found.shape[1:])
        if found.dim() < 2 or str(found.shape[0]) != str(self.batch) or not all(isinstance(s, int) for s in sizes):
            raise Unsupported(f"its shape is {tuple(found.shape)}: only the first dimension may be the batch")
        if found.dim() > 4 or (found.dim() == 3 and sizes[1] != 1):
            raise Unsupported(f"its shape is {tuple(found.shape)}")
        c, height, width = (*sizes, 1, 1)[:3]
        return c, height, width

    def is_constant(self, argument: object) -> bool:
        """Whether an argument is a number, or a tensor that does not depend on the input."""
        return isinstance(argument, int | float) or argument in self.constants

    def channels(self, constant: object, like: fx.Node) -> Floats:
        """A constant that is the same for each image and pixel of `like`: one number for each channel (C)."""
        dims, c = like.meta["val"].dim(), self.shape(like)[0]
        tensor = self.constants[constant] if isinstance(constant, fx.Node) else torch.tensor(constant)
        try:
            return tensor.float().broadcast_to(1, c, *[1] * (dims - 2)).reshape(-1).contiguous().numpy()
        except RuntimeError:
            raise Unsupported(f"it combines images with a constant of shape {tuple(tensor.shape)}") from None

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


def dims(node: fx.Node) -> int:
    """The number of dimensions of a tensor."""
    return node.meta["val"].dim()


def pair(numbers: list[int] | int) -> tuple[int, int]:
    """(rows, columns) of an argument that may hold one number for both."""
    first, *rest = (numbers,) if isinstance(numbers, int) else numbers
    second = rest[0] if rest else first
    if not isinstance(first, int) or not isinstance(second, int):
        raise Unsupported("a size that depends on the batch")
    return first, second
