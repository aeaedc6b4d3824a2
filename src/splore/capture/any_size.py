"""The rules by which a captured program serves every height and width, found by capturing it at several.

A program of the same network at another size has the same operations; what differs has to follow one of the rules of
`splore.engine.any_size` at all sizes tried, or the network is refused, with the operation that stands in the way.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from itertools import product
from typing import Any

import numpy as np

from splore.engine.any_size import KINDS, AnySize, Count, Enlarge, Order, Rule, Whole, matrix, order_of
from splore.engine.program import Pool, Program, Shape
from splore.engine.tensor_ops import Reorder, Resample

LARGER = ((32, 64), (96, 32))
"""By how much the first sizes tried are larger than the example, in height and width."""
STEPS = {1: ((5, 9), (3, 14)), 8: ((40, 72), (24, 104)), 32: ()}
"""Sizes may differ by any number, or by multiples of 8 or 32 alone, as these are right too."""


class Differs(ValueError):
    """The network's operations depend on the size in a way for which there is no rule."""


def any_size(capture: Callable[[Shape], Program], image: Shape) -> tuple[Program, AnySize]:
    """A program for images (C, H, W) like this, and its rules for others. `capture` gives the program of a size.

    Raises ValueError where the network takes one size alone, or depends on it in another way.
    """

    def programs(sizes: Sequence[tuple[int, int]]) -> list[Program]:
        return [capture((image[0], image[1] + more, image[2] + wider)) for more, wider in sizes]

    larger = programs(LARGER)
    fitted(larger)
    for step, more in STEPS.items():
        with suppress(ValueError):  # the network can't take such sizes, or computes otherwise there
            return larger[0], AnySize(step, fitted([*larger, *programs(more)]))
    raise AssertionError("the last step tries nothing more")


def fitted(programs: Sequence[Program]) -> dict[int, Rule]:
    """The rules that make of each program the others. Raises `Differs` where there are none."""
    first = programs[0]
    for program in programs:
        if program.input_dims or program.output_dims or program.flat_input:
            raise Differs("expected images (C, H, W) in, and one map or vector out")
        if [type(op) for op in program.ops] != [type(op) for op in first.ops]:
            raise Differs("the network computes otherwise at other sizes")
    rules: dict[int, Rule] = {}
    for index, ops in enumerate(zip(*(program.ops for program in programs), strict=True)):
        shapes = [program.shapes[op.inputs[0]] if op.inputs else () for program, op in zip(programs, ops, strict=True)]
        differ = different(ops)
        pairs = list(zip(ops, shapes, strict=True))
        if isinstance(ops[0], Pool) and all(op.kernel == op.stride == shape[1:] for op, shape in pairs):
            rules[index] = Whole()
            differ -= {"kernel", "stride"}
        elif isinstance(ops[0], Reorder) and differ:
            rules[index], differ = _order(ops, shapes), differ - {"offset", "channels", "height", "width"}
        elif isinstance(ops[0], Resample) and differ:
            rules[index] = _enlarge(ops, shapes, [program.input for program in programs])
            differ = set()
        if isinstance(ops[0], Pool | Reorder | Resample) and len({shape[1:] for shape in shapes}) < min(2, len(ops)):
            raise Differs(f"{ops[0].name} sees one size alone of all that were tried: take a larger example")
        if differ:
            kind = type(ops[0]).__name__.lower()
            raise Differs(f"{kind} {ops[0].name} depends on the size of the image: {', '.join(sorted(differ))}")
    return rules


def different(ops: Sequence[Any]) -> set[str]:
    """The attributes in which some objects of one class differ."""
    return {
        field.name
        for field in fields(ops[0])
        if not all(_same(getattr(ops[0], field.name), getattr(op, field.name)) for op in ops)
    }


def _same(a: Any, b: Any) -> bool:  # noqa: ANN401 - any attribute of an operation
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and np.array_equal(a, b)
    if is_dataclass(a) and type(a) is type(b):
        return not different([a, b])
    return type(a) is type(b) and a == b


def _order(ops: Sequence[Reorder], shapes: Sequence[Shape]) -> Order:
    each = [order_of(op) for op in ops]
    axes = {
        tuple(tuple(factor.axis for factor in factors) for factors in (op.channels, op.height, op.width)) for op in ops
    }
    if len(axes) > 1:
        raise Differs(f"reorder {ops[0].name} has another order at other sizes")
    return Order(tuple(_counted(ops[0].name, found, shapes) for found in zip(*each, strict=True)))


def _counted(name: str, found: Sequence[int], shapes: Sequence[Shape]) -> Count:
    """The count that gives these numbers for maps of these shapes."""
    for count in _candidates(found, shapes):
        try:
            if all(count.of(shape) == number for shape, number in zip(shapes, found, strict=True)):
                return count
        except ValueError:
            continue
    raise Differs(f"{name} depends on the size of the image: {list(found)} of maps {[shape[1:] for shape in shapes]}")


def _candidates(found: Sequence[int], shapes: Sequence[Shape]) -> Sequence[Count]:
    (_, h, w), (_, h2, w2), number = shapes[0], shapes[1], found[0]
    counts = [Count(constant=number)]
    counts += [Count(rows=number // h), Count(columns=number // w), Count(pixels=number // (h * w))]
    if number:
        counts += [Count(rows=1, divisor=max(1, h // number)), Count(columns=1, divisor=max(1, w // number))]
        counts += [Count(pixels=1, divisor=max(1, h * w // number))]
    if h2 != h:
        slope = (found[1] - number) // (h2 - h)
        counts.append(Count(constant=number - slope * h, rows=slope))
    if w2 != w:
        slope = (found[1] - number) // (w2 - w)
        counts.append(Count(constant=number - slope * w, columns=slope))
    return counts


def _enlarge(ops: Sequence[Resample], shapes: Sequence[Shape], images: Sequence[Shape]) -> Enlarge:
    sides = [(len(op.row_index), len(op.column_index)) for op in ops]
    others = [(c, h + more, w + 2 * more) for c, h, w in shapes for more in range(1, 8)]
    for of_image in (False, True):
        found = []
        for kinds in product(KINDS, KINDS):
            taken = images if of_image else shapes
            with suppress(ValueError):
                rows, columns = (_counted(ops[0].name, each, taken) for each in zip(*sides, strict=True))
                rule = Enlarge(kinds, (rows, columns), of_image)
                if all(_alike(rule.apply(*case), case[0], case[1]) for case in zip(ops, shapes, images, strict=True)):
                    found.append(rule)
        for rule, shape in product(found[1:], others):
            if not _alike(found[0].apply(ops[0], shape, shape), rule.apply(ops[0], shape, shape), shape):
                raise Differs(f"resample {ops[0].name} may be one of several at other sizes: take a larger example")
        if found:
            return found[0]
    raise Differs(f"resample {ops[0].name} depends on the size of the image otherwise than an enlargement")


def _alike(a: Resample, b: Resample, shape: Shape) -> bool:
    """Whether two give the same of a map of this shape."""
    pairs = [((each.row_index, each.row_weight), (each.column_index, each.column_weight)) for each in (a, b)]
    return all(
        len(ours[0]) == len(theirs[0]) and np.allclose(matrix(ours, size), matrix(theirs, size), atol=1e-5)
        for ours, theirs, size in zip(*pairs, shape[1:], strict=True)
    )
