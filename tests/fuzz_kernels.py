"""Random programs by the native kernels, compared with their readable twin.

    python tests/fuzz_kernels.py --programs 100000 [--seed 0] [--seconds 600] [--timed 0.05]

Each program is run for several batch sizes by one engine, with an instruction set, a number of threads and a forced
kernel drawn for it, and now and then by plans that are timed. Before each run the engine's memory is poisoned: it runs
images that are no numbers, and whatever the next run reads without having written it is a NaN. For a library built with
a sanitizer, name it in SPLORE_LIBRARY and the sanitizer's runtime in LD_PRELOAD.

The draw of each program is its number: `--seed 123 --programs 1` runs program 123 again.
"""

import argparse
import faulthandler
import os
import sys
import time
from collections import Counter

import numpy as np
from kernels import in_bytes, is_exact
from programs import floats, random_program

from splore.engine import reference
from splore.engine.native import NativeError, NativeProgram
from splore.engine.program import Floats, Program

HANGS = 300  # seconds after which a program counts as a hang: every thread's stack is printed, and the process ends
BATCHES = (1, 2, 3, 5, 8, 9, 15, 16, 17, 24, 33)
KERNELS = (
    "",
    "",
    "",
    "sparse",
    "inside",
    "pattern",
    "dense",
    "gathered",
    "in place",
    "winograd",
    "1x1",
    "2x4",
    "block 8 ",
    "block 2 ",
)
ISAS = ("generic", "avx2", "avxvnni", "avx512", "avx512vnni")
CLOSE = 1e-4  # of the largest number of a result
NOISE = 1e-6  # of the input, where a program makes much of little


class WrongResult(AssertionError):
    """The kernels and their twin differ."""


def check(seed: int, timed: float = 0.0, isas: tuple[str, ...] = ISAS, bytes_share: float = 0.4) -> str:
    """Runs the program of this number: `equal`, `refused`, or `not finite`, where there is nothing to compare.

    Raises WrongResult where the kernels and the twin differ.
    """
    rng = np.random.default_rng([seed, 1])
    program = random_program(seed)
    integer = in_bytes(program, seed) if rng.random() < bytes_share else program
    exact = is_exact(integer)
    program = integer if exact else program
    isa, kernel, threads = (choices[rng.integers(len(choices))] for choices in (isas, KERNELS, (1, 1, 2, 3)))
    batches = [int(batch) for batch in rng.choice(BATCHES, 3, replace=False)]
    os.environ["SPLORE_PLAN"] = "" if rng.random() < timed else "fast"
    try:
        engine = NativeProgram(program, isa, threads)
    except NativeError:
        return "refused"
    engine.force(kernel)
    found = "equal"
    for batch in batches:
        x = floats(rng, batch, *program.input)
        with np.errstate(all="ignore"):
            want = reference.run(program, x)
            engine.plan(batch)
            engine.run(np.full_like(x, np.nan))
            got = engine.run(x)
            if exact:
                if not np.array_equal(got, want):
                    raise WrongResult(f"program {seed} in bytes is not equal: {isa}, {threads} threads, batch {batch}")
            elif not np.isfinite(want).all():
                found = "not finite"
            elif not close(program, x, want, got):
                how = f"{isa}, {threads} threads, batch {batch} of {batches}, kernel {kernel!r}"
                raise WrongResult(f"program {seed} is off by {np.abs(got - want).max():.3g}: {how}")
    return found


def close(program: Program, x: Floats, want: Floats, got: Floats) -> bool:
    """Whether two results are as near as rounding lets them be."""
    allowed = CLOSE * max(1.0, float(np.abs(want).max(initial=0)))
    if np.abs(got - want).max(initial=0) <= allowed:
        return True
    # Where large numbers cancel, a little noise in the input shows how much the result means.
    noise = np.random.default_rng(0).uniform(-NOISE, NOISE, x.shape).astype(np.float32)
    spread = np.abs(reference.run(program, x + x * noise) - want).max()
    return bool(np.abs(got - want).max() <= allowed + 10 * spread)


def available(isas: tuple[str, ...] = ISAS) -> tuple[str, ...]:
    """The instruction sets of this machine. Raises NativeError where the library can't be loaded."""
    found = []
    for isa in isas:
        try:
            NativeProgram(random_program(0), isa)
        except NativeError as error:
            if "instruction set" not in str(error):
                raise
        else:
            found.append(isa)
    return tuple(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=100_000, help="how many programs")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first one")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop earlier, after this time")
    parser.add_argument("--timed", type=float, default=0.02, help="share of the programs whose plans are timed")
    options = parser.parse_args()
    isas, start = available(), time.monotonic()
    found, wrong = Counter(), []
    for seed in range(options.seed, options.seed + options.programs):
        faulthandler.dump_traceback_later(HANGS, exit=True)
        try:
            found[check(seed, options.timed, isas)] += 1
        except WrongResult as error:
            wrong.append(str(error))
            print(error, flush=True)
        if time.monotonic() - start > options.seconds:
            break
    faulthandler.cancel_dump_traceback_later()
    ran = found["equal"] + found["not finite"] + len(wrong)
    print(
        f"{sum(found.values()) + len(wrong)} programs in {time.monotonic() - start:.0f} s on {', '.join(isas)}: "
        f"{ran} run with three batch sizes each, {found['refused']} refused; {found['equal']} equal to the twin, "
        f"{found['not finite']} with results that are not finite, {len(wrong)} wrong"
    )
    return int(bool(wrong) or not ran)


if __name__ == "__main__":
    sys.exit(main())
