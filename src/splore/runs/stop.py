"""Ctrl-C and SIGTERM, told to those who are to stop in good order."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StopRequest:
    """Whether a run has been asked to stop, which it does at the end of a step, with a checkpoint."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block Ctrl-C and SIGTERM ask; a second one ends the process as it ever does."""

        def ask(number: int, frame: object) -> None:
            self.asked = True
            signal.signal(number, signal.default_int_handler)

        with on_stop(ask):
            yield


@contextmanager
def on_stop(ask: Callable[[int, object], None]) -> Iterator[None]:
    """Within the block, Ctrl-C and SIGTERM call `ask`."""
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
