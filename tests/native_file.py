"""A program file as a C program reads it: by `splore_open` and `splore_open_memory`, without the reader in Python."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from splore.engine.library import NativeError, Options, load_library

Engine = ctypes.c_void_p
ERROR = 500  # bytes of a message


@contextmanager
def opened(file: bytes | str, threads: int = 1, image_bytes: int = 0, replan: bool = False) -> Iterator[Engine]:
    """An engine of a file's bytes, or of the file at a path. Raises NativeError where it is refused."""
    library, engine, error = load_library(), Engine(), ctypes.create_string_buffer(ERROR)
    options = Options(ctypes.sizeof(Options), b"", threads, 0, 0, image_bytes, replan)
    after = (ctypes.byref(options), ctypes.byref(engine), error, ERROR)
    if isinstance(file, str):
        failed = library.splore_open(file.encode(), *after)
    else:
        failed = library.splore_open_memory(file, len(file), *after)
    if failed:
        raise NativeError(error.value.decode(errors="replace"))
    try:
        yield engine
    finally:
        library.splore_destroy(engine)


def run(engine: Engine, x: np.ndarray) -> np.ndarray:
    """What the engine gives for x (N, C, H, W)."""
    library, shape = load_library(), (ctypes.c_int64 * 3)()
    library.splore_input(engine, shape)
    assert tuple(shape) == x.shape[1:]
    library.splore_output(engine, shape)
    y, error = np.empty((len(x), *shape), np.float32), ctypes.create_string_buffer(ERROR)
    if library.splore_run(engine, x.ctypes.data, y.ctypes.data, len(x), error, ERROR):
        raise NativeError(error.value.decode())
    return y


def saved_plans(engine: Engine) -> str:
    """The plans that an engine holds."""
    library = load_library()
    text = ctypes.create_string_buffer(library.splore_save_plans(engine, None, 0))
    library.splore_save_plans(engine, text, len(text))
    return text.value.decode()
