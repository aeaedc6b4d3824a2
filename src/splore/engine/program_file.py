"""A program as a safetensors file that loads without torch.

The tensors are the arrays of the operations, named `<index of the operation>.<array>`: `3.dense`, `3.bias`,
`3.pre.scale`.
The metadata of the file holds:

- `splore.program`: JSON with `version`, `input` (C, H, W), `flat_input`, `flat_output` and `ops`, a list of objects
  with `op` and the attributes of that operation;
- `splore.checksum`: SHA-256 of that JSON and of every tensor, in the order of their names.

It may hold three more: `splore.task`, JSON with `classes`, `preprocessing` and the SHA-256 of both, see `splore.task`;
`splore.interface`, likewise, see `splore.engine.interface`; and `splore.plans`, the kernels that were chosen on the
machine that wrote the file, which decide how fast the program runs, never what it computes.

`load` trusts nothing: a file that is cut, altered or built to harm raises ValueError before anything runs. What it
allocates is bounded by the size of the file, and what the program takes to run by a limit that the caller sets.
"""

import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from splore.engine import gaps, memory, tensor_ops
from splore.engine.integer import Convert, IntWeight, Quant, Table
from splore.engine.interface import Interface
from splore.engine.program import (
    Act,
    Activate,
    Add,
    Affine,
    Concat,
    Conv,
    Flatten,
    IntConv,
    Mul,
    Op,
    Pool,
    Program,
    arrays,
)  # fmt: skip
from splore.engine.tensor_ops import Factor, Fn
from splore.engine.weight import Scale, Weight
from splore.files import json_object, numbers, sealed, sha256, short, typed, write_whole
from splore.task import Task

VERSION = 1
PROGRAM, CHECKSUM, PLANS = "splore.program", "splore.checksum", "splore.plans"

KINDS: dict[str, type] = {
    "conv": Conv, "pool": Pool, "add": Add, "mul": Mul, "activate": Activate, "affine": Affine, "concat": Concat,
    "flatten": Flatten, "int_conv": IntConv, "convert": Convert, "table": Table,
    **{op.__name__.lower(): op for op in tensor_ops.OPS},
}  # fmt: skip
WEIGHT, INT_WEIGHT = (tuple(field.name for field in fields(kind)) for kind in (Weight, IntWeight))
INT_STORED = tuple("gaps" if name == "positions" else name for name in INT_WEIGHT)
FACTORS = ("scale", "shift")
OWN: dict[type, tuple[str, ...]] = {  # arrays that are attributes by themselves
    tensor_ops.Resample: ("row_index", "row_weight", "column_index", "column_weight"),
    tensor_ops.Constant: ("data",), tensor_ops.Leaky: ("slope",), Table: ("table",),
}  # fmt: skip
ARRAYS = {
    Conv: (*WEIGHT, "bias", "pre.scale", "pre.shift"), IntConv: (*INT_STORED, "bias"), Affine: FACTORS,
    tensor_ops.Normalize: FACTORS, **OWN,
}  # fmt: skip
DIMS = ("input_dims", "output_dims")  # where they are no others
TYPES = ("F32", "U32", "I8", "U8")


def save(
    program: Program,
    path: str | os.PathLike[str],
    task: Task | None = None,
    plans: str = "",
    interface: Interface | None = None,
) -> None:
    """Writes the program, what it is for, plans as `NativeProgram.save_plans` gives them, and what its caller gives and
    gets; whoever reads the path meanwhile sees the old file or the new one, never a part."""
    structure = json.dumps(describe(program), separators=(",", ":"))
    tensors = {f"{i}.{name}": array for i, op in enumerate(program.ops) for name, array in stored_arrays(op)}
    texts = {PROGRAM: structure, CHECKSUM: checksum(structure, tensors)} | ({PLANS: plans} if plans else {})
    more = {"task": task, "interface": interface}
    texts |= {f"splore.{name}": sealed(name, extra.to_json()) for name, extra in more.items() if extra is not None}
    write_whole(path, "the program file", to_bytes(tensors, texts))


def stored_arrays(op: Op) -> Iterator[tuple[str, NDArray]]:
    """The arrays of an operation as a file holds them: positions of blocks as the gaps between them."""
    for name, array in arrays(op):
        if isinstance(op, IntConv) and name == "positions" and op.weight.rows is not None:
            yield "gaps", gaps.encode(array, op.weight.rows)
        else:
            yield name, array


def load(path: str | os.PathLike[str], image_bytes: int = memory.IMAGE_BYTES) -> Program:
    """Reads and checks a whole program, of which an image takes at most so many bytes to run (`splore.engine.memory`).

    ValueError says what is wrong with the file; OSError where it can't be read.
    """
    return load_with_plans(path, image_bytes)[0]


def load_with_plans(path: str | os.PathLike[str], image_bytes: int = memory.IMAGE_BYTES) -> tuple[Program, str]:
    """The same, and the plans as they were saved; "" where there are none."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block
        raise ValueError(f"expected a file of Engine.save at {path}, found something that is no file: check the path")
    try:
        metadata, tensors = _read(path)
        program = _program(metadata, tensors)
        memory.check(program, image_bytes)
        return program, metadata.get(PLANS, "")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {short(error)}") from None
    except ValueError as error:  # without its cause, which may repeat megabytes of the file
        raise ValueError(f"{path} is not a valid program: {short(error)}") from None


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, NDArray]]:
    """The metadata and the tensors of a file."""
    with safe_open(os.fspath(path), framework="numpy") as file:
        tensors = {}
        for name in file.keys():  # noqa: SIM118 - it is no dict
            if file.get_slice(name).get_dtype() not in TYPES:
                raise ValueError(
                    f"tensor {name!r} must be F32, U32, I8 or U8, found {file.get_slice(name).get_dtype()}"
                )
            tensors[name] = file.get_tensor(name)
        return file.metadata() or {}, tensors


def describe(program: Program) -> dict[str, Any]:
    """The structure of a program without its arrays, as JSON holds it."""
    names = {kind: name for name, kind in KINDS.items()}
    ops = []
    for op in program.ops:
        ops.append({"op": names[type(op)]} | {f.name: getattr(op, f.name) for f in fields(op) if f.name in READERS})
        quant = getattr(op, "quant", None)
        if quant is not None:
            ops[-1]["quant"] = [quant.scale, quant.zero]
    return {
        "version": VERSION, "input": program.input, "flat_input": program.flat_input,
        "flat_output": program.flat_output, "ops": ops,
        **{key: getattr(program, key) for key in DIMS if getattr(program, key)},
    }  # fmt: skip


def checksum(structure: str, tensors: Mapping[str, NDArray]) -> str:
    """SHA-256 over the JSON text and every tensor's name, type, shape and bytes, in the order of the names."""

    def parts() -> Iterator[bytes | memoryview]:
        yield structure.encode()
        for name in sorted(tensors):
            array = tensors[name]
            yield f"\n{name} {array.dtype} {array.shape}\n".encode()
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data

    return sha256(parts())


def _program(metadata: Mapping[str, str], tensors: dict[str, NDArray]) -> Program:
    text = metadata.get(PROGRAM)
    if text is None:
        raise ValueError(f"no {PROGRAM!r} in its metadata; was it written by Engine.save?")
    structure = json_object(text)
    version = structure.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ValueError(
            f"expected version {VERSION} or below, found {version!r:.80}; was it written by a newer splore?"
        )
    if metadata.get(CHECKSUM) != checksum(text, tensors):
        raise ValueError("the checksum does not match: the file was altered or damaged")
    dims = {key: numbers(structure[key]) for key in DIMS if key in structure}
    _expect_keys(structure, {"version", "input", "flat_input", "flat_output", "ops", *dims})
    c, height, width = _ints(structure["input"], 3)
    flat_input, flat_output = (typed(structure[key], bool) for key in ("flat_input", "flat_output"))
    ops = tuple(_operation(index, op, tensors) for index, op in enumerate(typed(structure["ops"], list)))
    if tensors:
        raise ValueError(f"tensors that no operation uses: {', '.join(map(repr, sorted(tensors)[:5]))}")
    given, gets = (dims.get(key, ()) for key in DIMS)
    return Program((c, height, width), ops, flat_input, flat_output, given, gets)


def _operation(index: int, value: object, tensors: dict[str, NDArray]) -> Op:
    """One operation from its JSON object and its arrays, which it takes out of `tensors`."""
    try:
        text = typed(value, dict)
        kind = KINDS.get(text["op"]) if isinstance(text.get("op"), str) else None
        if kind is None:
            raise ValueError(f"op must be one of {', '.join(KINDS)}, found {text.get('op')!r}")
        attributes = [field.name for field in fields(kind) if field.name in READERS]
        quant = {"quant"} & text.keys() if any(field.name == "quant" for field in fields(kind)) else set()
        _expect_keys(text, {"op", *attributes, *quant})
        found: dict[str, Any] = {name: READERS[name](text[name]) for name in attributes}
        if quant:
            found["quant"] = _quant(text["quant"])
        parts = {name: tensors.pop(f"{index}.{name}", None) for name in ARRAYS.get(kind, ())}
        if kind is Conv:
            found["bias"] = _present("bias", parts)
            found["weight"] = Weight(**{name: parts[name] for name in WEIGHT})
            if parts["pre.scale"] is not None or parts["pre.shift"] is not None:
                found["pre"] = Scale(_present("pre.scale", parts), _present("pre.shift", parts))
        elif kind is IntConv:
            found["bias"] = _present("bias", parts)
            found["weight"] = _int_weight(parts)
        elif kind in (Affine, tensor_ops.Normalize):
            found["factors"] = Scale(_present("scale", parts), _present("shift", parts))
        else:
            found |= {name: _present(name, parts) for name in OWN.get(kind, ())}
        return kind(**found)
    except ValueError as error:
        raise ValueError(f"operation {index}: {error}") from error


def _present(name: str, parts: Mapping[str, NDArray | None]) -> NDArray:
    array = parts[name]
    if array is None:
        raise ValueError(f"its tensor {name!r} is missing")
    return array


def _int_weight(parts: Mapping[str, NDArray | None]) -> IntWeight:
    code, rows = parts["gaps"], parts["rows"]
    if (code is None) != (rows is None):
        raise ValueError("gaps and rows come together, found only one of them")
    positions = None if code is None or rows is None else gaps.decode(code, rows)
    given = {name: parts[name] for name in INT_WEIGHT if name not in ("positions", "scale")}
    return IntWeight(_present("scale", parts), positions=positions, **given)


def _quant(value: object) -> Quant:
    """A scale and a zero point: [0.25, 128]."""
    found = typed(value, list)
    if len(found) != 2 or type(found[0]) not in (int, float):
        raise ValueError(f"quant must be a scale and a zero point, found {value!r:.80}")
    return Quant(_number(found[0]), typed(found[1], int))


def _expect_keys(found: dict, expected: set[str]) -> None:
    if found.keys() != expected:
        missing, unknown = sorted(expected - found.keys()), sorted(found.keys() - expected)
        raise ValueError(f"attributes missing: {missing}, unknown: {unknown}")


def _ints(value: object, length: int) -> tuple[int, ...]:
    found = numbers(value)
    if len(found) != length:
        raise ValueError(f"expected {length} whole numbers, found {len(found)}")
    return found


def _number(value: object) -> float:
    found = float(value) if type(value) is int and value.bit_length() < 1024 else typed(value, float)
    if not math.isfinite(found):
        raise ValueError(f"expected a finite number, found {found}")
    return found


def _factors(value: object) -> tuple[Factor, ...]:
    return tuple(Factor(*_ints(factor, 3)) for factor in typed(value, list))


READERS: dict[str, Callable[[Any], Any]] = {
    "name": lambda v: typed(v, str), "inputs": numbers, "kernel": lambda v: _ints(v, 2),
    "stride": lambda v: _ints(v, 2), "pad": lambda v: _ints(v, 4), "dilation": lambda v: _ints(v, 2),
    "groups": lambda v: typed(v, int), "act": lambda v: Act(typed(v, str)), "mode": lambda v: typed(v, str),
    "count_include_pad": lambda v: typed(v, bool), "channels": _factors, "height": _factors, "width": _factors,
    "offset": lambda v: _ints(v, 3), "fn": lambda v: Fn(typed(v, str)), "low": _number, "high": _number,
    "pixelwise": lambda v: typed(v, bool), "eps": _number, "transposed": lambda v: typed(v, bool), "scale": _number,
}  # fmt: skip
