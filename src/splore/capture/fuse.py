"""From a draft, one operation per operator of the model, to a program with few passes over its values.

A draft is a dict from a value to the operation that writes it, in the order in which they run; value 0 is the input.
Beside a program's operations it may hold `Pad`, `Select` and convolutions with a `Spatial` weight. Each `join_` below
gives a draft that computes the same result. Where it joins an operation to the one before, the joined one writes the
value of the later, so that nobody else has to change.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from splore.capture.weights import Spatial, scale_rows
from splore.engine.program import Act, Activate, Add, Affine, Conv, Mul, Op, Pair, Program, Shape
from splore.engine.tensor_ops import Combine
from splore.engine.weight import Floats, Weight


@dataclass(frozen=True, eq=False)
class Pad:
    """Zeros around each plane: (top, left, bottom, right)."""

    name: str
    inputs: tuple[int, ...]
    channels: int
    pad: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Select:
    """Every stride-th row and column of the channels `source`; -1 gives a channel of zeros."""

    name: str
    inputs: tuple[int, ...]
    channels: int  # of the input
    source: tuple[int, ...]
    stride: Pair = (1, 1)


Draft = dict[int, Any]  # Op, Pad or Select


def program(
    draft: Draft, output: int, shape: Shape, input_dims: tuple[int, ...], output_dims: tuple[int, ...]
) -> Program:
    """The program of a draft whose result is the value `output`, for inputs of this shape; the caller's images and
    results have these dimensions."""
    draft = needed(draft, output)
    for join in (join_selects, join_pads, join_results, join_pre_activations):
        draft = join(draft, output)
    draft = needed(expand(draft), output)
    number = {0: 0} | {value: index + 1 for index, value in enumerate(draft)}
    ops = tuple(replace(op, inputs=tuple(number[value] for value in op.inputs)) for op in draft.values())
    flat_input, flat_output = (len(dims) == 1 for dims in (input_dims, output_dims))
    others = [() if len(dims) in (1, 3) else dims for dims in (input_dims, output_dims)]
    return Program(shape, _named_apart(ops), flat_input, flat_output, others[0], others[1])


def _named_apart(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """The operations with a name each: of several of one name the last keeps it, the others get a number."""
    left = Counter(op.name for op in ops)
    named = []
    for op in ops:
        left[op.name] -= 1
        named.append(replace(op, name=f"{op.name}#{left[op.name]}") if left[op.name] else op)
    return tuple(named)


def needed(draft: Draft, output: int) -> Draft:
    """The operations on which the result depends."""
    wanted = {output}
    for value in reversed(draft):
        if value in wanted:
            wanted.update(draft[value].inputs)
    return {value: op for value, op in draft.items() if value in wanted}


def join_selects(draft: Draft, output: int) -> Draft:
    """Joins a selection to the one before it."""
    count, joined = _uses(draft, output), Draft()
    for value, op in draft.items():
        before = joined.get(op.inputs[0]) if isinstance(op, Select) else None
        if isinstance(before, Select) and count[op.inputs[0]] == 1:
            del joined[op.inputs[0]]
            source = tuple(-1 if channel < 0 else before.source[channel] for channel in op.source)
            stride = (before.stride[0] * op.stride[0], before.stride[1] * op.stride[1])
            op = replace(before, source=source, stride=stride)
        joined[value] = op
    return joined


def join_pads(draft: Draft, output: int) -> Draft:
    """Moves zero padding into the convolutions that read it, where only convolutions do."""
    joined = dict(draft)
    for value, op in draft.items():
        readers = _readers(joined, value, output) if isinstance(op, Pad) else None
        if readers:
            for reader, conv in readers.items():
                pad = tuple(a + b for a, b in zip(conv.pad, op.pad, strict=True))
                joined[reader] = replace(conv, inputs=(op.inputs[0], *conv.inputs[1:]), pad=pad)
            del joined[value]
    return joined


def join_results(draft: Draft, output: int) -> Draft:
    """Joins batch normalisation, residual addition and activation to the operation that makes their input."""
    count, joined = _uses(draft, output), Draft()
    for value, op in draft.items():
        # What made each input, where nothing else reads it and its activation is still to come.
        makers = {
            x: joined[x]
            for x in op.inputs
            if x in joined and count[x] == 1 and getattr(joined[x], "act", None) is Act.NONE
        }
        convs = {x: made for x, made in makers.items() if isinstance(made, Conv) and len(made.inputs) == 1}
        if isinstance(op, Affine) and convs:
            (x, conv), (scale, shift) = *convs.items(), (op.factors.scale, op.factors.shift)
            op = replace(conv, weight=scale_rows(conv.weight, scale), bias=conv.bias * scale + shift, act=op.act)
            del joined[x]
        elif isinstance(op, Add) and convs:
            x = max(convs)  # the later one, so that no value has to live longer
            residual = op.inputs[1] if op.inputs[0] == x else op.inputs[0]
            op = replace(convs[x], inputs=(*convs[x].inputs, residual), act=op.act)
            del joined[x]
        elif isinstance(op, Activate) and isinstance(makers.get(op.inputs[0]), Conv | Add | Mul | Affine | Combine):
            del joined[op.inputs[0]]
            op = replace(makers[op.inputs[0]], act=op.act)
        joined[value] = op
    return joined


def join_pre_activations(draft: Draft, output: int) -> Draft:
    """Moves relu(scale x + shift) into the convolutions that read it, where only convolutions do."""
    joined = dict(draft)
    for value, op in draft.items():
        wanted = isinstance(op, Affine) and op.act is Act.RELU
        readers = _readers(joined, value, output) if wanted else None
        if readers and all(conv.pre is None for conv in readers.values()):
            for reader, conv in readers.items():
                joined[reader] = replace(conv, inputs=(op.inputs[0], *conv.inputs[1:]), pre=op.factors)
            del joined[value]
    return joined


def expand(draft: Draft) -> Draft:
    """Writes selections, pads and spatial weights as convolutions."""
    fresh, expanded = max(draft, default=0) + 1, Draft()
    for value, op in draft.items():
        if isinstance(op, Conv) and isinstance(op.weight, Spatial):
            expanded |= _separate(op, value, fresh)
            fresh += 2
        else:
            expanded[value] = _selection(op) if isinstance(op, Select) else _padding(op) if isinstance(op, Pad) else op
    return expanded


def _uses(draft: Draft, output: int) -> Counter[int]:
    """How often each value is read; the result counts as one reading."""
    return Counter([output, *(value for op in draft.values() for value in op.inputs)])


def _readers(draft: Draft, value: int, output: int) -> dict[int, Conv] | None:
    """The convolutions that read a value as their image; None where something else reads it too."""
    readers = {reader: op for reader, op in draft.items() if value in op.inputs}
    alone = value != output and all(isinstance(op, Conv) and value not in op.inputs[1:] for op in readers.values())
    return readers if alone else None


def _separate(op: Conv, value: int, fresh: int) -> Draft:
    """A spatial convolution as kh x 1, then 1 x kw, then the sparse part, each adding to what came before."""
    (kh, kw), weight, n = op.kernel, op.weight, op.bias.size
    assert weight.A is not None and weight.B is not None
    rank = weight.B.shape[0]
    top, left, bottom, right = op.pad
    tall = Conv(
        f"{op.name}.B", op.inputs[:1], Weight(dense=weight.B), np.zeros(rank, np.float32), (kh, 1),
        (op.stride[0], 1), (top, 0, bottom, 0), (op.dilation[0], 1), pre=op.pre,
    )  # fmt: skip
    across = np.ascontiguousarray(weight.A.reshape(n, kw, rank).swapaxes(1, 2)).reshape(n, rank * kw)
    wide = Conv(
        f"{op.name}.A", (fresh, *op.inputs[1:]), Weight(dense=across), op.bias, (1, kw),
        (1, op.stride[1]), (0, left, 0, right), (1, op.dilation[1]), act=op.act,
    )  # fmt: skip
    if weight.values is None:
        return {fresh: tall, value: wide}
    wide = replace(wide, bias=np.zeros(n, np.float32), act=Act.NONE)
    sparse = Weight(values=weight.values, columns=weight.columns, rows=weight.rows)
    last = replace(op, name=f"{op.name}.S", inputs=(op.inputs[0], fresh + 1), weight=sparse)
    return {fresh: tall, fresh + 1: wide, value: last}


def _selection(op: Select) -> Conv:
    """A selection as a 1 x 1 convolution whose weight has a single one in each row, or none."""
    source = np.array(op.source)
    taken = source >= 0
    rows = np.concatenate([[0], np.cumsum(taken)]).astype(np.uint32)
    ones: Floats = np.ones(taken.sum(), np.float32)
    weight = Weight(values=ones, columns=source[taken].astype(np.uint32), rows=rows)
    return Conv(op.name, op.inputs, weight, np.zeros(len(source), np.float32), stride=op.stride)


def _padding(op: Pad) -> Conv:
    """Padding as a 1 x 1 convolution of each channel by one."""
    ones = Weight(dense=np.ones((op.channels, 1), np.float32))
    return Conv(op.name, op.inputs, ones, np.zeros(op.channels, np.float32), pad=op.pad, groups=op.channels)
