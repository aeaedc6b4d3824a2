"""splore report: one page on finished runs."""

from collections.abc import Sequence

from splore.commands.parser import Parser


def command(words: list[str]) -> int:
    """Parses the words and carries the command out; returns its exit code."""
    parser = Parser("report", report.__doc__ or "")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder; any other stands for all runs below it")
    parser.add_argument("-o", "--out", default="report.html", metavar="FILE", help="the page to write")
    parser.add_argument("--time", action="store_true", help="measure milliseconds on this machine's CPU")
    parser.add_argument("--own-code", action="store_true", help="import nets and data sets of your own in the recipes")
    values = parser.parse_args(words)
    return report(values.runs, values.out, values.time, values.own_code)


def report(runs: Sequence[str], path: str, time: bool = False, own_code: bool = False) -> int:
    """Writes one page on some finished runs, which opens in any browser, offline."""
    from splore.report import write

    print(f"{write(runs, path, time=time, own_code=own_code)}: the report on {', '.join(runs)}")
    return 0
