"""What passes between the segments of an engine: which values each reads, and what the results make."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any, TypeVar

S = TypeVar("S")  # a segment
Value = Any  # a NumPy array; or what an operator of torch gave, where only torch reads it


def only(results: list[Value]) -> Value:
    """The structure of an engine of one result."""
    return results[0]


@dataclass(frozen=True)
class Packed:
    """The structure of an engine whose only value holds several results of an image one after another.

    Attributes:
        shapes: of each result of one image.
        structure: from the list of results to what the caller gets.
    """

    shapes: tuple[tuple[int, ...], ...]
    structure: Callable[[list], Any]

    def __call__(self, results: list[Value]) -> Any:  # noqa: ANN401 - what the model gives
        (packed,) = results
        sizes = [prod(shape) for shape in self.shapes]
        flat = packed.reshape(len(packed), sum(sizes))
        parts = [flat[:, end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
        return self.structure(
            [
                part.reshape(-1, *shape) if len(flat) else part.reshape(0, *shape)
                for part, shape in zip(parts, self.shapes, strict=True)
            ]
        )


@dataclass(frozen=True)
class Flow:
    """Values are numbered: first the inputs, then the outputs of each segment in order.

    Attributes:
        reads: the values that each segment reads.
        results: the values that the engine gives.
        structure: from the list of results to what the caller gets, a dict for example.
        inputs: how many there are.
    """

    reads: tuple[tuple[int, ...], ...]
    results: tuple[int, ...]
    structure: Callable[[list], Any] = field(default=only)
    inputs: int = 1

    @classmethod
    def chain(cls, segments: int, structure: Callable[[list], Any] = only) -> "Flow":
        """Each segment reads what the one before gives."""
        return cls(tuple((number,) for number in range(segments)), (segments,), structure)

    def run(
        self, segments: Sequence[S], inputs: Sequence[Value], call: Callable[[S, list[Value]], Sequence[Value]]
    ) -> list[Value]:
        """The results for the inputs; `call` gives what a segment makes of the values that it reads.

        A value is let go of when nothing reads it any more.
        """
        values, made = dict(enumerate(inputs)), len(inputs)
        for segment, reads, unread in zip(segments, self.reads, self._unread, strict=True):
            for output in call(segment, [values[value] for value in reads]):
                values[made] = output
                made += 1
            for value in unread:
                values.pop(value, None)
        return [values[value] for value in self.results]

    @cached_property
    def _unread(self) -> list[list[int]]:
        """The values that nothing reads any more after each segment, once they were read."""
        last_use = {value: number for number, reads in enumerate(self.reads) for value in reads}
        return [
            [value for value, last in last_use.items() if last == number and value not in self.results]
            for number in range(len(self.reads))
        ]
