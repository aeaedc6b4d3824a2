"""A quantised network as other runtimes compute it in bytes: their kernels are dense, and round each result.

Weights of one part stay the bytes that they are. A·B + S becomes one dense weight, rounded anew, and A·B alone two
convolutions where these multiply less. Before a residual is added, what it is added to is rounded as well.
"""

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from splore.capture.export import capture
from splore.engine import reference
from splore.engine.program import Act, Add, Conv, IntConv, Op, Program
from splore.engine.quantise import Ranges, quantise
from splore.engine.weight import Floats, Weight


@dataclass(frozen=True)
class InBytes:
    """A program in bytes for dense kernels, and the activations that its tables stand for, by name."""

    program: Program
    activations: dict[str, Act]

    @property
    def convolutions(self) -> tuple[int, int]:
        """Those that dense kernels compute in bytes, and all of them."""
        found = [op for op in self.program.ops if isinstance(op, Conv)]
        return sum(isinstance(op, IntConv) and len(op.inputs) == 1 for op in found), len(found)

    def __call__(self, x: Floats) -> Floats:
        """What it computes for inputs as the model takes them, and in the form of the model's results."""
        given, gets = self.program.caller_shapes
        y = reference.run(self.program, np.ascontiguousarray(x).reshape(-1, *self.program.input))
        return y.reshape(len(x), *gets)


def in_bytes(model: nn.Module, x: Tensor) -> InBytes:
    """The program of a quantised model in evaluation mode, for inputs like x (N, C, H, W) or (N, C).

    Raises:
        ValueError: a part of it needs torch, or nothing of it can be computed in bytes.
    """
    segment, *more = capture(model, x).segments
    if more or not isinstance(segment, Program):
        raise ValueError("eight bits are for nets that the engine runs whole, and a part of this one needs torch")
    program, ranges = for_dense_kernels(segment, model.activation_ranges)  # type: ignore[arg-type]
    found = InBytes(quantise(program, ranges), {op.name: op.act for op in program.ops if hasattr(op, "act")})
    if not found.convolutions[0]:
        raise ValueError("expected a range for what a convolution reads, found none: quantise the model again")
    return found


def for_dense_kernels(program: Program, ranges: Ranges) -> tuple[Program, Ranges]:
    """A float32 program that computes the same by dense convolutions, and the ranges of its values."""
    ranges, ops, number = dict(ranges), list[Op](), {0: 0}
    for index, op in enumerate(program.ops):
        op = replace(op, inputs=tuple(number[value] for value in op.inputs))
        if isinstance(op, Conv):
            channels = program.shapes[program.ops[index].inputs[0]][0] // op.groups
            for piece in _pieces(op, channels * op.kernel[0] * op.kernel[1], len(ops) + 1, ranges):
                if op.pre is not None and f"{op.name}.pre" in ranges:
                    ranges[f"{piece.name}.pre"] = ranges[f"{op.name}.pre"]
                ops.append(piece)
        else:
            ops.append(op)
        number[index + 1] = len(ops)
    return replace(program, ops=tuple(ops)), ranges


def _pieces(op: Conv, k: int, first: int, ranges: Ranges) -> list[Conv | Add]:
    """A convolution as one or two, and the addition of a residual where its other term has a range; the first of them
    writes the value `first`."""
    pieces: list[Conv | Add] = []
    conv, weight = op, op.weight
    apart = len(op.inputs) == 2 and f"{op.name}.alone" in ranges
    if apart:
        conv = replace(op, name=f"{op.name}.alone", inputs=op.inputs[:1], act=Act.NONE)
    if weight.A is not None and weight.B is not None:
        if weight.values is None and weight.A.size + weight.B.size < op.bias.size * k:
            no_bias = np.zeros(len(weight.B), np.float32)
            pieces.append(
                replace(
                    op, name=f"{op.name}.t", inputs=op.inputs[:1], weight=Weight(weight.B), bias=no_bias, act=Act.NONE
                )
            )
            conv = Conv(conv.name, (first, *conv.inputs[1:]), Weight(weight.A), op.bias, act=conv.act)
        else:
            conv = replace(conv, weight=Weight(reference.compose(weight, k)))
    pieces.append(conv)
    if apart:
        pieces.append(Add(op.name, (first + len(pieces) - 1, op.inputs[1]), op.act))
    return pieces
