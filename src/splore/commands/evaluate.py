"""splore evaluate: the accuracy of a model file."""

from typing import TYPE_CHECKING, Literal

from splore.commands.net import loaded
from splore.commands.parser import Parser
from splore.commands.recipe_words import add_keys

if TYPE_CHECKING:
    from splore.runs.recipe import DataRecipe


def command(words: list[str]) -> int:
    """Parses the words and carries the command out; returns its exit code."""
    from splore.runs.recipe_file import load_recipe
    from splore.runs.recipe_keys import recipe_sections

    parser = Parser("evaluate", evaluate.__doc__ or "")
    parser.add_argument("file", help="a model file")
    parser.add_argument("--model", help="package.module:factory, for a file with a net of your own")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto (a GPU if any) or cpu")
    add_keys(parser, (section for section in recipe_sections() if section.name == "data"))
    values = parser.parse_args(words)
    data = load_recipe(overrides=values.overrides).data
    return evaluate(values.file, data, values.model, values.device)


def evaluate(file: str, data: "DataRecipe", model: str | None = None, device: Literal["auto", "cpu"] = "auto") -> int:
    """Classifies the test images with a model file and prints the accuracy."""
    import torch
    from accelerate import Accelerator
    from rich.console import Console

    from splore.measure import accuracy
    from splore.runs.prepare import check_outputs, open_split

    accelerator = Accelerator(cpu=device == "cpu")
    net = loaded(file, model)[0].to(accelerator.device)
    split = open_split(data, 0, accelerator, torch.channels_last)
    check_outputs(net, split)
    score = accuracy.evaluate(net, split.test)
    top5 = "" if score.top5 is None else f", top-5 {score.top5:.2f} %"
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{file}: accuracy {score.accuracy:.2f} %{top5}, loss {score.loss:.4f}, {score.samples:,} images")
    return 0
