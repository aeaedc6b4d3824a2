"""The two tables of README.md, from the JSON in benchmarks/results: python benchmarks/readme.py"""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "paper"), str(HERE)]

from rows import DEFAULTS  # noqa: E402
from table import rows  # noqa: E402

README = HERE.parent / "README.md"
MACHINE = "AMD EPYC family 26 model 2"
"""The processor whose figures of speed the README has; docs/results.md has all."""
SHORT = ((("vgg19", 40), 3.14), (("preactresnet20", 6), 15), (("resnet20", 6), 15), (("resnet20", 6), 5))
"""Net and epochs, and the share kept in %, of each row of accuracies."""


def accuracy() -> str:
    """Accuracies of dense, L + S, sparse and low rank alone, from the runs of benchmarks/paper."""
    found = {
        ((row["net"], row["epochs"]), row["method"], row["wanted"]): row for row in rows(HERE / "results" / "paper")
    }
    lines = ["| net | kept | dense | L + S | S alone | L alone |", "|---|---|---|---|---|---|"]
    for net, kept in SHORT:
        cells = [_accuracy(found.get((net, "dense", 100)))]
        cells += [_accuracy(found.get((net, method, kept))) for method in ("best", "sparse", "low-rank")]
        lines.append(f"| {net[0]} | {kept:g} % | {' | '.join(cells)} |")
    return "\n".join(lines)


def _accuracy(row: dict | None) -> str:
    if row is None:
        return "-"
    spread = "*" if row["accuracy_std"] is None else f"±{row['accuracy_std']:.2f}"
    return f"{row['accuracy_mean']:.2f}{spread}"


def speed() -> str:
    """The engine over the fastest dense runtime, by net and batch, in float32 and in bytes, from
    benchmarks/engine.py."""
    found: dict[tuple[str, float], dict[tuple[bool, int], str]] = {}
    for row in json.loads((HERE / "results" / "engine.json").read_text()):
        if row["hardware"]["cpu"].startswith(MACHINE) and row["rank"]:  # of S alone see docs/results.md
            place = row["batch"] > 1, row.get("bits", DEFAULTS["bits"])
            found.setdefault((row["net"], row["kept"]), {})[place] = f"{row['speedup']:.2f}x"
    lines = ["| net | kept | 1 image, 32/8 bits | 32 (ResNet-50: 16) |", "|---|---|---|---|"]
    for (net, kept), cells in sorted(found.items(), key=lambda item: (item[0][0] != "vgg19", item[0])):
        one, many = ("/".join(cells.get((batch, bits), "-") for bits in (32, 8)) for batch in (False, True))
        lines.append(f"| {net} | {100 * kept:g} % | {one} | {many} |")
    return "\n".join(lines)


def with_tables(page: str) -> str:
    """The page with both tables as they are now, each between a comment with its name and the end of it."""
    for name, table in (("accuracy", accuracy()), ("speed", speed())):
        page, count = re.subn(f"(<!-- {name} -->\n)[^<]*(<!-- end -->)", lambda m, t=table: f"{m[1]}{t}\n{m[2]}", page)
        if count != 1:
            raise ValueError(f"expected one table between <!-- {name} --> and <!-- end -->, found {count}")
    return page


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
