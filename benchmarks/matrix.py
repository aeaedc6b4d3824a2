"""Many nets through everything: decomposed, trained a step, cut, saved, loaded, compiled, exported.

    python benchmarks/matrix.py --json benchmarks/results/matrix.json
    python benchmarks/matrix.py --page benchmarks/results/matrix.json > docs/matrix.md

Each net runs in a process of its own; what goes wrong is a row of the table, too. Times are medians on this machine,
and mean something where nothing else runs. A net that the file has of this commit is left out, so that what was
interrupted goes on where it ended.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matrix_nets import NETS, build_net
from rows import add_row
from torch import nn

import splore
from splore.capture.export import densified
from splore.deploy.export import FORMATS, export
from splore.deploy.runtimes import missing
from splore.engine.engine import run_torch
from splore.engine.program_segment import ProgramSegment, median_ms
from splore.measure.provenance import provenance

RANK, KEPT = 0.1, 0.3
"""Share of the full rank that L starts with, and share of the parameters that the cut leaves."""
EXPORTS = ("onnx", "onnx-compact", "openvino", "pt2", "dense", "executorch")
PIXELS = 48 * 48
"""Of the largest image whose net is exported to ExecuTorch too: that takes as long as all else."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=list(NETS), help="some of the nets")
    parser.add_argument("--threads", type=int, default=2, help="of every runtime")
    parser.add_argument("--minutes", type=float, default=4, help="that one net may take")
    parser.add_argument("--json", type=Path, help="file of rows to add to; a net's row is replaced")
    parser.add_argument("--page", type=Path, metavar="JSON", help="print the page on the rows of a file, and end")
    parser.add_argument("--exports", nargs="*", choices=EXPORTS, default=list(EXPORTS), help="some of the exports")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.page:
        print(page(json.loads(options.page.read_text())))
        return 0
    if options.one:
        print(json.dumps(one(options.nets[0], options.threads, options.exports)))
        return 0
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    done = {row["net"] for row in known if row["commit"] == provenance()["commit"] and "failure" not in row}
    for net in (net for net in options.nets if net not in done):
        row = in_a_process(net, options)
        print(line(row), flush=True)
        if options.json:
            add_row(options.json, row, ("net",))
    return 0


def in_a_process(net: str, options: argparse.Namespace) -> dict:
    words = ["--one", "--nets", net, "--threads", str(options.threads), "--exports", *options.exports]
    try:
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, *words],
            capture_output=True, text=True, timeout=60 * options.minutes, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"net": net, "failure": f"took more than {options.minutes:g} minutes"}
    if ran.returncode:
        return {"net": net, "failure": (ran.stderr.strip().splitlines() or ["killed"])[-1][:300]}
    return json.loads(ran.stdout.splitlines()[-1])


def one(net: str, threads: int, exports: list[str]) -> dict:
    """The row of one net."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build_net(net)
    image = NETS[net]
    row: dict = {"net": net, "image": list(image), "threads": threads}
    splore.decompose(model, splore.Design(rank=RANK))
    row["decomposed"] = len(splore.decomposed_layers(model))
    row["step"] = step(model, image)
    splore.prune(model, params=KEPT)
    model.eval()
    row["kept"] = round(splore.cost(model, image).params_kept, 4)
    with tempfile.TemporaryDirectory() as folder:
        row["loads"] = loads(model, net, Path(folder) / "model.safetensors")
        row |= engine_columns(model, image, threads, Path(folder) / "net.splore")
        row["exports"], sessions = {}, {}
        installed = [each for each in exports if not missing(*FORMATS[each].packages)]
        for target in (each for each in installed if each != "executorch" or image[1] * image[2] <= PIXELS):
            row["exports"][target], sessions[target] = exported(model, image, target, Path(folder), threads)
        x = np.random.default_rng(0).standard_normal((1, *image), dtype=np.float32)
        run = sessions.get("onnx")
        row["onnx_ms"] = round(median_ms(lambda: run(x))[0], 4) if run else None
    return row


def step(model: nn.Module, image: tuple[int, ...]) -> bool:
    """Whether a step of training changes S and leaves finite numbers."""
    model.train()
    before = [layer.S.detach().clone() for layer in splore.decomposed_layers(model).values() if layer.S is not None]
    optimizer = torch.optim.SGD(splore.parameter_groups(model, weight_decay=5e-4), lr=1e-3, momentum=0.9)
    splore.attach(model, optimizer, l1=1e-3)
    first(model(torch.randn(4, *image))).square().mean().backward()
    optimizer.step()
    after = [layer.S for layer in splore.decomposed_layers(model).values() if layer.S is not None]
    moved = any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    return moved and all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def first(result: object) -> torch.Tensor:
    """The first tensor of what a model returns."""
    while not isinstance(result, torch.Tensor):
        result = next(iter(result.values() if hasattr(result, "values") else result))
    return result


def loads(model: nn.Module, net: str, path: Path) -> bool:
    """Whether the saved net comes back bit for bit."""
    splore.save(model, path)
    again = splore.load(path, None if ":" in net or net in splore.vision.NETS else build_net(net)).state_dict()
    return all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def engine_columns(model: nn.Module, image: tuple[int, ...], threads: int, path: Path) -> dict:
    """How much of the net the engine runs, how exactly, and how fast beside eager PyTorch."""
    x = torch.randn(1, *image)
    engine = splore.compile(model, x, threads)
    segments = engine._segments
    row: dict = {"whole": all(isinstance(segment, ProgramSegment) for segment in segments)}
    row["left_in_torch"] = sorted({name for segment in segments for name in getattr(segment, "reasons", {})})
    dense = densified(model)[0]
    expected = run_torch(dense, [x.numpy()])[0]
    ours, eager = median_ms(lambda: engine(x.numpy()), lambda: run_torch(dense, [x.numpy()]))
    row["engine_ms"], row["eager_ms"] = round(ours, 4), round(eager, 4)
    try:
        engine.save(path)
        row["saved"], row["error"] = True, relative(splore.Engine.load(path, threads)(x.numpy()), expected)
    except ValueError:  # a part of it needs torch; then the dense net may be what runs, with no error
        row["saved"], row["error"] = False, relative(first(engine(x)), expected)
    return row


def exported(
    model: nn.Module, image: tuple[int, ...], target: str, folder: Path, threads: int
) -> tuple[float | str, Callable | None]:
    """The error of an export, or why there is none, and what runs it."""
    try:
        done = export(model, folder / f"{target}{FORMATS[target].suffix}", target, torch.zeros(1, *image), threads)
    except (ValueError, ImportError) as error:
        return str(error)[:200], None
    return done.error, done.run


def relative(found: object, expected: np.ndarray) -> float:
    found = np.asarray(found)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def line(row: dict) -> str:
    """A row as a line of text."""
    if "failure" in row:
        return f"{row['net']}: {row['failure']}"
    failed = [name for name, found in row["exports"].items() if isinstance(found, str)]
    whole = "whole" if row["whole"] else f"in torch: {', '.join(row['left_in_torch'])[:60]}"
    speed = f"{row['eager_ms'] / row['engine_ms']:.2f}x eager"
    return f"{row['net']}: {whole}, error {row['error']:.0e}, {speed}, exports failed: {failed or 'none'}"


def page(rows: list[dict]) -> str:
    """The table of all rows, as a page in Markdown."""
    done = [row for row in rows if "failure" not in row]
    whole, faster = sum(row["whole"] for row in done), sum(row["engine_ms"] <= row["eager_ms"] for row in done)
    timed = [row for row in done if row["onnx_ms"]]
    ahead = sum(row["engine_ms"] <= row["onnx_ms"] for row in timed)
    said = (
        f"`python benchmarks/matrix.py` takes {len(rows)} nets through everything: decomposed (rank {100 * RANK:g} % "
        f"of the full one beside S), trained a step, cut to {100 * KEPT:g} % of the parameters, saved, loaded, "
        f"compiled, exported. {whole} run whole in the engine; {faster} are at least as fast there as the dense net in "
        f"eager PyTorch with one image, {ahead} of {len(timed)} as fast as the dense net in ONNX Runtime. Errors are "
        "the largest differences as shares of the largest output, x a failure, empty what was not tried (ExecuTorch of "
        f"large images, and what was not installed). Times are medians of one image on {done[0]['hardware']['cpu']}, "
        f"{done[0]['threads']} threads; the rows are in `benchmarks/results/matrix.json`."
    )
    text = [
        "# Nets tried",
        "",
        textwrap.fill(said, 120, break_long_words=False, break_on_hyphens=False),
        "",
        "| net | image | kept | step | loads | engine | error | eager / engine | ONNX Runtime / engine | "
        + " | ".join(EXPORTS)
        + " |",
        "|" + "---|" * (9 + len(EXPORTS)),
    ]
    text += [cells(row) for row in sorted(rows, key=lambda row: row["net"])]
    return "\n".join(text)


def cells(row: dict) -> str:
    if "failure" in row:
        return f"| {row['net']} | " + " | ".join(["x"] * 5) + f" | {row['failure'].replace('|', '/')} |" + " |" * 7
    left = dict.fromkeys(name.split(".")[1] for name in row["left_in_torch"] if name != "*")
    engine = "whole" if row["whole"] else f"without {', '.join(left)}"
    onnx = f"{row['onnx_ms'] / row['engine_ms']:.2f}x" if row["onnx_ms"] else ""
    errors = [row["exports"].get(name, "") for name in EXPORTS]
    exports = ["x" if isinstance(error, str) and error else f"{error:.0e}" if error != "" else "" for error in errors]
    yes = ["yes" if row[name] else "no" for name in ("step", "loads")]
    values = [
        row["net"], "x".join(map(str, row["image"])), f"{100 * row['kept']:.0f} %", *yes, engine, f"{row['error']:.0e}",
        f"{row['eager_ms'] / row['engine_ms']:.2f}x", onnx, *exports,
    ]  # fmt: skip
    return "| " + " | ".join(values) + " |"


if __name__ == "__main__":
    sys.exit(main())
