"""splore export: a model file for another runtime."""

from collections.abc import Sequence
from pathlib import Path

from splore.commands.net import image_of, loaded
from splore.commands.parser import Parser, image_shape

TARGETS = ("onnx", "onnx-compact", "openvino", "pt2", "dense", "executorch", "engine")


def command(words: list[str]) -> int:
    """Parses the words and carries the command out; returns its exit code."""
    parser = Parser("export", export_file.__doc__ or "")
    parser.add_argument("file", help="a model file")
    parser.add_argument("--to", choices=TARGETS, required=True, help="the runtime, see docs/deployment.md")
    parser.add_argument("-o", "--out", metavar="FILE", help="the file to write; named as FILE is by default")
    parser.add_argument("--image", type=image_shape, metavar="C,H,W", help="an image; that of the file by default")
    parser.add_argument("--model", help="package.module:factory, for a file with a net of your own")
    values = parser.parse_args(words)
    return export_file(values.file, values.to, values.out, values.image, values.model)


def export_file(
    file: str, to: str, out: str | None = None, image: Sequence[int] | None = None, model: str | None = None
) -> int:
    """Writes the net of a model file for another runtime, reads it back, and compares what the two compute."""
    import torch

    from splore.deploy.export import FORMATS, export

    target = next(target for target in FORMATS if target == to)
    net, source, channels = loaded(file, model)
    shape = image_of(net, source, channels, image)
    stem = f"{Path(file).stem}-dense" if target == "dense" else Path(file).stem
    path = Path(out) if out else Path(file).with_name(stem + FORMATS[target].suffix)
    done = export(net.eval(), path, target, torch.zeros(1, *shape))
    if done.in_bytes is None:
        print(f"{done.path}: {done.bytes:,} bytes; differs from PyTorch by {done.error:.1e} of the largest output")
        return 0
    in_bytes, layers = done.in_bytes
    print(
        f"{done.path}: int8, {done.bytes:,} bytes, {in_bytes} of {layers} layers in eight bits; differs from integer "
        f"arithmetic by {done.error:.1e} of the largest output"
    )
    if in_bytes < layers:
        print("quantise the model again to have more layers in eight bits: its ranges lack some that this file needs")
    return 0
