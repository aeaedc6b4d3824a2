"""splore bench: what a program file, or a model file, takes on this machine."""

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from splore.commands.net import image_of, is_program, loaded
from splore.commands.parser import Misuse, Parser, image_shape
from splore.engine.engine import Engine

if TYPE_CHECKING:
    from torch import nn

    from splore.deploy.bench import Row


def command(words: list[str]) -> int:
    """Parses the words and carries the command out; returns its exit code."""
    parser = Parser("bench", bench_file.__doc__ or "")
    parser.add_argument("file", help="a program file, or a model file, which is compiled first")
    parser.add_argument("--against", metavar="FILE", help="the model file of a program, to time other runtimes too")
    parser.add_argument("--image", type=image_shape, metavar="C,H,W", help="an image; that of the file by default")
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="how many images at a time, each measured by itself",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of every runtime; every usable core by default")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long every runtime is timed for each batch")
    parser.add_argument("--model", help="package.module:factory, for a file with a net of your own")
    parser.add_argument("--layers", action="store_true", help="print the time of every operation too")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    values = parser.parse_args(words)
    if min(values.batch) < 1 or not values.seconds > 0:
        raise Misuse("--batch is at least 1, and --seconds above 0")
    return bench_file(
        values.file,
        values.against,
        values.image,
        values.batch,
        values.threads,
        values.seconds,
        values.model,
        values.layers,
        values.json,
    )


def bench_file(
    file: str,
    against: str | None = None,
    image: Sequence[int] | None = None,
    batches: Sequence[int] = (1,),
    threads: int | None = None,
    seconds: float = 1.0,
    model: str | None = None,
    layers: bool = False,
    as_json: bool = False,
) -> int:
    """Times a program file on this machine: median, 95th percentile, images a second, memory. With a model file also
    the same net, exported, in ONNX Runtime and OpenVINO, where they are installed, and in PyTorch."""
    from splore.deploy.bench import bench

    with tempfile.TemporaryDirectory() as folder:
        engine, dense, onnx, program = None, None, None, Path(folder) / "net.splore"
        if is_program(file):
            engine, program = Engine.load(file, threads), Path(file)
        source = against if engine is not None else file
        if source is not None:
            net, origin, channels = loaded(source, model)
            shape = image_of(net, origin, channels, image or (engine.input if engine is not None else None))
            dense, onnx = _exported(net.eval(), shape, Path(folder) / "net.onnx")
            engine = engine or _compiled(net, shape, batches, threads, program)
        assert engine is not None
        rows = {}
        for batch in batches:
            engine.plan(batch)
            rows[batch] = bench(engine, batch, program if program.exists() else None, onnx, dense, seconds)
            if not as_json:
                _show(batch, rows[batch], engine, layers)
    if as_json:
        figures = [{"batch": batch} | asdict(row) for batch, each in rows.items() for row in each]
        print(json.dumps({"threads": engine.threads, "figures": figures, "steps": engine.steps()}, indent=2))
    return 0


def _exported(net: "nn.Module", shape: tuple[int, int, int], path: Path) -> "tuple[nn.Module, Path | None]":
    """The dense net as other runtimes take it, and its ONNX file where there is what writes and reads it."""
    import torch

    from splore.deploy.cheapest import cheapest
    from splore.deploy.export import export
    from splore.deploy.runtimes import missing

    if missing("onnx", "onnxscript", "onnxruntime"):
        return cheapest(net), None
    try:
        return cheapest(net), export(net, path, "onnx", torch.zeros(1, *shape)).path
    except ValueError as reason:
        print(f"without ONNX Runtime and OpenVINO: {reason}", file=sys.stderr)
        return cheapest(net), None


def _compiled(
    net: "nn.Module", shape: tuple[int, int, int], batches: Sequence[int], threads: int | None, program: Path
) -> Engine:
    import torch

    from splore.capture.compile import compile

    engine = compile(net, torch.zeros(max(batches), *shape), threads, batches)
    with suppress(ValueError):  # a part of it needs torch: its memory can't be measured alone
        engine.save(program)
    return engine


def _show(batch: int, rows: "Sequence[Row]", engine: Engine, layers: bool) -> None:
    from splore.engine.plan_table import aligned  # a table that needs no more than the engine does

    titles = ("runtime", "median ms", "95 % within ms", "images/s", "peak MiB", "difference")
    lines = [
        (
            row.runtime,
            f"{row.latency.median_ms:.3g}",
            f"{row.latency.p95_ms:.3g}",
            f"{row.latency.images_per_second:.4g}",
            "" if row.peak_mib is None else f"{row.peak_mib:.0f}",
            f"{row.error:.1e}" if row.error else "",
        )
        for row in sorted(rows, key=lambda row: row.latency.median_ms)
    ]
    print(f"batch {batch}, {engine.threads} threads")
    print("\n".join(aligned([titles, *lines])))
    if layers:
        print(engine.summary())
