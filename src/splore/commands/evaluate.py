"""splore evaluate: the accuracy of a model file."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from splore.commands.net import is_program, loaded
from splore.commands.parser import Parser
from splore.commands.recipe_words import add_keys

if TYPE_CHECKING:
    from torch import Tensor

    from splore.runs.recipe import DataRecipe
    from splore.task import Task
    from splore.vision import Data


def command(words: list[str]) -> int:
    """Parses the words and carries the command out; returns its exit code."""
    from splore.runs.recipe_file import load_recipe
    from splore.runs.recipe_keys import recipe_sections

    parser = Parser("evaluate", evaluate.__doc__ or "")
    parser.add_argument("file", help="a model file or a program file")
    parser.add_argument("--model", help="package.module:factory, for a file with a net of your own")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto (a GPU if any) or cpu")
    add_keys(parser, (section for section in recipe_sections() if section.name == "data"))
    values = parser.parse_args(words)
    data = load_recipe(overrides=values.overrides).data
    return evaluate(values.file, data, values.model, values.device)


def evaluate(file: str, data: "DataRecipe", model: str | None = None, device: Literal["auto", "cpu"] = "auto") -> int:
    """Classifies the test images with a model file or a program file, prepared as the file says, and prints the
    accuracy."""
    import torch
    from accelerate import Accelerator
    from rich.console import Console

    from splore.engine.engine import Engine
    from splore.measure import accuracy
    from splore.runs.prepare import check_outputs, open_split
    from splore.task import task_of

    program = is_program(file)
    accelerator = Accelerator(cpu=program or device == "cpu")
    if program:
        engine = Engine.load(file)
        net, task = engine.as_module(), engine.task
    else:
        net = loaded(file, model)[0].to(accelerator.device)
        task = task_of(net)
    prepared = task.preprocessing if task is not None and data.normalisation != "data" else None
    if prepared is not None and prepared.shorter_side and data.size is None and data.name == "folder":
        data = replace(data, size=prepared.size[0])  # small images too: it was trained on resized ones
    split = open_split(data, 0, accelerator, torch.channels_last, prepared)
    check_outputs(net, split)
    score = accuracy.evaluate(net, split.test if task is None else _for_task(split, task))
    top5 = "" if score.top5 is None else f", top-5 {score.top5:.2f} %"
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{file}: accuracy {score.accuracy:.2f} %{top5}, loss {score.loss:.4f}, {score.samples:,} images")
    return 0


def _for_task(data: "Data", task: "Task") -> "Iterator[tuple[Tensor, Tensor]]":
    """The test batches, normalised as the net wants them and labelled by its own order of the classes."""
    import torch

    wanted, given = task.preprocessing, data.preprocessing
    if wanted is not None and given is not None and wanted.shape != given.shape:
        raise ValueError(f"the file is of a net for images {wanted.shape}, {data.name} gives {given.shape}")
    if task.classes and not set(data.classes) <= set(task.classes):
        unknown = sorted(set(data.classes) - set(task.classes))
        raise ValueError(f"the file's net knows no class {unknown[0]!r}: evaluate it on the classes it was trained on")
    places = torch.tensor([task.classes.index(name) if task.classes else i for i, name in enumerate(data.classes)])
    for x, y in data.test.epoch(0):
        if wanted is not None and given is not None and wanted != given:
            mean, deviation, new_mean, new_deviation = (
                torch.tensor(each, device=x.device)[:, None, None]
                for each in (given.mean, given.deviation, wanted.mean, wanted.deviation)
            )
            x = (x * deviation + mean - new_mean) / new_deviation
        yield x, places.to(y.device)[y]
