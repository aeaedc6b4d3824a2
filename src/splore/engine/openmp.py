"""Torch on the calling thread alone, for as long as a part of an engine takes.

Torch's operators run in threads of OpenMP, which spin for a while after each one and hold the processors that the
engine's next segment needs. Where the calling thread may have only one, none is woken. That is a setting of the calling
thread: `torch.set_num_threads`, which holds for the process, is left alone.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

forked = (
    False  # whether this process is a child, which GNU OpenMP's threads did not come along to: it would wait for them
)


def _in_child() -> None:
    global forked
    forked = True


os.register_at_fork(after_in_child=_in_child)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it, torch runs on the calling thread alone, where its OpenMP can be told so; nothing else changes."""
    import torch

    openmp = _library()
    threads = torch.get_num_threads()  # of this thread, which torch may only now set up
    if openmp is None or threads == 1:
        yield
        return
    openmp.omp_set_num_threads(1)
    try:
        yield
    finally:
        openmp.omp_set_num_threads(threads)


@cache
def _library() -> ctypes.CDLL | None:
    """The OpenMP that torch runs on; None where it isn't found, or torch does not heed it."""
    import torch

    threads = torch.get_num_threads()
    for path in sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*")):
        try:
            openmp = ctypes.CDLL(str(path))
            openmp.omp_set_num_threads(1)
        except (OSError, AttributeError):
            continue
        heeded = torch.get_num_threads() == 1
        openmp.omp_set_num_threads(threads)
        if heeded:
            return openmp
    return None
