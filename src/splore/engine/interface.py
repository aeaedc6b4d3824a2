"""What a program file says beside the program: several inputs, what several results make, and other sizes.

A program has one input and one output, so several tensors of an image come one after another in a vector. The text
names the parts; readers that don't know it, as the C library, give and get the vector.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from splore.engine.any_size import AnySize
from splore.engine.flow import Packed
from splore.engine.program import Program
from splore.files import numbers, short, typed, unsealed
from splore.task import Task

T = TypeVar("T")

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """The place of a result, by its number."""

    number: int


@dataclass(frozen=True)
class Tree:
    """Results in tuples, lists and dicts, as `form` has them, whose tensors are `Part`s."""

    form: Any

    def __call__(self, results: list) -> Any:  # noqa: ANN401 - what the model gives
        return self._filled(self.form, results)

    def _filled(self, form: Any, results: list) -> Any:  # noqa: ANN401
        if isinstance(form, Part):
            return results[form.number]
        if isinstance(form, dict):
            return {key: self._filled(value, results) for key, value in form.items()}
        if isinstance(form, list | tuple):
            return type(form)(self._filled(value, results) for value in form)
        return form


@dataclass(frozen=True)
class Interface:
    """How a caller gives and gets what a program takes and makes.

    Attributes:
        inputs: the shapes of several inputs of one image; none where there is one.
        results: what the results make; None where there is one tensor, the program's output.
        any_size: what the program needs for other heights and widths; None where it takes its own alone.
    """

    inputs: tuple[Dims, ...] = ()
    results: Packed | None = None
    any_size: AnySize | None = None

    def check(self, program: Program) -> None:
        """Raises ValueError where this is not of the program."""
        shapes = () if self.results is None else self.results.shapes
        for dims, shape in ((self.inputs, program.input), (shapes, program.output)):
            if dims and sum(prod(each) for each in dims) != prod(shape):
                raise ValueError(f"expected parts with the numbers of {shape}, found {list(dims)}")

    def to_json(self) -> dict[str, Any]:
        """ValueError where the results are in something else than tuples, lists and dicts."""
        results = None
        if self.results is not None:
            form = self.results.structure([Part(number) for number in range(len(self.results.shapes))])
            results = {"shapes": self.results.shapes, "form": _encoded(form)}
        return {
            "inputs": self.inputs, "results": results,
            "any_size": None if self.any_size is None else self.any_size.to_json(),
        }  # fmt: skip

    @classmethod
    def from_json(cls, found: dict) -> "Interface":
        """What `to_json` gave. Raises ValueError where it is none."""
        results, sizes = found.get("results"), found.get("any_size")
        packed = None
        if results is not None:
            shapes = _shapes(typed(results, dict).get("shapes"))
            packed = Packed(shapes, Tree(_decoded(results.get("form"), len(shapes))))
        return cls(_shapes(found.get("inputs")), packed, None if sizes is None else AnySize.from_json(sizes))


def _shapes(value: object) -> tuple[Dims, ...]:
    return tuple(numbers(each, least=1) for each in typed(value, list))


def _encoded(form: Any) -> Any:  # noqa: ANN401
    if isinstance(form, Part):
        return {"tensor": form.number}
    if isinstance(form, dict) and all(isinstance(key, str) for key in form):
        return {"dict": {key: _encoded(value) for key, value in form.items()}}
    if isinstance(form, list | tuple):
        return {"list" if isinstance(form, list) else "tuple": [_encoded(value) for value in form]}
    if form is None or isinstance(form, bool | int | float | str):
        return {"value": form}
    raise ValueError(f"a file holds results in tuples, lists and dicts of names, found {type(form).__name__}")


def _decoded(value: object, count: int) -> Any:  # noqa: ANN401
    found = typed(value, dict)
    if len(found) != 1:
        raise ValueError(f"expected one kind of result, found {sorted(found)!r:.80}")
    ((kind, inner),) = found.items()
    readers: dict[str, Callable[[Any], Any]] = {
        "tensor": lambda number: Part(_below(number, count)),
        "dict": lambda items: {key: _decoded(each, count) for key, each in typed(items, dict).items()},
        "list": lambda items: [_decoded(each, count) for each in typed(items, list)],
        "tuple": lambda items: tuple(_decoded(each, count) for each in typed(items, list)),
        "value": _value,
    }
    if kind not in readers:
        raise ValueError(f"expected a kind of result, found {kind!r:.80}")
    return readers[kind](inner)


def _below(value: object, count: int) -> int:
    number = typed(value, int)
    if not 0 <= number < count:
        raise ValueError(f"expected one of {count} results, found {number}")
    return number


def _value(value: object) -> object:
    if value is not None and type(value) not in (bool, int, float, str):
        raise ValueError(f"expected a plain value, found {value!r:.80}")
    return value


def load_task(path: str | os.PathLike[str]) -> Task | None:
    """What the network of a program file is for; None where the file doesn't say. Raises ValueError as `load` does."""
    return _load_text(path, "task", Task.from_json)


def load_interface(path: str | os.PathLike[str], program: Program) -> Interface:
    """What a caller of a program file gives and gets. Raises ValueError as `load` does."""
    found = _load_text(path, "interface", Interface.from_json) or Interface()
    found.check(program)
    return found


def _load_text(path: str | os.PathLike[str], name: str, read: Callable[[dict], T]) -> T | None:
    """What `read` makes of a text of the metadata that has a checksum of its own; None where there is none."""
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            text = (file.metadata() or {}).get(f"splore.{name}")
        return None if text is None else read(unsealed(name, text))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} has no valid description of its {name}: {short(error)}") from None
