"""One program and what runs it: the native kernels, or the NumPy reference."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from splore.engine import plan_table, reference
from splore.engine.program import Conv, Floats, Program
from splore.files import json_object, numbers, typed

TRIES = 7  # timed runs of a choice, at the least
SECONDS = 0.1  # that they go on for, if they are short
QUIET = 0.3  # seconds: OpenMP's workers spin for a while after their last work, and would share our cores


class ProgramSegment:
    """Runs a program on batches of any size, for any number of threads at once.

    `plans` is what `save_plans` of another engine of the program gave. Where they don't fit this machine they are left,
    and the summary says why; their batch sizes are planned here instead where `replan` is true.
    """

    def __init__(
        self, program: Program, threads: int, deterministic: bool = False, plans: str = "", replan: bool = False
    ) -> None:
        self.program, self.threads, self.deterministic = program, threads, deterministic
        self._native, self._failure = _native(program, threads, deterministic)
        if self._native is None:
            warnings.warn(
                f"the native library can't be loaded ({self._failure}); this network runs in NumPy, on dense weights, "
                "tens of times slower",
                RuntimeWarning,
                stacklevel=4,
            )

        self._refused = ""
        if plans and self._native is not None and not deterministic:
            try:
                self._native.load_plans(plans)
            except OSError as error:
                self._refused = f"\nplans that came with the program are left: {error}"
                for batch in _batches(plans) if replan else ():
                    self.plan(batch)

    def __reduce__(self) -> tuple:
        return ProgramSegment, (self.program, self.threads, self.deterministic, self.save_plans())

    def __call__(self, x: Floats) -> Floats:
        """The result for x (N, C, H, W), or (N, C) where the program's input is flat."""
        x = np.ascontiguousarray(x).reshape(len(x), *self.program.input)
        y = reference.run(self.program, x) if self._native is None else self._native.run(x)
        return y.reshape(len(y), *self.program.caller_shapes[1])

    def plan(self, batch: int) -> None:
        """Chooses the kernels for a batch size."""
        if self._native is not None:
            self._native.plan(batch)

    def save_plans(self) -> str:
        """The timed plans as a text; "" where there are none."""
        return "" if self._native is None else self._native.save_plans()

    def summary(self) -> str:
        """The plan for the batch that ran last, and what all plans hold."""
        if self._native is None:
            return plan_table.of_program(self.program, f"NumPy reference: {self._failure}", [])
        report = self._native.report()
        if not report["batch"]:
            return plan_table.of_program(self.program, "not planned yet: plan or run a batch first", []) + self._refused
        steps = self.steps()
        heading = f"{self._native.isa}, {self.threads} threads, batch {report['batch']}: {verdict(self.program, steps)}"
        return plan_table.of_program(self.program, heading, steps) + "\n" + plan_table.of_memory(report) + self._refused

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


def _batches(plans: str, most: int = 32) -> list[int]:
    """The batch sizes of saved plans; the text may be anything."""
    try:
        return [numbers([plan["batch"]], 1)[0] for plan in typed(json_object(plans)["plans"], list)[:most]]
    except (ValueError, KeyError, TypeError):
        return []


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
