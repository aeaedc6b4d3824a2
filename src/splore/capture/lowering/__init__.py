"""One ATen operator of an exported model at a time, to the operations of a program."""

from torch import fx

from splore.capture.lowering import attention, convolutions, pointwise, resampling, shapes
from splore.capture.lowering.builder import Builder
from splore.capture.lowering.exported import Exported, Unsupported, arguments, module_name

__all__ = ["Builder", "Exported", "Unsupported", "arguments", "lower", "module_name"]

LOWERINGS = convolutions.LOWERINGS | pointwise.LOWERINGS | shapes.LOWERINGS | resampling.LOWERINGS | attention.LOWERINGS


def lower(node: fx.Node, build: Builder) -> None:
    """Adds the operations of a node to the draft. Raises `Unsupported` with the reason where the engine can't express
    it; the draft may then hold operations that nobody reads."""
    lowering = LOWERINGS.get(node.target)
    if lowering is None:
        raise Unsupported("the engine has no such operator")
    build.start(node)
    found = lowering(build, *arguments(node))
    if found is not None:
        build.views[node] = found
