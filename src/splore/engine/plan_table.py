"""The plan of an engine as a text: one line for each operation."""

from collections.abc import Mapping, Sequence
from typing import Any

from splore.engine.in_torch import SegmentInTorch
from splore.engine.program import Conv, Op, Pool, Program, Shape
from splore.engine.tensor_ops import Combine


def of_program(program: Program, heading: str, steps: Sequence[Mapping[str, Any]]) -> str:
    """Each operation with its output, its weight, the kernel that was chosen, ms, and multiply-adds a second, also as a
    share of what the threads could do if nothing had to be loaded. Of a large batch, so many images as go through at a
    time, of which each thread may take its own.

    `steps` is the table of the native program; an operation may take several steps, or share one with another.
    """
    by_op: dict[object, list[Mapping[str, Any]]] = {}
    for step in steps:
        by_op.setdefault(step["op"], []).append(step)
    rows = [("operation", "name", "output", "weight", "kernel", "ms", "GMAC/s", "of peak")]
    for step in by_op.get(-1, []):
        rows.append((str(step["kernel"]), "", "x".join(map(str, program.input)), "", "", *_speed([step])))
    for index, (op, shape) in enumerate(zip(program.ops, program.shapes[1:], strict=True)):
        own = by_op.get(index, [])
        kernel = "; ".join(str(step["kernel"]) for step in own)
        rows.append(
            (
                _kind(op),
                op.name,
                "x".join(map(str, shape)),
                _weight(op, program.shapes[op.inputs[0]] if op.inputs else shape),
                kernel,
                *_speed(own),
            )
        )
    for step in by_op.get(-2, []):
        rows.append((str(step["kernel"]), "", "x".join(map(str, program.output)), "", "", *_speed([step])))
    last = f"{len(program.ops)} operations, {program.multiply_adds / 1e6:.4g} M stored multiply-adds an image"
    if steps:
        total, first = sum(float(step["ms"]) for step in steps), steps[0]
        last += f", {total:.4g} ms for {_count(first['images'], 'image')} at a time"
        last += f" by {_count(first['threads'], 'thread')}"
    return "\n".join([heading, *aligned(rows), last])


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n != 1 else ''}"


def of_memory(report: Mapping[str, Any]) -> str:
    """What all plans hold, and whether the batch has one of its own. `report` is the native program's."""
    packed, most = (report[key] / 2**20 for key in ("packed_bytes", "most_bytes"))
    how = "by the plans of others: plan it for one of its own" if report["timed"] else "untimed: plan it to run faster"
    own = "" if report["planned"] else f"; batch {report['batch']} runs {how}"
    return (
        f"all plans: {_count(report['slices'], 'slice')}, {packed:.3g} of at most {most:.4g} MiB of packed weights{own}"
    )


def _speed(steps: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    """ms, 10^9 multiply-adds a second and the share of the peak of an operation's steps."""
    ms, macs = (sum(float(step[key]) for step in steps) for key in ("ms", "macs"))
    if not macs or not ms:
        return (_number(ms) if steps else ""), "", ""
    share = sum(step["ms"] * step["peak_share"] for step in steps) / ms
    return _number(ms), _number(macs / ms / 1e6), f"{100 * share:.0f} %"


def of_torch(segment: SegmentInTorch, costs: Mapping[str, float] | None = None) -> str:
    """A part of the model that is no program, with the reasons, and the milliseconds in torch where they were
    measured."""
    costs, reasons = costs or {}, segment.reasons
    took = {operator: f", {costs[operator]:.3g} ms" for operator in reasons if operator in costs}
    lines = [f"  {operator}: {reason}{took.get(operator, '')}" for operator, reason in reasons.items()]
    total = [f"  with what is next to it: {sum(costs.values()):.3g} ms"] if costs else []
    note = f",{segment.note}, where its operators take" if segment.note else ""
    return "\n".join([f"In {segment.runtime}{note}:", *lines, *total])


def _kind(op: Op) -> str:
    kind = type(op).__name__.lower()
    if isinstance(op, Conv):
        kind = f"{kind} {op.kernel[0]}x{op.kernel[1]}" + (f" /{max(op.stride)}" if max(op.stride) > 1 else "")
        kind = ("pre + " if op.pre is not None else "") + kind + (" + add" if len(op.inputs) == 2 else "")
    elif isinstance(op, Pool):
        kind = f"{op.mode} pool {op.kernel[0]}x{op.kernel[1]}"
    elif isinstance(op, Combine):
        kind = op.fn.value
    act = getattr(op, "act", None)
    return kind + (f" + {act.value}" if act is not None and act.value != "none" else "")


def _weight(op: Op, input: Shape) -> str:
    if not isinstance(op, Conv):
        return ""
    weight, parts = op.weight, []
    if weight.dense is not None:
        parts.append("dense")
    if weight.A is not None:
        parts.append(f"rank {weight.A.shape[1]}")
    entries = weight.entries[-1]  # of S
    if entries is not None:
        size = op.bias.size * input[0] * op.kernel[0] * op.kernel[1]
        parts.append(f"{100 * entries.size / size:.3g} %")
    return " + ".join(parts)


def _number(value: float) -> str:
    return f"{value:.3g}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of texts as lines, its columns as wide as they need."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
