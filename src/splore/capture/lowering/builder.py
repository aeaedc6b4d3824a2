"""What the lowerings of operators build on: a draft of a program, and how each tensor lies in its values."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from torch import Tensor, fx

from splore.capture.fuse import Draft, Pad, Select
from splore.capture.lowering.exported import Exported, Unsupported, module_name
from splore.capture.views import Factors, Sizes, View, as_they_are, merged, placed, regrouped, tiles
from splore.engine.program import Act, Activate, Concat, Conv, Flatten, Op, Shape
from splore.engine.tensor_ops import Constant, Factor, Reorder
from splore.engine.values import window_shape
from splore.engine.weight import Floats


@dataclass
class Builder:
    """A draft that grows by one operator after another.

    Tensors that don't depend on the input, but have the size of the batch, are in `constants`, with a batch of one.
    """

    model: Exported
    draft: Draft = field(default_factory=dict)
    shapes: list[Shape] = field(default_factory=list)
    views: dict[fx.Node, Any] = field(default_factory=dict)  # a view, or several where an operator gives a list
    constants: dict[fx.Node, Tensor] = field(default_factory=dict)
    name: str = ""  # of the module whose operator is at hand
    node: fx.Node = field(init=False)  # that operator

    def read(self, node: fx.Node) -> None:
        """A tensor that comes from elsewhere, as it is."""
        sizes, batch = self.model.sizes(node)
        axes = as_they_are(len(sizes))
        if batch or len(sizes) < 2:
            raise Unsupported("its first dimension is not the batch")
        c, height, width = (prod(sizes[dim] for dim in dims) for dims in axes)
        self.shapes.append((c, height, width))
        self.views[node] = placed(sizes, batch, len(self.shapes) - 1, *axes)

    def read_packed(self, nodes: Sequence[fx.Node]) -> None:
        """Several tensors of an image that come one after another in a vector."""
        start, first = 0, len(self.shapes)
        for node in nodes:
            sizes, batch = self.model.sizes(node)
            if batch:
                raise Unsupported("its first dimension is not the batch")
            view = placed(sizes, batch, first, range(len(sizes)), (), ())
            self.views[node] = replace(view, offset=(start, 0, 0))
            start += prod(sizes)
        self.shapes.append((start, 1, 1))

    def packed(self, nodes: Sequence[fx.Node]) -> int:
        """The value that has several tensors of an image one after another."""
        return self.add(Concat("", ()), *(self.flat(self.view(node)).value for node in nodes))

    def add(self, op: Op | Pad | Select, *inputs: int) -> int:
        """Adds an operation on values; the number of what it gives."""
        value = len(self.shapes)
        named: Any = replace(op, name=op.name or self.name, inputs=inputs)
        try:
            self.shapes.append(self._shape(named, [self.shapes[value] for value in inputs]))
        except ValueError as error:
            raise Unsupported(str(error)) from error
        self.draft[value] = named
        return value

    @staticmethod
    def _shape(op: Any, inputs: Sequence[Shape]) -> Shape:  # noqa: ANN401
        if isinstance(op, Conv):  # its weight may be one that only a draft has
            return (op.bias.size, *window_shape(inputs[0], op.kernel, op.stride, op.pad, op.dilation))
        if isinstance(op, Pad):
            c, height, width = inputs[0]
            return c, height + op.pad[0] + op.pad[2], width + op.pad[1] + op.pad[3]
        if isinstance(op, Select):
            height, width = (-(-side // step) for side, step in zip(inputs[0][1:], op.stride, strict=True))
            return len(op.source), height, width
        return op.shape(*inputs)

    def view(self, node: object, joined: bool = False) -> View:
        """How a tensor lies in a value. Few operators take one whose batch is `joined` to dimensions before it."""
        found = self.views.get(node) if isinstance(node, fx.Node) else None
        if not isinstance(found, View):
            raise Unsupported("it reads something that is no tensor of images")
        if found.outer and not joined:
            raise Unsupported("its batch is joined to a dimension before it")
        return found

    def constant(self, node: object) -> Floats | None:
        """The numbers of an argument that does not depend on the input, None for any other."""
        if isinstance(node, int | float):
            return np.asarray(node, np.float32)
        if not isinstance(node, fx.Node):
            return None
        found = self.constants.get(node, self.model.constants.get(node))
        return np.ascontiguousarray(found.float().numpy(), np.float32) if isinstance(found, Tensor) else None

    def shape(self, view: View) -> Shape:
        """Of the value in which a tensor lies."""
        return self.shapes[view.value]

    def arranged(self, view: View, *axes: Sequence[int]) -> View:
        """The tensor in a value whose channels, height and width are those of its dimensions, each in order."""
        if view.outer:
            raise Unsupported("its batch is joined to a dimension before it")
        factors = [view.factors(dims) for dims in axes]
        return placed(view.sizes, view.batch, self.gathered(view, factors), *axes)

    def gathered(self, view: View, factors: Sequence[Factors]) -> int:
        """The value with these factors of a view along its axes: the view's own where it has them so."""
        shape = self.shape(view)
        whole = [merged([Factor(axis, size, 1)]) for axis, size in enumerate(shape)]
        if view.offset == (0, 0, 0) and list(factors) == whole:
            return view.value
        if view.offset == (0, 0, 0) and list(factors) == [tuple(f for axis in whole for f in axis), (), ()]:
            return self.add(Flatten("", ()), view.value)
        channels, height, width = factors
        steps = [each[0].stride if len(each) == 1 else 0 for each in (height, width)]
        ends = [
            (Factor(axis, -(-shape[axis] // step), step),) for axis, step in zip((1, 2), steps, strict=True) if step
        ]
        if view.offset == (0, 0, 0) and list(factors) == [whole[0], *ends]:  # joins the selections around it
            return self.add(Select("", (), shape[0], tuple(range(shape[0])), (steps[0], steps[1])), view.value)
        return self.add(Reorder("", (), channels, height, width, view.offset), view.value)

    def with_channels(self, view: View, channels: Sequence[int]) -> View:
        """The tensor in a value whose channels are those dimensions; the others are its pixels in any order."""
        others = [dim for dim in range(len(view.dims)) if dim not in channels]
        pixels = [*view.outer, *(factor for dim in others for factor in view.dims[dim])]
        shape = self.shape(view)
        in_place = view.offset == (0, 0, 0) and view.factors(channels) == merged([Factor(0, shape[0], 1)])
        for axis in (1, 2):
            in_place = in_place and tiles([factor for factor in pixels if factor.axis == axis], shape[axis])
        if in_place and all(factor.axis for factor in pixels):
            return view
        return self.arranged(view, channels, (), others)

    def whole(self, view: View) -> View:
        """The tensor in a value that has nothing else; along the axes where it lies already."""
        if view.covers(self.shape(view)):
            return view
        factors: list[Factors] = []
        numbers = [(dim, place) for dim, each in enumerate(view.dims) for place in range(len(each))]
        dims = [list(each) for each in view.dims]
        for axis in range(3):
            mine = [at for at in numbers if view.dims[at[0]][at[1]].axis == axis]
            mine.sort(key=lambda at: -view.dims[at[0]][at[1]].stride)
            factors.append(merged(view.dims[dim][place] for dim, place in mine))
            stride = 1
            for dim, place in reversed(mine):
                dims[dim][place] = Factor(axis, dims[dim][place].size, stride)
                stride *= dims[dim][place].size
        value = self.gathered(view, factors)
        return View(value, tuple(merged(dim) for dim in dims), view.batch)

    def like(self, view: View, model: View, full: bool = False) -> int:
        """The value of a tensor that broadcasts to `model`, which is whole, with its numbers where `model` has them.

        Where it has one number for all channels or for all pixels, so has the value, unless it shall be `full`.
        """
        parts: list[list[tuple[Factor, Factors]]] = [[], [], []]
        for mine, theirs in zip(view.dims, model.dims, strict=True):
            sizes = tuple(factor.size for factor in theirs)
            groups = regrouped(mine, sizes) if mine else [()] * len(theirs)
            if groups is None:
                return self.like(self.flat(view), model, full)
            for factor, group in zip(theirs, groups, strict=True):
                parts[factor.axis].append((factor, group))
        one_pixel = not any(group for axis in (1, 2) for _, group in parts[axis])
        factors = []
        for axis, each in enumerate(parts):
            each.sort(key=lambda part: -part[0].stride)
            one = not full and (one_pixel if axis else not any(group for _, group in each))
            copies = [group or (Factor(2, factor.size, 0),) for factor, group in each]
            factors.append(() if one else merged(factor for group in copies for factor in group))
        return self.gathered(view, factors)

    def flat(self, view: View) -> View:
        """The tensor as one long row of channels, in order."""
        return self.arranged(view, range(len(view.dims)), (), ())

    def reshaped(self, view: View, sizes: Sizes, batch: int) -> View:
        found = view.reshaped(sizes, batch)
        if found is None:
            found = self.flat(view).reshaped(sizes, batch)
        if found is None:
            raise Unsupported(f"a reshape of {view.sizes} to {sizes} across the batch")
        return found

    def filled(self, model: View, tensor: Floats) -> View:
        """A constant with its numbers where `model`, which is whole, has them."""
        return replace(model, value=self.constant_value(model.filled(self.shape(model), tensor)))

    def constant_value(self, data: Floats) -> int:
        """A value (C, H, W) that is the same for every image."""
        return self.add(Constant("", (), data))

    def finish(self, node: fx.Node) -> int:
        """The value of a tensor in the order of its numbers."""
        view = self.view(node)
        value = self.arranged(view, *as_they_are(len(view.dims))).value
        return value if self.draft else self.add(Activate("", (), Act.NONE), value)

    def start(self, node: fx.Node) -> None:
        """Turns to the operator of a node: what follows is named after its module."""
        self.name, self.node = module_name(node), node


def dims_of(numbers: Iterable[int] | int | None, count: int) -> list[int]:
    """Numbers of dimensions, which may count from the end; None or none for all."""
    each = [numbers] if isinstance(numbers, int) else list(numbers or range(count))
    return sorted(number % count for number in each)
