"""The report on finished runs: one page that opens anywhere, offline. See docs/report.md."""

import os
from collections.abc import Sequence
from pathlib import Path


def write(
    runs: Sequence[str | os.PathLike], path: str | os.PathLike, *, time: bool = False, own_code: bool = False
) -> Path:
    """Writes the report on some runs to one HTML file, whole or not at all.

    Args:
        runs: their folders; one that holds no run itself stands for all finished runs below it.
        path: the file to write.
        time: measure milliseconds on this machine with `splore.compile`; otherwise the page does without.
        own_code: import the nets and data sets that recipes name as package.module:factory. What needs them is left
            out otherwise, with a line that says so: a recipe from elsewhere may name any code.

    Returns:
        the file.

    Raises:
        FileNotFoundError, ValueError: a folder holds no finished run, or damaged files.
        ImportError: the libraries of `splore[report]` are not installed.
        OSError: the file could not be written.
    """
    from splore.files import write_whole
    from splore.report.page import render
    from splore.report.run_folder import open_runs

    text = render(open_runs(runs, own_code), time)
    write_whole(path, "the report", text.encode())
    return Path(path)
