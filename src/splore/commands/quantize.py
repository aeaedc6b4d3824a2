"""splore quantize: a model file in eight bits, from one in float32."""

from pathlib import Path
from typing import TYPE_CHECKING

from splore.commands.net import loaded
from splore.commands.parser import Misuse, Parser
from splore.commands.recipe_words import add_keys

if TYPE_CHECKING:
    from splore.runs.recipe import Recipe

SECTIONS = ("data", "quantize", "train", "hardware")
"""Of a recipe, what says how a net is quantised; of `train` the optimiser's settings."""


def command(words: list[str]) -> int:
    """Parses the words and carries the command out; returns its exit code."""
    from splore.runs.recipe_file import load_recipe
    from splore.runs.recipe_keys import recipe_sections

    parser = Parser("quantize", quantize_file.__doc__ or "")
    parser.add_argument("file", help="a model file")
    parser.add_argument("-o", "--out", metavar="FILE", help="the model file to write; *-int8.safetensors by default")
    parser.add_argument("--model", help="package.module:factory, for a file with a net of your own")
    add_keys(parser, (section for section in recipe_sections() if section.name in SECTIONS))
    values = parser.parse_args(words)
    recipe = load_recipe(overrides=["--quantize.images=256", *values.overrides])
    source = Path(values.file)
    out = Path(values.out) if values.out else source.with_name(f"{source.stem}-int8.safetensors")
    return quantize_file(values.file, out, recipe, values.model)


def quantize_file(file: str, out: Path, recipe: "Recipe", model: str | None = None) -> int:
    """Rounds a model file to eight bits by training images, fine-tunes it so, and says what it loses."""
    import torch

    from splore.modelfile.file import save
    from splore.runs.eight_bits import to_eight_bits
    from splore.runs.prepare import accelerator_of, check_outputs, open_split
    from splore.runs.processes import common_score
    from splore.runs.progress import Display
    from splore.runs.recipe_check import check_recipe
    from splore.runs.stop import StopRequest

    check_recipe(recipe)
    if not recipe.quantize.images:
        raise Misuse("expected training images to measure ranges by, found --quantize.images=0")
    if recipe.hardware.threads:
        torch.set_num_threads(recipe.hardware.threads)
    accelerator = accelerator_of(recipe.hardware, out.parent)
    net = loaded(file, model)[0].to(accelerator.device)
    layout = torch.channels_last if recipe.hardware.channels_last else torch.contiguous_format
    data = open_split(recipe.data, recipe.seed, accelerator, layout)
    check_outputs(net, data)
    stop = StopRequest()
    with Display(accelerator.is_main_process) as display, stop.listening():
        before = common_score(net, data.test, accelerator)
        after = to_eight_bits(net, recipe, data, accelerator, display, stop)
        if accelerator.is_main_process:
            save(net, out)
        display.say(
            f"{out}: {out.stat().st_size:,} bytes, {Path(file).stat().st_size:,} before; accuracy "
            f"{after.accuracy:.2f} %, {before.accuracy:.2f} % before, {after.samples:,} images"
        )
    return 0
