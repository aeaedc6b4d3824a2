"""splore compile: a program file for the engine, from a model file."""

from collections.abc import Sequence
from pathlib import Path

from splore.commands.net import image_of, loaded
from splore.commands.parser import Misuse, Parser, image_shape


def command(words: list[str]) -> int:
    """Parses the words and carries the command out; returns its exit code."""
    parser = Parser("compile", compile_file.__doc__ or "")
    parser.add_argument("file", help="a model file")
    parser.add_argument("-o", "--out", metavar="FILE", help="the program file to write; usually *.splore")
    parser.add_argument("--image", type=image_shape, metavar="C,H,W", help="an image; that of the file by default")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], metavar="N", help="batch sizes to plan for")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the engine; every usable core by default")
    parser.add_argument("--model", help="package.module:factory, for a file with a net of your own")
    parser.add_argument("--any_size", action="store_true", help="a program for images of any height and width")
    parser.add_argument("--layers", action="store_true", help="print the plan of every operation")
    values = parser.parse_args(words)
    out = values.out or str(Path(values.file).with_suffix(".splore"))
    return compile_file(
        values.file, out, values.image, values.batch, values.threads, values.model, values.layers, values.any_size
    )


def compile_file(
    file: str,
    out: str,
    image: Sequence[int] | None = None,
    batches: Sequence[int] = (1,),
    threads: int | None = None,
    model: str | None = None,
    layers: bool = False,
    any_size: bool = False,
) -> int:
    """Compiles a model file into a program file, which runs without torch, and compares the two."""
    import torch

    from splore.capture.compile import compile
    from splore.engine.engine import Engine, run_torch

    if min(batches) < 1:
        raise Misuse(f"--batch is at least 1, found {min(batches)}")
    net, source, channels = loaded(file, model)
    net = net.eval()
    x = torch.randn(max(batches), *image_of(net, source, channels, image), generator=torch.Generator().manual_seed(0))
    engine = compile(net, x, threads, batches, any_size=any_size)
    engine.save(out)
    found, expected = Engine.load(out, threads)(x.numpy()), run_torch(net, [x.numpy()])[0]
    error = abs(found - expected).max() / abs(expected).max()
    summary = engine.summary()
    print(summary if layers else next(line for line in summary.splitlines() if "threads" in line))
    compared = f"PyTorch by {error:.1e} of the largest output"
    if getattr(net, "activation_ranges", None):
        compared += " on noise, for which the ranges of eight bits are not made: splore evaluate says what it loses"
    print(f"{out}: {Path(out).stat().st_size:,} bytes; differs from {compared}")
    return 0
