"""A program in the native engine.

Environment: SPLORE_ISA (avx512vnni, avx512, avxvnni, avx2 or generic) forces an instruction set;
SPLORE_PLAN=fast makes plans without timing, for tests.
"""

import ctypes
import json
import os
from functools import cached_property

import numpy as np

from splore.engine.library import NativeError, Options, load_library
from splore.engine.program import Program
from splore.engine.weight import Floats
from splore.engine.words import raw_program
from splore.machine import usable_cores

Message = ctypes.c_char * 500  # what an error says


class NativeProgram:
    """A program in the native engine. Any number of threads may use it at once.

    `isa` is avx512vnni, avx512, avxvnni, avx2 or generic; None takes SPLORE_ISA, or the best that the machine has.
    `threads` work on a run (default: every core that this process may use). `deterministic` gives an image the same
    result to the bit, whatever the batch and the engine. Plans hold at most `plan_bytes` of packed weights; 0 takes
    256 MiB, or four times the program's arrays. Raises NativeError where the library can't be loaded, or has no such
    instruction set.
    """

    def __init__(
        self,
        program: Program,
        isa: str | None = None,
        threads: int | None = None,
        deterministic: bool = False,
        plan_bytes: int = 0,
    ) -> None:
        self.program = program
        self._library = load_library()
        self._engine = ctypes.c_void_p()
        raw, self._read = raw_program(program)  # the engine reads these arrays as long as it lives
        chosen = os.environ.get("SPLORE_ISA", "") if isa is None else isa
        size = ctypes.sizeof(Options)
        options = Options(size, chosen.encode(), threads or usable_cores(), deterministic, plan_bytes, 0, 0)
        self._call("splore_create", ctypes.byref(raw), ctypes.byref(options), ctypes.byref(self._engine))

    def plan(self, batch: int) -> None:
        """Chooses the kernels for a batch size by timing them: moments for a small network, seconds for a large one.
        A size that is planned already is left as it is."""
        self._call("splore_plan", self._engine, batch)

    def save_plans(self) -> str:
        """The timed plans as a text, for engines of this program on machines of this kind; "" where there are none."""
        return self._text("splore_save_plans")

    def load_plans(self, plans: str) -> None:
        """Takes over plans without timing. Raises NativeError where they were made on a machine of another kind, by
        another version or number of threads, or don't fit the program; the engine is then as before."""
        self._call("splore_load_plans", self._engine, plans.encode())

    def force(self, kernel: str) -> None:
        """For tests: forgets all plans, and later ones take, of each operation's kernels, only those whose description
        contains `kernel`."""
        self._call("splore_force", self._engine, kernel.encode())

    def run(self, x: Floats) -> Floats:
        """The output (N, C', H', W') for the images x (N, C, H, W); N may be 0. A batch size without a plan runs
        at once, by those that there are, or untimed."""
        if x.ndim != 4 or x.shape[1:] != tuple(self.program.input):
            expected = ", ".join(map(str, self.program.input))
            raise ValueError(f"expected images of shape (N, {expected}), found {x.shape}")
        x = np.ascontiguousarray(x, np.float32)
        y = np.empty((len(x), *self.program.output), np.float32)
        if not len(x):
            return y
        self._call("splore_run", self._engine, x.ctypes.data, y.ctypes.data, len(x))
        return y

    def table(self) -> list[dict]:
        """The plan of the batch that ran last, or was planned last, a row for each step: the operation `op` (-1 is the
        way in, -2 the way out) and its `name`, the `kernel`, the `images` and `threads` of a step, `ms`, `macs`
        (multiply-adds done), `gmacs_per_s`, and `peak_share`, the part of what these threads could do if nothing had to
        be loaded."""
        rows = self.report()["steps"]
        for row in rows:
            nanoseconds = row.pop("nanoseconds")
            row["ms"] = nanoseconds / 1e6
            row["gmacs_per_s"] = row["macs"] / nanoseconds if nanoseconds else 0.0
            peak = self.peak if row["bits"] == 32 else self.int_peak
            row["peak_share"] = row["gmacs_per_s"] / (row["threads"] * peak)
            row["name"] = self.program.ops[row["op"]].name if row["op"] >= 0 else row["kernel"]
        return rows

    def report(self) -> dict:
        """The `batch` that ran last, or was planned last (0 for none), whether it is `planned` itself, whether anything
        was `timed`, how many kinds of `slices` all plans have, their `packed_bytes` and the `most_bytes` that these may
        be, and the `steps`."""
        return json.loads(self._text("splore_table"))

    @cached_property
    def peak(self) -> float:
        """10^9 multiply-adds a second that one thread reaches out of registers alone, measured when first asked for."""
        return self._library.splore_peak(self._engine)

    @cached_property
    def int_peak(self) -> float:
        """The same of products of bytes."""
        return self._library.splore_int_peak(self._engine)

    @property
    def isa(self) -> str:
        """avx512vnni, avx512, avxvnni, avx2 or generic."""
        return self._library.splore_isa(self._engine).decode()

    @property
    def workspace_bytes(self) -> int:
        """Activations and scratch of one caller's run, the most of all plans so far; without the weights."""
        return self._library.splore_workspace(self._engine)

    @property
    def packed_bytes(self) -> int:
        """The weights as the plans have packed them."""
        return self._library.splore_packed(self._engine)

    def _text(self, name: str) -> str:
        write = getattr(self._library, name)
        text = ctypes.create_string_buffer(1 << 14)
        while (needed := write(self._engine, text, len(text))) > len(text):
            text = ctypes.create_string_buffer(needed)
        return text.value.decode()

    def _call(self, name: str, *arguments: object) -> None:
        error = Message()
        if getattr(self._library, name)(*arguments, error, len(error)):
            raise NativeError(error.value.decode(errors="replace"))

    def __del__(self) -> None:
        if getattr(self, "_engine", None):
            self._library.splore_destroy(self._engine)
