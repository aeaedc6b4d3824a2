"""One program and what runs it: the native kernels, or the NumPy reference."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from splore.engine import plan_table, reference
from splore.engine.program import Conv, Floats, Program

TRIES = 7  # timed runs of a choice, at the least
SECONDS = 0.1  # that they go on for, if they are short
QUIET = 0.3  # seconds: OpenMP's workers spin for a while after their last work, and would share our cores


class ProgramSegment:
    """Runs a program on batches of any size, for any number of threads at once."""

    def __init__(self, program: Program, threads: int, deterministic: bool = False) -> None:
        self.program, self.threads, self.deterministic = program, threads, deterministic
        self._native, self._failure = _native(program, threads, deterministic)
        if self._native is None:
            warnings.warn(
                f"the native library can't be loaded ({self._failure}); this network runs in NumPy, on dense weights, "
                "tens of times slower",
                RuntimeWarning,
                stacklevel=4,
            )

    def __reduce__(self) -> tuple:
        return ProgramSegment, (self.program, self.threads, self.deterministic)

    def __call__(self, x: Floats) -> Floats:
        """The result for x (N, C, H, W), or (N, C) where the program's input is flat."""
        x = np.ascontiguousarray(x).reshape(len(x), *self.program.input)
        y = reference.run(self.program, x) if self._native is None else self._native.run(x)
        return y.reshape(y.shape[:2]) if self.program.flat_output else y

    def plan(self, batch: int) -> None:
        """Chooses the kernels for a batch size."""
        if self._native is not None:
            self._native.plan(batch)

    def summary(self) -> str:
        """The plan for the batch that ran last, and what all plans hold."""
        if self._native is None:
            return plan_table.of_program(self.program, f"NumPy reference: {self._failure}", [])
        report = self._native.report()
        if not report["batch"]:
            return plan_table.of_program(self.program, "not planned yet: plan or run a batch first", [])
        steps = self.steps()
        heading = f"{self._native.isa}, {self.threads} threads, batch {report['batch']}: {verdict(self.program, steps)}"
        return plan_table.of_program(self.program, heading, steps) + "\n" + plan_table.of_memory(report)

    def steps(self) -> list[dict]:
        """The steps of the native program for the batch that ran last; none before, and none of the reference."""
        return [] if self._native is None else self._native.table()


def verdict(program: Program, steps: Iterable[Mapping[str, Any]]) -> str:
    """On which weights the program's convolutions run."""
    ops = {i for i, op in enumerate(program.ops) if isinstance(op, Conv) and op.weight.dense is None}
    dense = sum(step["op"] in ops and step["kernel"].startswith("dense") for step in steps)
    if not dense:
        return "runs the weights as they are"
    return f"runs the weights as they are, but {dense} of {len(ops)} as dense ones, which were faster"


def median_ms(*runs: Callable[[], object]) -> tuple[float, ...]:
    """The median time of each run in ms. Each is timed alone, when the threads of the one before have fallen asleep."""
    medians = []
    for run in runs:
        run()  # what is made at first is made now
        time.sleep(QUIET)
        run()  # its own threads are awake
        times: list[float] = []
        while len(times) < TRIES or sum(times) < SECONDS:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        medians.append(1e3 * sorted(times)[len(times) // 2])
    return tuple(medians)


def _native(program: Program, threads: int, deterministic: bool) -> tuple[Any, str]:
    """The NativeProgram, or None and why the library can't be loaded."""
    try:
        from splore.engine.native import NativeError, NativeProgram, load_library

        load_library()
    except (ImportError, OSError) as error:
        return None, str(error)
    try:
        return NativeProgram(program, threads=threads, deterministic=deterministic), ""
    except NativeError as error:  # the library is there: NumPy would hide what is wrong
        raise ValueError(f"the engine can't run this program: {error}") from error
