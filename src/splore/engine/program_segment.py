"""One program and what runs it: the native kernels, or the NumPy reference."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from splore.engine import plan_table, reference
from splore.engine.program import Conv, Floats, Program

TRIES = 7  # timed runs of each choice, one after the other in turns


class ProgramSegment:
    """Runs a program on batches of any size."""

    def __init__(self, program: Program, threads: int) -> None:
        self.program, self.threads = program, threads
        self._native, self._failure = _native(program)
        self._batch = 0  # that ran last
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
        if not self._batch:
            return plan_table.of_program(self.program, "not planned yet: run a batch first", [])
        steps = self.steps()
        heading = f"{self._native.isa}, {self.threads} threads, batch {self._batch}: {verdict(self.program, steps)}"
        return plan_table.of_program(self.program, heading, steps)

    def steps(self) -> list[dict]:
        """The steps of the native program for the batch that ran last; none before, and none of the reference."""
        return self._native.table() if self._batch else []

    def _run(self, x: Floats) -> Floats:
        if len(x) == 0:
            return np.zeros((0, *self.program.output), np.float32)
        if len(x) != self._batch:
            self._native.plan(len(x), self.threads)
            self._batch = len(x)
        return self._native.run(x)


def verdict(program: Program, steps: Iterable[Mapping[str, Any]]) -> str:
    """On which weights the program's convolutions run."""
    ops = {i for i, op in enumerate(program.ops) if isinstance(op, Conv) and op.weight.dense is None}
    dense = sum(step["op"] in ops and step["kernel"].startswith("dense") for step in steps)
    if not dense:
        return "runs the weights as they are"
    return f"runs the weights as they are, but {dense} of {len(ops)} as dense ones, which were faster"


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


def _native(program: Program) -> tuple[Any, str]:  # the NativeProgram, or None and why the library can't be loaded
    try:
        from splore.engine.native import NativeError, NativeProgram, load_library

        load_library()
    except (ImportError, OSError) as error:
        return None, str(error)
    try:
        return NativeProgram(program), ""
    except NativeError as error:  # the library is there: NumPy would hide what is wrong
        raise ValueError(f"the engine can't run this program: {error}") from error
