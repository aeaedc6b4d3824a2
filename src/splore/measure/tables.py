"""Tables for people: a network's cost layer by layer, and a run's stages side by side.

Numbers are written one way everywhere: counts as 20.04 M, shares as 3.14 %, sizes as 2.4 MB (powers of ten).
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TextIO

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from splore.measure.cost import Cost, Figures, LayerCost

_UNBOUNDED = 100_000
"""A width in characters that no table reaches."""


@dataclass(frozen=True)
class StageRow:
    """One row of a run's table: the network at the end of a stage.

    Attributes:
        name: the stage.
        accuracy: top-1 in %, or None where it was not measured.
        params: parameters.
        params_kept: as a fraction of the dense network's.
        macs_kept: multiply-adds as a fraction of the dense network's.
        bytes: of its file on disk.
    """

    name: str
    accuracy: float | None
    params: int
    params_kept: float
    macs_kept: float
    bytes: int


@dataclass(frozen=True)
class Column:
    """A column of a report, of words or of numbers. Without room the greatest `leave` goes first, and 0 never."""

    title: str
    leave: int = 0
    words: bool = False


@dataclass(frozen=True)
class Report:
    """A table that rich prints within the width at hand, leaving out columns before it breaks a number.

    `str` gives it whole, as plain text in Markdown.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    total: tuple[str, ...] | None = None

    def table(self, width: int = _UNBOUNDED, style: box.Box = box.SIMPLE_HEAD) -> Table:
        """The table with as many columns as fit into `width` characters."""
        order = sorted((c.leave for c in self.columns if c.leave), reverse=True)
        for least in (*order, 0):
            table = self._of([i for i, column in enumerate(self.columns) if column.leave <= least], style)
            if Console(width=_UNBOUNDED).measure(table).maximum <= width:
                break
        return table

    def _of(self, kept: list[int], style: box.Box) -> Table:
        plain = style is box.MARKDOWN
        table = Table(box=style, pad_edge=plain, show_edge=plain)
        for i in kept:
            column = self.columns[i]
            # Names fold where even the last columns leave too little room, numbers never do.
            table.add_column(
                column.title,
                justify="left" if column.words else "right",
                no_wrap=i > 0,
                overflow="fold",
                min_width=min(8, max(len(row[i]) for row in self.rows)) if i == 0 and self.rows else None,
            )
        for row in self.rows:
            table.add_row(*(Text(row[i]) for i in kept))
        if self.total is not None:
            table.add_row(*(Text(self.total[i], style="bold") for i in kept))
        return table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table(options.max_width)

    def __str__(self) -> str:
        console = Console(width=_UNBOUNDED, color_system=None, force_terminal=False, legacy_windows=False)
        with console.capture() as captured:
            console.print(self.table(style=box.MARKDOWN))
        return captured.get().strip()


def stage_table(stages: Iterable[StageRow]) -> Report:
    """The table of a run: one row per stage."""
    columns = (
        Column("stage", words=True), Column("accuracy"), Column("params", 2), Column("params kept"),
        Column("MACs kept", 1), Column("on disk"),
    )  # fmt: skip
    rows = (
        (
            stage.name,
            "" if stage.accuracy is None else percent(stage.accuracy / 100),
            count(stage.params),
            percent(stage.params_kept),
            percent(stage.macs_kept),
            size(stage.bytes),
        )
        for stage in stages
    )
    return Report(columns, tuple(rows))


def layer_table(cost: Cost) -> Report:
    """The table of a network: a row per convolution and linear layer, one for all other modules, and the total."""
    columns = (
        Column("layer", words=True), Column("kind", 8, words=True), Column("shape", 6, words=True),
        Column("scheme", 7, words=True), Column("rank", 3), Column("density", 4), Column("params", 1),
        Column("params kept"), Column("MACs", 5), Column("MACs kept", 2), Column("bytes"),
    )  # fmt: skip
    rows = [_layer_row(layer) for layer in cost.layers if layer.shape is not None]
    others = Cost.of(layer for layer in cost.layers if layer.shape is None)
    if others.layers:
        rows.append(("others", "", "", "", "", "", *_figures(others)))
    return Report(columns, tuple(rows), ("total", "", "", "", "", "", *_figures(cost)))


def show(report: Report, file: TextIO | None = None) -> None:
    """Prints a report: within the width of a terminal, and whole and plain where `file` (stdout) is none."""
    file = sys.stdout if file is None else file
    console = Console(file=file)
    if console.is_terminal:
        console.print(report)
    else:
        print(report, file=file)


def count(number: int) -> str:
    """A number of parameters or multiply-adds: 860, 272.47 k, 20.04 M, 1.81 G."""
    return _scaled(number, ("", " k", " M", " G", " T", " P"), 2)


def size(number: int) -> str:
    """A number of bytes: 512 B, 2.4 MB; a kB has 1000."""
    return _scaled(number, (" B", " kB", " MB", " GB", " TB", " PB"), 1)


def percent(fraction: float | None) -> str:
    """A fraction of 1: 3.14 %; empty for None. What is not nothing is not written as nothing."""
    if fraction is None:
        return ""
    return "<0.01 %" if 0 < fraction < 0.00005 else f"{100 * fraction:.2f} %"


def _scaled(number: int, units: tuple[str, ...], digits: int) -> str:
    scaled, power = float(number), 0
    while round(scaled, digits) >= 1000 and power < len(units) - 1:
        scaled, power = scaled / 1000, power + 1
    return f"{scaled:.{digits if power else 0}f}{units[power]}"


def _layer_row(layer: LayerCost) -> tuple[str, ...]:
    shape = "" if layer.shape is None else "x".join(str(side) for side in layer.shape)
    scheme = "" if layer.scheme is None or len(layer.shape or ()) == 2 else layer.scheme.value
    rank = "" if layer.rank is None else str(layer.rank)
    return layer.name or "(model)", layer.kind, shape, scheme, rank, percent(layer.density), *_figures(layer)


def _figures(cost: Figures) -> tuple[str, ...]:
    macs_kept = percent(cost.macs_kept) if cost.dense_macs else ""
    params_kept = percent(cost.params_kept) if cost.dense_params else ""
    return count(cost.params), params_kept, count(cost.macs), macs_kept, size(cost.bytes)
