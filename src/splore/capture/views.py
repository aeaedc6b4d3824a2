"""How a tensor lies in a value of a program.

A program's values are (C, H, W) for each image. A tensor of any dimensions is a view of one: each of its dimensions
counts through factors, steps along the value's axes, the last one fastest. So transposes, reshapes, slices and copies
cost nothing until an operation wants its numbers somewhere else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from splore.engine.program import Shape
from splore.engine.tensor_ops import Factor
from splore.engine.weight import Floats

Factors = tuple[Factor, ...]
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class View:
    """A tensor with the factors of each dimension. The batch is the outermost part of the dimension `batch`, whose
    factors are those of one image; but where it was joined to dimensions before it, these are `outer`."""

    value: int
    dims: tuple[Factors, ...]
    batch: int = 0
    offset: Shape = (0, 0, 0)
    outer: Factors = ()

    @property
    def sizes(self) -> Sizes:
        """Of each dimension, as if the batch were one."""
        sizes = [prod(factor.size for factor in dim) for dim in self.dims]
        sizes[self.batch] *= prod(factor.size for factor in self.outer)
        return tuple(sizes)

    def factors(self, dims: Iterable[int]) -> Factors:
        """Of several dimensions as one."""
        return merged(factor for dim in dims for factor in self.dims[dim])

    def permuted(self, order: Sequence[int]) -> "View":
        return replace(self, dims=tuple(self.dims[dim] for dim in order), batch=list(order).index(self.batch))

    def inserted(self, dim: int) -> "View":
        """With a dimension of one there."""
        dims = (*self.dims[:dim], (), *self.dims[dim:])
        return replace(self, dims=dims, batch=self.batch + (dim <= self.batch))

    def removed(self, dim: int) -> "View":
        """Without a dimension of one."""
        return replace(self, dims=self.dims[:dim] + self.dims[dim + 1 :], batch=self.batch - (dim < self.batch))

    def reshaped(self, sizes: Sizes, batch: int) -> "View | None":
        """With other dimensions; None where they cut through a factor."""
        first = merged([*self.factors(range(self.batch)), *self.outer])
        total, wanted = prod(factor.size for factor in first), prod(sizes[:batch])
        if total % wanted or sizes[batch] % (total // wanted):
            return None
        outer = total // wanted
        before = regrouped(first, (*sizes[:batch], outer))
        last = self.factors(range(self.batch, len(self.dims)))
        after = regrouped(last, (sizes[batch] // outer, *sizes[batch + 1 :]))
        if before is None or after is None:
            return None
        return replace(self, dims=(*before[:-1], *after), batch=batch, outer=before[-1])

    def sliced(self, dim: int, start: int, step: int, count: int) -> "View | None":
        """With `count` places of a dimension, `step` apart; None where it has several factors."""
        if self.sizes[dim] == 1 or (start, step, count) == (0, 1, self.sizes[dim]):
            return self
        if len(self.dims[dim]) != 1:
            return None
        (factor,) = self.dims[dim]
        on = start * factor.stride
        c, height, width = (first + (on if axis == factor.axis else 0) for axis, first in enumerate(self.offset))
        one = merged([Factor(factor.axis, count, factor.stride * step)])
        return replace(self, dims=(*self.dims[:dim], one, *self.dims[dim + 1 :]), offset=(c, height, width))

    def expanded(self, sizes: Sizes) -> "View":
        """With as many copies of each dimension of one as wanted."""
        dims = [
            (Factor(2, size, 0),) if size > 1 and not dim else dim for dim, size in zip(self.dims, sizes, strict=True)
        ]
        return replace(self, dims=tuple(dims))

    def covers(self, shape: Shape) -> bool:
        """Whether it has each number of a value of this shape once."""
        factors = [*self.outer, *(factor for dim in self.dims for factor in dim)]
        return self.offset == (0, 0, 0) and all(
            tiles([f for f in factors if f.axis == axis], size) for axis, size in enumerate(shape)
        )

    def filled(self, shape: Shape, tensor: Floats) -> Floats:
        """The value (C, H, W) that this covers, with the numbers of a tensor that broadcasts to it."""
        array = np.empty(shape, np.float32)
        factors = [factor for dim in self.dims for factor in dim]
        strides = [factor.stride * array.strides[factor.axis] for factor in factors]
        places = as_strided(array, [factor.size for factor in factors], strides)
        places[...] = np.broadcast_to(tensor, self.sizes).reshape(places.shape)
        return array


def merged(factors: Iterable[Factor]) -> Factors:
    """The same steps by as few factors as possible."""
    found: list[Factor] = []
    for factor in factors:
        if factor.size == 1:
            continue
        last = found[-1] if found else None
        if last is not None and last.axis == factor.axis and last.stride == factor.size * factor.stride:
            found[-1] = Factor(factor.axis, last.size * factor.size, factor.stride)
        else:
            found.append(factor)
    return tuple(found)


def regrouped(factors: Factors, sizes: Sizes) -> list[Factors] | None:
    """The factors shared out to dimensions of these sizes; None where one would have to be cut unevenly."""
    left, groups = list(reversed(factors)), []
    for size in sizes:
        group: list[Factor] = []
        while size > 1 and left:
            axis, count, stride = left.pop()
            if size % count == 0:
                group.append(Factor(axis, count, stride))
                size //= count
            elif count % size == 0:
                group.append(Factor(axis, size, stride * (count // size)))
                left.append(Factor(axis, count // size, stride))
                size = 1
            else:
                return None
        if size > 1:
            return None
        groups.append(merged(group))
    return None if left else groups


def tiles(factors: Sequence[Factor], size: int) -> bool:
    """Whether factors along one axis have each of its places once."""
    reach = 1
    for factor in sorted(factors, key=lambda factor: factor.stride):
        if factor.size > 1:
            if factor.stride != reach:
                return False
            reach *= factor.size
    return reach == size


def placed(sizes: Sizes, batch: int, value: int, *axes: Sequence[int]) -> View:
    """A view of a value whose channels, height and width are so many of the tensor's dimensions, each in order."""
    dims: list[Factors] = [()] * len(sizes)
    for axis, numbers in enumerate(axes):
        stride = 1
        for dim in reversed(numbers):
            dims[dim] = merged([Factor(axis, sizes[dim], stride)])
            stride *= sizes[dim]
    return View(value, tuple(dims), batch)


def as_they_are(count: int) -> tuple[list[int], list[int], list[int]]:
    """Which of a tensor's dimensions are the channels, the height and the width of a value with the same order of
    numbers."""
    if count <= 3:
        return list(range(min(2, count))), [], list(range(2, count))
    return [0, 1], [2], list(range(3, count))
