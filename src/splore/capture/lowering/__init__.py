"""One ATen operator of an exported model at a time, to the operations of a program."""

from torch import Tensor, fx

from splore.capture.lowering import convolutions, pointwise, shapes
from splore.capture.lowering.exported import Exported, Lowered, Unsupported, arguments, module_name

__all__ = ["Exported", "Lowered", "Unsupported", "arguments", "lower", "module_name"]

LOWERINGS = convolutions.LOWERINGS | pointwise.LOWERINGS | shapes.LOWERINGS


def lower(node: fx.Node, model: Exported) -> Lowered:
    """The operations of a node. Raises `Unsupported` with the reason where the engine can't express it."""
    lowering = LOWERINGS.get(node.target)
    if lowering is None:
        raise Unsupported("the engine has no such operator")
    lowered = lowering(node, model, *arguments(node))
    for tensor in (*lowered.sources, node):
        if isinstance(tensor.meta["val"], Tensor):
            model.shape(tensor)
    return lowered
