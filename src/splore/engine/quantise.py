"""From a float32 program to one in eight bits: ranges of its values, and what they make of its operations.

    ranges = calibrate(program, batches)
    program = quantise(program, ranges)

Ranges go by the name of the operation that writes a value, "input" for the images; `<conv>.pre` is relu(scale x +
shift) before a convolution, `<conv>.t` t = B x, `<conv>.alone` a convolution's result before a residual is added, which
other runtimes round, and `<name>.sum` what a slow activation is applied to. What has no range stays in float32.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splore.engine import reference
from splore.engine.integer import BLOCK, LARGEST, Convert, IntWeight, Quant, Table
from splore.engine.program import Act, Activate, Add, Affine, Concat, Conv, Flatten, IntConv, Mul, Op, Pool, Program
from splore.engine.tensor_ops import Constant
from splore.engine.weight import Floats, Weight, owners

Ranges = dict[str, tuple[float, float]]  # (low, high) with low <= 0 <= high

CLAMPS = (Act.NONE, Act.RELU, Act.RELU6)
LARGEST_WEIGHT = 127


def calibrate(program: Program, batches: Iterable[Floats], percentile: float = 100.0) -> Ranges:
    """The ranges that hold so many per cent of each value for these images (N, C, H, W): the widest of all batches."""
    found: Ranges = {}

    def include(name: str, values: NDArray) -> None:
        low, high = (float(np.percentile(values, q)) for q in (100 - percentile, percentile))
        known = found.get(name, (0.0, 0.0))
        found[name] = (min(low, known[0]), max(high, known[1]))

    for batch in batches:
        observe(program, batch, include)
    for name, (low, high) in found.items():
        if name.endswith(".t"):
            found[name] = (-max(-low, high), max(-low, high))
    return found


def observe(program: Program, images: Floats, include: Callable[[str, NDArray], None]) -> Floats:
    """The result for some images; every value on the way is shown to `include`, by its name."""
    values = [np.ascontiguousarray(images, np.float32)]
    include("input", values[0])
    for op in program.ops:
        if isinstance(op, Constant):
            values.append(np.broadcast_to(op.data, (len(values[0]), *op.data.shape)))
            include(op.name, values[-1])
            continue
        inputs = [values[value] for value in op.inputs]
        if isinstance(op, Conv) and len(inputs) == 2:
            alone = reference.convolve(op, inputs[0])
            include(f"{op.name}.alone", alone)
            values.append(reference.activate(alone + inputs[1], op.act))
        else:
            values.append(reference.apply(op, *inputs))
        include(op.name, values[-1])
        if getattr(op, "act", Act.NONE) not in CLAMPS and not isinstance(op, Activate):
            without: Any = op
            include(f"{op.name}.sum", reference.apply(replace(without, act=Act.NONE), *inputs))
        if isinstance(op, Conv):
            _include_inner(op, inputs[0], include)
    return values[-1]


def _include_inner(op: Conv, x: Floats, include: Any) -> None:  # noqa: ANN401
    """What a convolution makes on the way: relu(scale x + shift) and B x."""
    if op.pre is not None:
        x = np.maximum(reference.scaled(x, op.pre), 0)
        include(f"{op.name}.pre", x)
    if op.weight.B is not None:
        rank = len(op.weight.B)
        down = replace(op, weight=Weight(dense=op.weight.B), bias=np.zeros(rank, np.float32), pre=None)
        include(f"{op.name}.t", reference.convolve(down, x))


def quantise(program: Program, ranges: Mapping[str, tuple[float, float]]) -> Program:
    """The program in bytes, as far as there are ranges for its values; it takes and gives float32 all the same."""
    return _Quantiser(program, ranges).run()


def quant_of(low: float, high: float) -> Quant:
    """256 steps from low to high, one of which is zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max((high - low) / LARGEST, 1e-20)))
    return Quant(scale, int(np.clip(np.rint(-low / scale), 0, LARGEST)))


class _Quantiser:
    """Writes the new program's operations; a value may be there in bytes, in float32, or both."""

    def __init__(self, program: Program, ranges: Mapping[str, tuple[float, float]]) -> None:
        self.program, self.ranges = program, ranges
        self.ops: list[Op] = []
        self.quants: list[Quant | None] = [None]
        self.floats: dict[int, int] = {0: 0}  # the new value, by the old one
        self.bytes: dict[int, int] = {}

    def run(self) -> Program:
        last = len(self.program.ops)
        for index, op in enumerate(self.program.ops):
            if not self.in_bytes(op, index + 1, index + 1 == last):
                inputs = tuple(self.in_floats(value) for value in op.inputs)
                self.floats[index + 1] = self.add(replace(op, inputs=inputs))
        self.in_floats(last)
        return replace(self.program, ops=tuple(self.ops))

    def add(self, op: Op) -> int:
        self.ops.append(op)
        self.quants.append(getattr(op, "quant", None))
        return len(self.ops)

    def range(self, name: str) -> Quant | None:
        return quant_of(*self.ranges[name]) if name in self.ranges else None

    def name(self, value: int) -> str:
        return self.program.ops[value - 1].name if value else "input"

    def in_floats(self, value: int) -> int:
        if value not in self.floats:
            self.floats[value] = self.add(Convert(f"{self.name(value)} as floats", (self.bytes[value],)))
        return self.floats[value]

    def as_bytes(self, value: int) -> int | None:
        """The value in bytes, which needs its range; None without."""
        quant = self.range(self.name(value))
        if value not in self.bytes and quant is not None:
            self.bytes[value] = self.add(Convert(f"{self.name(value)} in bytes", (self.floats[value],), quant))
        return self.bytes.get(value)

    def in_bytes(self, op: Op, value: int, last: bool) -> bool:
        """Adds the operation in bytes, where that can be."""
        can = isinstance(op, Conv) or (
            not last and isinstance(op, Pool | Add | Mul | Affine | Concat | Flatten | Activate)
        )
        quant = self.range(op.name)
        if not can or (quant is None and not last):
            return False
        known = [self.bytes.get(v) is not None or self.range(self.name(v)) is not None for v in op.inputs]
        if not all(known):
            return False
        if isinstance(op, Conv):
            return self.convolution(op, value, None if last else quant)
        inputs = tuple(number for v in op.inputs if (number := self.as_bytes(v)) is not None)
        assert quant is not None
        if isinstance(op, Activate):
            self.bytes[value] = self.table(op.name, inputs[0], op.act, quant)
        elif isinstance(op, Flatten) or (isinstance(op, Pool) and op.mode == "max"):
            self.bytes[value] = self.add(replace(op, inputs=inputs, quant=self.quants[inputs[0]]))
        else:
            return self.activated(replace(op, inputs=inputs), value, quant)
        return True

    def activated(self, op: Any, value: int, quant: Quant) -> bool:  # noqa: ANN401
        """Adds the operation, and a table for an activation that is no clamp."""
        act = getattr(op, "act", Act.NONE)
        if act in CLAMPS:
            self.bytes[value] = self.add(replace(op, quant=quant))
            return True
        before = self.range(f"{op.name}.sum")
        if before is None:
            return False
        self.bytes[value] = self.table(op.name, self.add(replace(op, act=Act.NONE, quant=before)), act, quant)
        return True

    def table(self, name: str, x: int, act: Act, quant: Quant) -> int:
        at = self.quants[x]
        assert at is not None
        real = (np.arange(LARGEST + 1) - at.zero).astype(np.float32) * np.float32(at.scale)
        y = reference.activate(real, act) / np.float32(quant.scale) + quant.zero
        return self.add(Table(name, (x,), np.rint(np.clip(y, 0, LARGEST)).astype(np.uint8), quant))

    def convolution(self, op: Conv, value: int, quant: Quant | None) -> bool:
        pre, t = self.range(f"{op.name}.pre"), self.ranges.get(f"{op.name}.t")
        if op.pre is not None and pre is None:
            return False
        if op.weight.A is not None and t is None:
            return False
        channels = self.program.shapes[op.inputs[0]][0] // op.groups
        taps = op.kernel[0] * op.kernel[1]
        weight = int_weight(op.weight, op.bias.size, channels, taps, t[1] if t else 0.0)
        try:
            weight.check(op.bias.size, channels, taps, op.groups)
        except ValueError:  # a row too long for sums of 32 bits
            return False
        if op.act not in CLAMPS and quant is not None and f"{op.name}.sum" not in self.ranges:
            return False
        x, *residual = (number for v in op.inputs if (number := self.as_bytes(v)) is not None)
        if op.pre is not None:
            x = self.add(Affine(f"{op.name}.pre", (x,), op.pre, Act.RELU, pre))
        attributes = {field.name: getattr(op, field.name) for field in fields(Conv)}
        new = IntConv(**attributes | {"inputs": (x, *residual), "weight": weight, "pre": None})
        if quant is None:
            self.floats[value] = self.add(new)
            return True
        return self.activated(new, value, quant)


def int_weight(weight: Weight, n: int, channels: int, taps: int, t_range: float) -> IntWeight:
    """The weight in signed bytes: a scale for each output channel of S and of A, and for each direction of B."""
    parts: dict[str, Any] = {}
    largest = np.zeros(n)
    rows = np.zeros(0, np.int64)
    if weight.dense is not None:
        largest = np.maximum(largest, np.abs(weight.dense).max(1))
    if weight.values is not None and weight.rows is not None:
        rows = owners(weight.rows)
        np.maximum.at(largest, rows, np.abs(weight.values))
    scale = _scales(largest)
    if weight.dense is not None:
        parts["dense"] = _rounded(weight.dense, scale[:, None])
    if weight.values is not None and weight.columns is not None:
        parts |= _blocks(_rounded(weight.values, scale[rows]), rows, weight.columns.astype(np.int64), n, taps)
    if weight.A is not None and weight.B is not None:
        a, b = _scales(np.abs(weight.A).max(1)), _scales(np.abs(weight.B).max(1))
        t_scale = np.array([max(t_range / LARGEST_WEIGHT, 1e-20)], np.float32)
        parts |= {"A": _rounded(weight.A, a[:, None]), "A_scale": a, "B": _rounded(weight.B, b[:, None])}
        parts |= {"B_scale": b, "t_scale": t_scale}
    return IntWeight(scale, **parts)


def _scales(largest: NDArray) -> Floats:
    return np.where(largest > 0, np.maximum(largest / LARGEST_WEIGHT, 1e-30), 1).astype(np.float32)


def _rounded(values: Floats, scale: Floats) -> NDArray[np.int8]:
    return np.clip(np.rint(values / scale), -LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int8)


def _blocks(
    values: NDArray[np.int8], rows: NDArray[np.int64], columns: NDArray[np.int64], n: int, taps: int
) -> dict[str, NDArray]:
    """Entries of a sparse matrix in blocks of neighbouring input channels under one tap."""
    channel, tap = np.divmod(columns, taps)
    place = channel // BLOCK * taps + tap
    size = int(place.max(initial=0)) + 1
    keys, owner = np.unique(rows * size + place, return_inverse=True)
    blocks = np.zeros((len(keys), BLOCK), np.int8)
    blocks[owner, channel % BLOCK] = values
    starts = np.searchsorted(keys // size, np.arange(n + 1)).astype(np.uint32)
    return {"blocks": blocks, "positions": (keys % size).astype(np.uint32), "rows": starts}
