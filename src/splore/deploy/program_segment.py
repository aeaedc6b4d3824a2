"""One program and what runs it: the native kernels, on its sparse or its folded weights, or the NumPy reference."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from splore.deploy import plan_table, reference
from splore.deploy.program import Conv, Floats, Program, Weight

TRIES = 7  # timed runs of each choice, one after the other in turns
DENSE_CANT_WIN = 1 / 8  # of the dense network's multiply-adds: below, the dense weights aren't tried as a whole


class ProgramSegment:
    """Runs a program on batches of any size. The first batch of a kind (1, 2 to 7, 8 and more) decides what runs it."""

    def __init__(self, program: Program, threads: int) -> None:
        self.program, self.threads = program, threads
        self._native, self._failure = _native(program)
        self._dense: Any = None  # the native program with folded weights, where it wins for some kind of batch
        self._choices: dict[int, Choice] = {}
        self._last: Choice | None = None
        if self._native is None:
            warnings.warn(
                f"the native library can't be loaded ({self._failure}); this network runs in NumPy, on dense weights, "
                "tens of times slower",
                RuntimeWarning,
                stacklevel=4,
            )

    def __call__(self, x: Floats) -> Floats:
        """The result for x (N, C, H, W), or (N, C) where the program's input is flat."""
        x = np.ascontiguousarray(x).reshape(len(x), *self.program.input)
        y = reference.run(self.program, x) if self._native is None else self._run(x)
        return y.reshape(y.shape[:2]) if self.program.flat_output else y

    def summary(self) -> str:
        """The plan for the batch that ran last."""
        if self._native is None:
            return plan_table.of_program(self.program, f"NumPy reference: {self._failure}", [])
        if self._last is None:
            return plan_table.of_program(self.program, "not planned yet: run a batch first", [])
        winner = self._dense if self._last.dense_wins else self._native
        heading = f"{winner.isa}, {self.threads} threads, batch {self._last.batch}: {self._last.verdict}"
        return plan_table.of_program(winner.program, heading, winner.table())

    def steps(self) -> list[dict]:
        """The steps of the native program that ran last; none before the first run, and none of the reference."""
        if self._last is None:
            return []
        return (self._dense if self._last.dense_wins else self._native).table()

    def _run(self, x: Floats) -> Floats:
        if len(x) == 0:
            return np.zeros((0, *self.program.output), np.float32)
        kind = 1 if len(x) == 1 else 2 if len(x) < 8 else 8
        if kind not in self._choices:
            self._choices[kind] = self._choose(x)
        self._last = self._choices[kind]
        return (self._dense if self._last.dense_wins else self._native).run(x)

    def _choose(self, x: Floats) -> "Choice":
        """Plans the program for this batch, and times it as a whole against the one with folded weights."""
        self._native.plan(len(x), self.threads)
        folded = fold_dense(self.program)
        if self.program.multiply_adds <= DENSE_CANT_WIN * folded.multiply_adds or is_dense(self.program):
            return Choice(len(x))
        dense = self._dense or _native(folded)[0]
        dense.plan(len(x), self.threads)
        ours, theirs = fastest_ms(lambda: self._native.run(x), lambda: dense.run(x))
        choice = Choice(len(x), ours, theirs)
        if choice.dense_wins:
            self._dense = dense
        return choice


@dataclass(frozen=True)
class Choice:
    """What the timing for one batch gave: ms with the compressed and with the folded weights, where both were timed."""

    batch: int
    compressed_ms: float | None = None
    dense_ms: float | None = None

    @property
    def dense_wins(self) -> bool:
        if self.dense_ms is None or self.compressed_ms is None:
            return False
        return self.dense_ms < 0.98 * self.compressed_ms

    @property
    def verdict(self) -> str:
        if self.dense_ms is None:
            return "runs the weights as they are"
        winner = "dense, because nothing else was faster" if self.dense_wins else "compressed"
        return f"runs {winner} (compressed {self.compressed_ms:.3g} ms, dense {self.dense_ms:.3g} ms)"


def fold_dense(program: Program) -> Program:
    """The program with every weight as one dense matrix: W = dense + A·B + S."""
    return replace(
        program,
        ops=tuple(
            replace(op, weight=Weight(dense=reference.compose(op.weight, columns(program, op))))
            if isinstance(op, Conv) and op.weight.dense is None
            else op
            for op in program.ops
        ),
    )


def is_dense(program: Program) -> bool:
    """Whether no weight has a low-rank or a sparse part."""
    return all(op.weight.A is None and op.weight.values is None for op in program.ops if isinstance(op, Conv))


def columns(program: Program, conv: Conv) -> int:
    """k, the columns of the weight matrix of a convolution of the program."""
    return program.shapes[conv.inputs[0]][0] // conv.groups * conv.kernel[0] * conv.kernel[1]


def fastest_ms(*runs: Callable[[], object]) -> tuple[float, ...]:
    """The fastest of a few runs of each, in ms. They take turns, so that a busy moment meets all of them."""
    best = [float("inf")] * len(runs)
    for run in runs:
        run()
    for _ in range(TRIES):
        for index, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[index] = min(best[index], 1e3 * (time.perf_counter() - start))
    return tuple(best)


def _native(program: Program) -> tuple[Any, str]:  # the NativeProgram, or None and the reason
    try:
        from splore.deploy.native import NativeError, NativeProgram
    except (ImportError, OSError) as error:
        return None, str(error)
    try:
        return NativeProgram(program), ""
    except NativeError as error:
        return None, str(error)
