"""How long runtimes take for a batch: they take turns, so that a busy moment of the machine meets all of them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splore.deploy.runtimes import Run

ROUNDS = 10
"""Turns of each runtime, at the least."""
PAUSE = 0.01  # seconds
IDLE = 0.1  # share of a pause that this process may compute in, and still be idle
LONGEST_WAIT = 100  # pauses


@dataclass(frozen=True)
class Latency:
    """Of single calls, one after another.

    Attributes:
        median_ms, p95_ms: what half and 95 % of the calls stay within.
        images_per_second: images over the time of all calls.
        calls: how many were timed.
    """

    median_ms: float
    p95_ms: float
    images_per_second: float
    calls: int


def measure(runs: Mapping[str, Run], x: NDArray[np.float32], seconds: float = 1.0) -> dict[str, Latency]:
    """Times every runtime on one batch (N, ...) for so many seconds each, in `ROUNDS` turns or more calls than these.

    Before each turn the threads of the runtime before have fallen asleep, and one untimed call wakes its own.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(x)  # what is made at first is made now
    for _ in range(ROUNDS):
        for name, run in runs.items():
            _until_idle()
            run(x)
            end = time.perf_counter() + seconds / ROUNDS
            while True:
                start = time.perf_counter()
                run(x)
                now = time.perf_counter()
                times[name].append(now - start)
                if now > end:
                    break
    return {name: _latency(len(x), np.array(each)) for name, each in times.items()}


def _latency(batch: int, seconds: NDArray[np.float64]) -> Latency:
    median, p95 = 1e3 * np.quantile(seconds, [0.5, 0.95])
    return Latency(float(median), float(p95), batch * len(seconds) / float(seconds.sum()), len(seconds))


def _until_idle() -> None:
    """Some runtimes' threads spin for long after their work, and would share the cores of the next."""
    for _ in range(LONGEST_WAIT):
        used = time.process_time()
        time.sleep(PAUSE)
        if time.process_time() - used < IDLE * PAUSE:
            return
