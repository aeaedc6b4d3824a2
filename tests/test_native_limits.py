"""A process that gets no more memory, and so no more threads, is told so by errors, and goes on."""

import subprocess
import sys
from pathlib import Path

import pytest
from kernels import ISAS

pytestmark = [
    pytest.mark.skipif(not ISAS, reason="the native library is not built"),
    pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is Linux's"),
]

SCRIPT = """
import resource, sys
from pathlib import Path

import numpy as np
from kernels import conv_program
from programs import floats
from splore.engine.native import NativeError, NativeProgram

program = conv_program(3, 12, 16, (100, 100), 3, 0.3, 2)
x = floats(np.random.default_rng(3), 40, *program.input)
want = NativeProgram(program, threads=1).run(x)
_, most = resource.getrlimit(resource.RLIMIT_AS)
found = {"right": 0, "refused": 0}


def right(engine, images):
    assert np.allclose(engine.run(x[:images]), want[:images], atol=1e-3)


def attempt(work, *arguments):
    try:
        work(*arguments)
        found["right"] += 1
    except (NativeError, MemoryError):
        found["refused"] += 1


for threads, extra in enumerate((0, 1, 3, 8, 16, 30, 60, 120, 400), 2):
    known = NativeProgram(program, threads=threads)
    known.plan(3)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (extra << 20), most))
    attempt(right, known, 3)
    attempt(right, known, 40)
    attempt(known.plan, 40)
    attempt(lambda: NativeProgram(program, threads=threads + 8).plan(1))
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    right(known, 3)
    right(known, 40)
print(found["right"], found["refused"])
"""


def test_without_memory_there_are_errors_and_with_it_again_results():
    path = ":".join([str(Path(__file__).parent), *sys.path])
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    right, refused = map(int, ran.stdout.split())
    assert right > 3 and refused > 3
