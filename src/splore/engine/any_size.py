"""Programs for images of any height and width: what of their operations depends on the size, and how.

Most operations don't care. Those that do have a rule: a pool over all pixels, an order of numbers whose steps count
rows or columns, an enlargement. `resized` makes a program for another size by them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from splore.engine.program import Pool, Program, Shape
from splore.engine.tensor_ops import Factor, Reorder, Resample
from splore.engine.values import MAX_ATTRIBUTE
from splore.engine.weight import Floats, Indices
from splore.files import numbers, typed

Taps = tuple[Indices, Floats]
"""The places (outputs, taps) that rows or columns are taken from, and their weights."""


class Count(NamedTuple):
    """(constant + rows h + columns w + pixels h w) / divisor, of a map of h rows and w columns."""

    constant: int = 0
    rows: int = 0
    columns: int = 0
    pixels: int = 0
    divisor: int = 1

    def of(self, shape: Shape) -> int:
        """The number for a map (C, h, w). ValueError where it is no whole one, or below 0."""
        _, h, w = shape
        total = self.constant + self.rows * h + self.columns * w + self.pixels * h * w
        if total % self.divisor or total < 0:
            raise ValueError(f"a map of {h} x {w} does not divide as it should")
        return total // self.divisor


@dataclass(frozen=True)
class Whole:
    """A pool over all pixels."""

    def apply(self, op: Pool, shape: Shape, image: Shape) -> Pool:
        return replace(op, kernel=shape[1:], stride=shape[1:])


@dataclass(frozen=True)
class Order:
    """The numbers of a `Reorder`: its offset, then size and stride of each factor."""

    counts: tuple[Count, ...]

    def apply(self, op: Reorder, shape: Shape, image: Shape) -> Reorder:
        found = [count.of(shape) for count in self.counts]
        return with_order(op, found)


@dataclass(frozen=True)
class Enlarge:
    """A `Resample` whose taps follow from the sizes alone: the kind of each axis (rows, columns), and how many of them
    come out, of the map that it reads, or of the image where `of_image`."""

    kinds: tuple[str, str]
    counts: tuple[Count, Count]
    of_image: bool = False

    def apply(self, op: Resample, shape: Shape, image: Shape) -> Resample:
        sides = [count.of(image if self.of_image else shape) for count in self.counts]
        if not 1 <= min(sides) <= max(*sides, *shape[1:]) <= MAX_ATTRIBUTE:
            raise ValueError(f"a map of {sides[0]} x {sides[1]}")
        rows, columns = (KINDS[kind](size, side) for kind, size, side in zip(self.kinds, shape[1:], sides, strict=True))
        return replace(op, row_index=rows[0], row_weight=rows[1], column_index=columns[0], column_weight=columns[1])


Rule = Whole | Order | Enlarge


@dataclass(frozen=True)
class AnySize:
    """What a program needs for other sizes: rules by the numbers of operations. Height and width may differ from the
    program's own by multiples of `step`."""

    step: int
    rules: Mapping[int, Rule]

    def to_json(self) -> dict[str, Any]:
        names = {kind: name for name, kind in NAMES.items()}
        rules = [[index, names[type(rule)], *_words(rule)] for index, rule in sorted(self.rules.items())]
        return {"step": self.step, "rules": rules}

    @classmethod
    def from_json(cls, value: object) -> "AnySize":
        """What `to_json` gave. Raises ValueError where it is none."""
        found = typed(value, dict)
        step = typed(found.get("step"), int)
        if step < 1:
            raise ValueError(f"expected a step of at least 1, found {step}")
        rules: dict[int, Rule] = {}
        for each in typed(found.get("rules"), list):
            index, name, *words = typed(each, list) if len(typed(each, list)) > 1 else [0, ""]
            rules[typed(index, int)] = _rule(name, words)
        return cls(step, rules)


NAMES: dict[str, type] = {"whole": Whole, "order": Order, "enlarge": Enlarge}


def _words(rule: Rule) -> list[Any]:
    if isinstance(rule, Order):
        return [list(count) for count in rule.counts]
    return [] if isinstance(rule, Whole) else [list(rule.kinds), [list(count) for count in rule.counts], rule.of_image]


def _rule(name: object, words: list[Any]) -> Rule:
    if name == "whole" and not words:
        return Whole()
    if name == "order":
        return Order(tuple(_count(word) for word in words))
    if name == "enlarge" and len(words) == 3:
        kinds, counts = ([*typed(word, list)] for word in words[:2])
        if len(kinds) == len(counts) == 2 and all(isinstance(kind, str) and kind in KINDS for kind in kinds):
            return Enlarge((kinds[0], kinds[1]), (_count(counts[0]), _count(counts[1])), typed(words[2], bool))
    raise ValueError(f"expected a rule for other sizes, found {[name, *words]!r:.80}")


def _count(value: object) -> Count:
    found = numbers(value)
    if len(found) != 5 or found[4] < 1 or max(map(abs, found)) > 1 << 30:
        raise ValueError(f"expected five numbers of a rule, found {value!r:.80}")
    return Count(*found)


def resized(program: Program, any_size: AnySize, image: Shape) -> Program:
    """The program for images (C, H, W) of another size. Raises ValueError where the network takes none of that size."""
    own = program.input
    if image[0] != own[0] or any((new - old) % any_size.step for new, old in zip(image[1:], own[1:], strict=True)):
        steps = f"{own[1]} and {own[2]}, or multiples of {any_size.step} more or less"
        raise ValueError(f"expected images of {own[0]} channels, height and width {steps}, found {image}")
    shapes, ops = [image], []
    for index, op in enumerate(program.ops):
        try:
            inputs = [shapes[value] for value in op.inputs]
            rule: Any = any_size.rules.get(index)
            op = op if rule is None else rule.apply(op, inputs[0], image)
            shapes.append(op.shape(*inputs))
        except (ValueError, IndexError, AttributeError, TypeError) as error:
            raise ValueError(f"the network takes no images of {image[1]} x {image[2]}: {op.name}: {error}") from error
        ops.append(op)
    return replace(program, input=image, ops=tuple(ops))


def order_of(op: Reorder) -> list[int]:
    """The numbers that an `Order` is about."""
    factors = (*op.channels, *op.height, *op.width)
    return [*op.offset, *(number for factor in factors for number in (factor.size, factor.stride))]


def with_order(op: Reorder, found: list[int]) -> Reorder:
    """The operation with other numbers than its own, as `order_of` gives them."""
    left = iter(found)
    offset = (next(left), next(left), next(left))
    channels, height, width = (
        tuple(Factor(factor.axis, next(left), next(left)) for factor in factors)
        for factors in (op.channels, op.height, op.width)
    )
    return replace(op, channels=channels, height=height, width=width, offset=offset)


def _near(size: int, side: int) -> Taps:
    """From `size` places to `side`: the one below."""
    places = np.arange(side, dtype=np.int64) * size // side
    return places.astype(np.uint32)[:, None], np.ones((side, 1), np.float32)


def _between(at: Floats, size: int) -> Taps:
    """Linear interpolation at these places."""
    low = np.minimum(np.floor(at), size - 1)
    share = at - low
    places = np.stack([low, np.minimum(low + 1, size - 1)], 1).astype(np.uint32)
    return places, np.stack([1 - share, share], 1).astype(np.float32)


def _linear(size: int, side: int) -> Taps:
    return _between(np.maximum((np.arange(side) + 0.5) * (size / side) - 0.5, 0), size)


def _corners(size: int, side: int) -> Taps:
    """Linear, the first and the last place kept."""
    return _between(np.arange(side) * ((size - 1) / max(side - 1, 1)), size)


def _mean(size: int, side: int) -> Taps:
    """The means that an adaptive pool takes."""
    numbers = np.arange(side)
    first, end = numbers * size // side, -(-(numbers + 1) * size // side)
    taps = first[:, None] + np.arange(int((end - first).max()))
    inside = taps < end[:, None]
    places = np.where(inside, taps, first[:, None]).astype(np.uint32)
    return places, (inside / (end - first)[:, None]).astype(np.float32)


KINDS: dict[str, Callable[[int, int], Taps]] = {
    "near": _near, "linear": _linear, "corners": _corners, "mean": _mean,
}  # fmt: skip


def matrix(taps: Taps, size: int) -> Floats:
    """The taps as a matrix (outputs, size)."""
    places, weights = taps
    found = np.zeros((len(places), size), np.float32)
    np.add.at(found, (np.arange(len(places))[:, None], places), weights)
    return found
