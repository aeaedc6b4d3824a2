"""Many callers, plans and engines at once, for ThreadSanitizer, without torch: `make tsan`.

    python tests/stress_threads.py [--seconds 60]

Every result is compared with the one that a single thread gives. For a library built with ThreadSanitizer, name it in
SPLORE_LIBRARY and the sanitizer's runtime in LD_PRELOAD.
"""

import argparse
import os
import sys
import threading
import time

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads are no matter of ours

import numpy as np
from kernels import conv_program, in_bytes
from programs import floats, random_program

from splore.engine.native import NativeProgram

MOST = 40  # images


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    end, wrong, rounds = time.monotonic() + options.seconds, [], 0
    conv = conv_program(3, 12, 16, (12, 12), 3, 0.3, 2, residual=True)
    programs = [conv, in_bytes(conv, 0), *map(random_program, (11, 12, 37))]
    while time.monotonic() < end:
        os.environ["SPLORE_PLAN"] = "" if rounds % 4 == 3 else "fast"
        program, threads = programs[rounds % len(programs)], 1 + rounds % 3
        wrong += stress(program, threads, np.random.default_rng(rounds))
        rounds += 1
    print(f"{rounds} rounds, {len(wrong)} wrong results")
    return int(bool(wrong))


def stress(program, threads, rng) -> list[str]:
    """One engine with callers, planners and copies of its plans, from its first call on."""
    x = floats(rng, MOST, *program.input)
    want = NativeProgram(program, threads=1).run(x)
    engine, other, wrong = NativeProgram(program, threads=threads), NativeProgram(program, threads=threads), []

    def check(one: NativeProgram, images: int) -> None:
        if not np.allclose(one.run(x[:images]), want[:images], 1e-3, 1e-3 * max(1.0, abs(want).max())):
            wrong.append(f"{images} images, {threads} threads")

    def call(seed: int) -> None:
        for images in np.random.default_rng(seed).integers(1, MOST + 1, 12):
            check(engine, int(images))
            check(other, int(images))

    def plan() -> None:
        for images in (1, 16, 37):
            engine.plan(images)
            engine.report()
            other.load_plans(engine.save_plans())

    callers = [threading.Thread(target=call, args=(seed,)) for seed in rng.integers(0, 1000, 3)]
    callers.append(threading.Thread(target=plan))
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return wrong


if __name__ == "__main__":
    sys.exit(main())
