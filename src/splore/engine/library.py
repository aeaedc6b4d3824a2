"""The native library: `native/splore.h`, found, loaded and declared once.

Environment: SPLORE_LIBRARY is the path of another library than the installed one.
"""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

ABI = 4
_LIBRARY = "libsplore.dylib" if sys.platform == "darwin" else "libsplore.so"


class NativeError(OSError):
    """The native library can't be loaded, or an engine can't do what it was asked; the message says why."""


class Array(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("count", ctypes.c_int64), ("type", ctypes.c_int64)]


class RawProgram(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_int64),
        ("op_words", ctypes.c_int64),
        ("array_size", ctypes.c_int64),
        ("input", ctypes.c_int64 * 3),
        ("op_count", ctypes.c_int64),
        ("ops", ctypes.POINTER(ctypes.c_int64)),
        ("input_count", ctypes.c_int64),
        ("inputs", ctypes.POINTER(ctypes.c_int64)),
        ("array_count", ctypes.c_int64),
        ("arrays", ctypes.POINTER(Array)),
    ]


class Options(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_int64),
        ("isa", ctypes.c_char_p),
        ("threads", ctypes.c_int64),
        ("deterministic", ctypes.c_int64),
        ("plan_bytes", ctypes.c_int64),
        ("image_bytes", ctypes.c_int64),
        ("replan", ctypes.c_int64),
    ]


def library_path() -> Path:
    """Where the native library is: what SPLORE_LIBRARY names, or the first one found beside this module or, for an
    editable install, which keeps what it builds apart from the sources, in this package's place on sys.path."""
    name = os.environ.get("SPLORE_LIBRARY")
    if name:
        return Path(name)
    beside = Path(__file__).parent / "_native" / _LIBRARY
    installed = (Path(entry) / "splore" / "engine" / "_native" / _LIBRARY for entry in sys.path)
    return next((path for path in (beside, *installed) if path.is_file()), beside)


@cache
def load_library() -> ctypes.CDLL:
    """The native library with its functions declared. Raises NativeError where it can't be loaded."""
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeError(f"the native engine can't be loaded from {path}: {error}") from error
    engine, text, size, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int64
    message, made, options = (text, size), ctypes.POINTER(engine), ctypes.POINTER(Options)
    declared = {
        "splore_abi": (ctypes.c_int,),
        "splore_version": (text,),
        "splore_create": (ctypes.c_int, ctypes.POINTER(RawProgram), options, made, *message),
        "splore_open": (ctypes.c_int, text, options, made, *message),
        "splore_open_memory": (ctypes.c_int, ctypes.c_char_p, size, options, made, *message),
        "splore_force": (ctypes.c_int, engine, text, *message),
        "splore_plan": (ctypes.c_int, engine, number, *message),
        "splore_save_plans": (number, engine, text, number),
        "splore_load_plans": (ctypes.c_int, engine, text, *message),
        "splore_run": (ctypes.c_int, engine, ctypes.c_void_p, ctypes.c_void_p, number, *message),
        "splore_input": (None, engine, ctypes.POINTER(number)),
        "splore_output": (None, engine, ctypes.POINTER(number)),
        "splore_isa": (text, engine),
        "splore_workspace": (number, engine),
        "splore_packed": (number, engine),
        "splore_peak": (ctypes.c_double, engine),
        "splore_int_peak": (ctypes.c_double, engine),
        "splore_table": (number, engine, text, number),
        "splore_destroy": (None, engine),
    }
    for name, (result, *arguments) in declared.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise NativeError(f"{path} is not a library of this engine: it has no {name}") from error
        function.restype, function.argtypes = result, arguments
    if library.splore_abi() != ABI:
        raise NativeError(f"{path} has the interface {library.splore_abi()}, expected {ABI}: build it again")
    return library
