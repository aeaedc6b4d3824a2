"""The engines of one net for images of other heights and widths."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from splore.engine.program import Floats

if TYPE_CHECKING:
    from splore.engine.engine import Engine

MOST = 4  # sizes that are kept


class Sizes:
    """Plans an engine when the first images of a size come, by `make`, which gets a batch of them, and keeps the last
    few. One size is planned at a time; who has images of a size that is known does not wait for that."""

    def __init__(self, make: "Callable[[Sequence[Floats]], Engine]") -> None:
        self._make = make
        self._engines: OrderedDict[tuple, Engine] = OrderedDict()  # the latest last
        self._planning, self._looking = threading.Lock(), threading.Lock()

    def engine(self, inputs: Sequence[Floats]) -> "Engine":
        """The engine for images like those of a batch. ValueError where the net takes none of their size."""
        size = tuple(x.shape[1:] for x in inputs)
        if (known := self._known(size)) is not None:
            return known
        with self._planning:
            if (known := self._known(size)) is not None:  # it was planned meanwhile
                return known
            made = self._make(inputs)
            with self._looking:
                self._engines[size] = made
                if len(self._engines) > MOST:
                    self._engines.popitem(last=False)
        return made

    def _known(self, size: tuple) -> "Engine | None":
        with self._looking:
            if size in self._engines:
                self._engines.move_to_end(size)
            return self._engines.get(size)
