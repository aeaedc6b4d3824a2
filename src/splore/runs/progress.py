"""The one progress display of a run: a line per epoch, and below them a live bar on a terminal."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Display:
    """Shows stage, epoch, loss, accuracy, parameters kept, images per second and the time left.

    A context manager; silent on all but the main process. `watched` names the images of the accuracy.
    """

    def __init__(self, main: bool = True, watched: str = "test") -> None:
        self.watched = watched
        self.console = Console(quiet=not main, file=sys.stdout, highlight=False, soft_wrap=True)
        self.live = main and self.console.is_terminal
        self._progress = Progress(
            TextColumn("{task.fields[stage]:<9}"),
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def begin(self, stage: str, epochs: int, steps: int, done: int) -> None:
        """A stage of `epochs` times `steps` steps begins, `done` of them already taken."""
        self._stage, self._epochs, self._steps = stage, epochs, steps
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(
            stage, total=epochs * steps, completed=done, stage=stage, epoch=f"1/{epochs}", figures=""
        )

    def update(self, epoch: int, step: int, loss: float, accuracy: float, kept: float | None, speed: float) -> None:
        """The state within an epoch: accuracy on the training images in %, speed in images per second.

        `kept` is the share of the dense net's parameters that the net holds; None for the dense net. While L comes on
        top of a full S it is above 1, and not shown.
        """
        if self._task is None:
            return
        self._progress.update(
            self._task,
            completed=epoch * self._steps + step,
            epoch=f"{epoch + 1}/{self._epochs}",
            figures=f"loss {loss:.3f}  acc {accuracy:.1f} %{_share(kept)}  {speed:.0f} img/s",
        )

    def epoch(
        self, epoch: int, loss: float, accuracy: float, test: float | None, kept: float | None, speed: float
    ) -> None:
        """One epoch is over: its line, with the accuracy on the images that are watched where it was measured."""
        tested = "" if test is None else f"  {self.watched} {test:.2f} %"
        figures = f"loss {loss:.3f}  acc {accuracy:.1f} %{tested}{_share(kept)}"
        self.console.print(f"{self._stage} epoch {epoch + 1}/{self._epochs}  {figures}")
        self.update(epoch, self._steps, loss, accuracy, kept, speed)

    def say(self, text: object) -> None:
        """Prints a line, or a table, above the bar."""
        self.console.print(text)


def _share(kept: float | None) -> str:
    return "" if kept is None or kept > 1 else f"  kept {100 * kept:.1f} %"
