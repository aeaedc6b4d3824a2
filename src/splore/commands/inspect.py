"""splore inspect: the table of layers, or of a program's operations."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from splore.commands.net import checked_image, image_of, is_program, loaded
from splore.commands.parser import Misuse, Parser, image_shape
from splore.task import Task, task_of

if TYPE_CHECKING:
    from torch import nn

    from splore.budget.balance import Balance

NOISE = 4
"""Images by which the cancellation of L and S is measured."""


def command(words: list[str]) -> int:
    """Parses the words and carries the command out; returns its exit code."""
    parser = Parser("inspect", inspect.__doc__ or "")
    parser.add_argument("file_or_model", help="a model file, a program file, or a net's name as in a recipe")
    parser.add_argument("--model", help="package.module:factory, for a file with a net of your own")
    parser.add_argument("--classes", type=int, default=1000, help="outputs of a named net")
    parser.add_argument(
        "--image",
        type=image_shape,
        metavar="C,H,W",
        help="channels, height and width of an image; those of the file, or the usual ones of the net, by default",
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON, with the sums")
    values = parser.parse_args(words)
    if is_program(values.file_or_model):
        return inspect_program(values.file_or_model, values.json)
    return inspect(values.file_or_model, values.model, values.classes, values.image, values.json)


def inspect(
    file_or_model: str,
    model: str | None = None,
    classes: int = 1000,
    image: Sequence[int] | None = None,
    as_json: bool = False,
) -> int:
    """Prints the table of layers of a model file or a named net, or that of a program file's operations."""
    from splore.budget.balance import balance_table
    from splore.measure.cost import cost
    from splore.measure.tables import layer_table, show, size
    from splore.vision import build, usual_image

    if os.path.exists(file_or_model) or file_or_model.endswith(".safetensors"):
        net, source, channels = loaded(file_or_model, model)
        shape = image_of(net, source, channels, image)
    else:
        shape = checked_image(image) if image is not None else usual_image(file_or_model)
        net = build(file_or_model, classes, shape[0])
    try:
        found = cost(net, shape)
    except RuntimeError as error:
        raise Misuse(f"the net can't take images of shape {shape}, give theirs as --image: {error}") from error
    task, rows = task_of(net), _balance(net, shape)
    if as_json:
        balance = {"balance": [asdict(row) for row in rows]} if rows else {}
        print(json.dumps(found.as_dict() | balance | _task_json(task), indent=2))
    else:
        show(layer_table(found))
        if rows:
            show(balance_table(rows))
            print(f"cancellation: how far L x and S x undo each other, for {NOISE} images of noise")
        if found.bytes_least < found.bytes:
            print(
                f"{size(found.bytes)} of tensors; at least {size(round(found.bytes_least))} by their numbers and the "
                "entropy of the positions of S"
            )
        _say(task)
    return 0


def _balance(net: "nn.Module", shape: tuple[int, ...]) -> "list[Balance]":
    """How L and S stand to each other; nothing for a net that does not have both."""
    import torch

    from splore.budget.balance import balance
    from splore.design.layers import decomposed_layers

    if not any(layer.rank and layer.S is not None for layer in decomposed_layers(net).values()):
        return []
    return balance(net, [torch.randn(NOISE, *shape, generator=torch.Generator().manual_seed(0))])


def inspect_program(file: str, as_json: bool = False) -> int:
    """Prints the operations of a program file, without torch."""
    from splore.engine import plan_table, program_file
    from splore.engine.interface import load_task

    program, task = program_file.load(file), load_task(file)
    size = Path(file).stat().st_size
    if as_json:
        sums = {"bytes": size, "macs": program.multiply_adds}
        print(json.dumps(program_file.describe(program) | sums | _task_json(task), indent=2))
    else:
        shapes = " to ".join("x".join(map(str, shape)) for shape in (program.input, program.output))
        print(plan_table.of_program(program, f"{file}: a program of {size:,} bytes, {shapes}", []))
        _say(task)
    return 0


def _task_json(task: Task | None) -> dict:
    return {} if task is None else {"task": task.to_json()}


def _say(task: Task | None) -> None:
    """What the net is for, under its table."""
    if task is not None and task.classes:
        more = f", ... {task.classes[-1]}" if len(task.classes) > 10 else ""
        print(f"{len(task.classes)} classes: {', '.join(task.classes[:10])}{more}")
    steps = None if task is None else task.preprocessing
    if steps is not None:
        resized = "" if steps.shorter_side is None else f"shorter side to {steps.shorter_side}, then the central "
        mean, deviation = (", ".join(f"{value:.4g}" for value in each) for each in (steps.mean, steps.deviation))
        print(f"images: {resized}{steps.size[0]} x {steps.size[1]} pixels, mean {mean}, deviation {deviation}")
