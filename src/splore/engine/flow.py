"""What passes between the segments of an engine: which values each reads, and what the results make."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

S = TypeVar("S")  # a segment
Value = Any  # a NumPy array; or what an operator of torch gave, where only torch reads it


def only(results: list[Value]) -> Value:
    """The structure of an engine of one result."""
    return results[0]


@dataclass(frozen=True)
class Flow:
    """Values are numbered: 0 is the input, then the outputs of each segment in order.

    Attributes:
        reads: the values that each segment reads.
        results: the values that the engine gives.
        structure: from the list of results to what the caller gets, a dict for example.
    """

    reads: tuple[tuple[int, ...], ...]
    results: tuple[int, ...]
    structure: Callable[[list], Any] = field(default=only)

    @classmethod
    def chain(cls, segments: int) -> "Flow":
        """Each segment reads what the one before gives."""
        return cls(tuple((number,) for number in range(segments)), (segments,))

    def run(self, segments: Sequence[S], x: Value, call: Callable[[S, list[Value]], Sequence[Value]]) -> list[Value]:
        """The results for the input x; `call` gives what a segment makes of its inputs.

        A value is let go of when nothing reads it any more.
        """
        last_use = {value: number for number, reads in enumerate(self.reads) for value in reads}
        last_use |= dict.fromkeys(self.results, len(self.reads))
        values, made = {0: x}, 1
        for number, (segment, reads) in enumerate(zip(segments, self.reads, strict=True)):
            for output in call(segment, [values[value] for value in reads]):
                values[made] = output
                made += 1
            values = {value: held for value, held in values.items() if last_use.get(value, -1) > number}
        return [values[value] for value in self.results]
