"""Hostile program files: each is either refused with a ValueError, or valid and run.

    python tests/fuzz_program.py --files 100000 [--seed 0] [--seconds 600]

Every file is a valid one, changed: bytes flipped, cut, repeated; its header edited; its structure or its tensors edited
and signed again, so that the checksum hides nothing. Files that load are run with the native library, where it loads;
for a library built with a sanitizer, name it in SPLORE_LIBRARY and the sanitizer's runtime in LD_PRELOAD. Whatever else
than a ValueError comes up, a crash or a hang included, leaves the file at hand in the directory that is printed at the
start.
"""

import argparse
import copy
import faulthandler
import json
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from kernels import in_bytes
from native_file import opened
from programs import random_program
from safetensors.numpy import save

from splore.engine import program_file, reference
from splore.engine.program import Program

HOSTILE = (
    0, 1, 2, 3, 7, -1, 15, 255, 256, 65535, 65536, 2**20, 2**20 + 1, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53,
    2**63 - 1, 2**63, 2**64, -(2**31), -(2**63), 10**30, 1.5, 1e300, float("nan"), True, False, None,
    "", "conv", "relu", "max", "\ud800", "x" * 999, [], {}, [[]], [0], [1, 1], [1, 1, 1], [0, 0, 0, 0], [2**31] * 2,
    [2**20] * 4, [-1, -1], list(range(50)),
)  # fmt: skip
HANGS = 120  # seconds after which a file counts as a hang: every thread's stack is printed, and the process ends
MOST = 1024  # MiB of memory that the process may reach; the files are a few KiB, and what runs is SMALL
SMALL = 3_000_000  # multiply-adds and elements up to which a valid file is run
BATCHES = (1, 3, 17)  # of both layouts
KERNELS = ("", "sparse", "inside", "pattern", "dense", "gathered")  # that valid files are run by


def flip_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    header = min(len(data), 8 + int.from_bytes(data[:8], "little"))
    end = header if rng.random() < 0.5 else len(data)
    for place in rng.integers(0, end, rng.integers(1, 9)):
        changed[place] = int(rng.integers(256)) if rng.random() < 0.5 else changed[place] ^ (1 << int(rng.integers(8)))
    return bytes(changed)


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(int(place) for place in rng.integers(0, len(data) + 1, 2))
    return [data[:start], data[start:], data[:start] + data[end:], data[:end] + data[start:]][rng.integers(4)]


def edit_length(data: bytes, rng: np.random.Generator) -> bytes:
    length = [0, 1, len(data), len(data) - 8, 2**31, 2**32, 2**63, 2**64 - 1, int(rng.integers(0, len(data)))]
    return struct.pack("<Q", length[rng.integers(len(length))]) + data[8:]


def edit_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Edits the JSON header of the safetensors file: types, shapes, offsets, metadata."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    edit_json(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[end:]


def edit_structure(program: Program, rng: np.random.Generator) -> bytes:
    structure, tensors = parts(program)
    for _ in range(rng.integers(1, 4)):
        edit_json(structure, rng)
    return signed(structure, tensors)


def edit_tensors(program: Program, rng: np.random.Generator) -> bytes:
    structure, tensors = parts(program)
    for _ in range(rng.integers(1, 3)):
        edit_tensor(tensors, rng)
    if rng.random() < 0.3:
        edit_json(structure, rng)
    return signed(structure, tensors)


def edit_tensor(tensors: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    if not tensors:
        tensors["0.dense"] = np.zeros((1, 1), np.float32)
    name = sorted(tensors)[rng.integers(len(tensors))]
    array = tensors[name].copy()
    kind = rng.integers(7)
    if kind == 0:
        del tensors[name]
        return
    if kind == 1:
        tensors[name.replace(name.split(".")[0], str(rng.integers(0, 9)), 1)] = array
        return
    if kind == 2 and array.size:
        places = rng.integers(0, array.size, rng.integers(1, 5))
        array.reshape(-1)[places] = rng.choice([0, 1, 2, 255, 65535, 2**31, 2**32 - 1], len(places))
    elif kind == 3 and array.size:
        array.reshape(-1)[rng.integers(array.size)] += array.dtype.type(1)
    elif kind == 4:
        array = array.reshape(-1)[: rng.integers(0, array.size + 1)]
    elif kind == 5:
        array = array.astype([np.float64, np.int32, np.uint8, np.uint32, np.float16, np.float32][rng.integers(6)])
    else:
        array = array.reshape(array.shape[::-1]) if rng.random() < 0.5 else array.reshape(-1, 1, 1)
    tensors[name] = np.ascontiguousarray(array)


def edit_json(tree: dict | list, rng: np.random.Generator) -> None:
    """Changes one place of a JSON value: any value, key or element, to something hostile, or to another of its own."""
    places: list[tuple[dict | list, object]] = []

    def walk(node: object) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(tree)
    if not places:
        return
    node, key = places[rng.integers(len(places))]
    kind = rng.integers(8)
    if kind == 0:
        del node[key]
    elif kind == 1:
        other, place = places[rng.integers(len(places))]
        node[key] = copy.deepcopy(other[place])
    elif kind == 2 and isinstance(node, dict):
        node["unknown"] = copy.deepcopy(node[key])
    elif kind == 2:
        node.insert(int(rng.integers(len(node) + 1)), copy.deepcopy(node[key]))
    elif kind in (3, 4, 5) and type(node[key]) is int:
        node[key] += int(rng.integers(-3, 4))
    else:
        node[key] = copy.deepcopy(HOSTILE[rng.integers(len(HOSTILE))])


def any_program(rng: np.random.Generator) -> Program:
    """A random program, one in three in eight bits."""
    seed = int(rng.integers(1 << 30))
    program = random_program(seed)
    return in_bytes(program, seed) if rng.random() < 0.33 else program


def parts(program: Program) -> tuple[dict, dict[str, np.ndarray]]:
    structure = json.loads(json.dumps(program_file.describe(program)))
    stored = ((i, *each) for i, op in enumerate(program.ops) for each in program_file.stored_arrays(op))
    return structure, {f"{i}.{name}": array for i, name, array in stored}


def signed(structure: object, tensors: dict[str, np.ndarray]) -> bytes:
    """A file with this structure and these tensors, and the checksum that fits."""
    text = json.dumps(structure)
    metadata = {program_file.PROGRAM: text, program_file.CHECKSUM: program_file.checksum(text, tensors)}
    return save(tensors, metadata)


def mutate(program: Program, rng: np.random.Generator) -> bytes:
    """A file that was valid, and probably is no more."""
    kind = rng.random()
    if kind < 0.05:
        return signed(*parts(any_program(rng)))  # this one is
    with np.errstate(all="ignore"):
        if kind < 0.6:
            return (edit_structure if rng.random() < 0.6 else edit_tensors)(program, rng)
        ways = [flip_bytes, flip_bytes, cut, edit_length, edit_header]
        return ways[rng.integers(len(ways))](signed(*parts(program)), rng)


def check(path: Path, run: Callable[[Program, np.ndarray], np.ndarray]) -> str:
    """Loads one file, and runs it where that is quick. What came of it; anything but a ValueError goes through.

    Where there is a native library its own reader must come to the same verdict.
    """
    native = run is not reference.run
    try:
        program = program_file.load(path)
    except ValueError as error:
        if not str(error).strip():
            raise AssertionError("an error without a message") from error
        if native and taken(path.read_bytes()) and "a name must be" not in str(error):  # names are nothing to it
            raise AssertionError(f"the native reader takes what the other refuses: {error}") from error
        return "refused"
    if native and not taken(path.read_bytes()):
        raise AssertionError("the native reader refuses what the other takes")
    cost = program.multiply_adds + sum(int(np.prod(shape)) for shape in program.shapes)
    padded = sum(_padded(program, index) for index in range(len(program.ops)))
    if cost + padded > SMALL:
        return "valid, too big to run"
    with np.errstate(all="ignore"):
        run(program, np.zeros((BATCHES[cost % len(BATCHES)], *program.input), np.float32))
    return "valid"


def taken(file: bytes) -> bool:
    """Whether the native reader takes a file."""
    try:
        with opened(file):
            return True
    except OSError:
        return False


def _padded(program: Program, index: int) -> int:
    op = program.ops[index]
    c, height, width = program.shapes[op.inputs[0] if op.inputs else index + 1]
    top, left, bottom, right = getattr(op, "pad", (0, 0, 0, 0))
    window = int(np.prod(getattr(op, "kernel", (1,)))) * int(np.prod(program.shapes[index + 1][1:]))
    return c * ((height + top + bottom) * (width + left + right) + window)


def native_or_reference() -> tuple[str, Callable[[Program, np.ndarray], np.ndarray]]:
    """What runs the files that are valid."""
    try:
        from splore.engine.native import NativeProgram, load_library

        load_library()
    except (ImportError, OSError, RuntimeError) as error:
        return f"the NumPy reference, because the native library can't be loaded: {error}", reference.run

    def run(program: Program, x: np.ndarray) -> np.ndarray:
        engine = NativeProgram(program)
        engine.force(KERNELS[program.multiply_adds % len(KERNELS)])
        return engine.run(x)

    return "the native library", run


def fuzz(files: int, seed: int, directory: Path, run: Callable, seconds: float = float("inf")) -> Counter[str]:
    """Counts what came of each file. The file at hand stays in the directory where anything but a ValueError comes."""
    rng, found, start = np.random.default_rng(seed), Counter(), time.monotonic()
    seeds = [any_program(rng) for _ in range(50)]
    path = directory / "at_hand.splore"
    for number in range(files):
        if number % 500 == 499:  # fresh programs now and then
            seeds[rng.integers(len(seeds))] = any_program(rng)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        path.write_bytes(mutate(seeds[rng.integers(len(seeds))], rng))
        found[check(path, run)] += 1
        if time.monotonic() - start > seconds:
            break
    faulthandler.cancel_dump_traceback_later()
    path.unlink()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000, help="how many files")
    parser.add_argument("--seed", type=int, default=0, help="of the random changes")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop earlier, after this time")
    options = parser.parse_args()
    what, run = native_or_reference()
    directory = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    print(f"valid files are run by {what}; the file at hand is in {directory}", flush=True)
    start = time.monotonic()
    found = fuzz(options.files, options.seed, directory, run, options.seconds)
    directory.rmdir()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    counts = ", ".join(f"{count} {what}" for what, count in sorted(found.items()))
    print(f"{sum(found.values())} files in {time.monotonic() - start:.0f} s: {counts}; peak memory {peak:.0f} MiB")
    if peak > MOST:
        print(f"some file took more memory than it justifies: expected at most {MOST} MiB")
    return int(peak > MOST)


if __name__ == "__main__":
    sys.exit(main())
