"""The command line: one typed function = one command."""

import difflib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentParser

from splore.recipe import DataRecipe, Recipe, check

USAGE = """\
splore learns every weight of a network as a low-rank plus a sparse matrix, W = A·B + S.

  splore run RECIPE [--KEY=VALUE ...] --out DIR [--resume]    one run, from images to a compressed file
  splore recipe                                               the default recipe, each key explained
  splore inspect FILE_OR_MODEL                                the table of layers: rank, density, cost
  splore evaluate FILE --data.name NAME [--data.root DIR]     accuracy of a model file on the test images

splore COMMAND --help explains each."""


def run(recipe: Recipe, out: Path, resume: bool = False) -> int:
    """Runs a recipe into the folder `out`; with `resume`, continues the run that the folder holds."""
    check(recipe)
    claim(out, recipe_yaml(recipe), resume)
    from splore.run import Run
    from splore.train.loop import Stopped

    try:
        Run(recipe, out, resume).execute()
    except (Stopped, KeyboardInterrupt):
        print(f"stopped; the same command with --resume continues the run in {out}", file=sys.stderr)
        return 130
    return 0


def evaluate(file: str, data: DataRecipe, device: str = "auto") -> int:
    """Classifies the test images with a model file and prints the accuracy."""
    from rich.console import Console

    from splore.run import evaluate_file

    score = evaluate_file(file, data, device)
    top5 = "" if score.top5 is None else f", top-5 {score.top5:.2f} %"
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{file}: accuracy {score.accuracy:.2f} %{top5}, loss {score.loss:.4f}, {score.samples:,} images")
    return 0


def inspect(model: str, classes: int = 1000, image: Sequence[int] = (3, 224, 224), as_json: bool = False) -> int:
    """Prints the table of layers of a model file, or of a net that is named as in a recipe."""
    from rich.console import Console

    from splore.deploy.file import load
    from splore.design.cost import cost
    from splore.measure.report import layer_table
    from splore.zoo import build

    shape = tuple(image)
    if os.path.exists(model) or model.endswith(".safetensors"):
        net = load(model)
    else:
        net = build(model, classes, shape[0])
    price = cost(net, shape)
    if as_json:
        print(json.dumps(price.as_dict(), indent=2))
    else:
        Console(highlight=False).print(layer_table(price))
    return 0


def claim(out: Path, recipe: str, resume: bool) -> None:
    """Makes the folder of a new run, or checks that it holds the run that is to be resumed.

    Raises FileExistsError for a folder with another run, FileNotFoundError or ValueError where nothing, or a run of
    another recipe, would be resumed. Processes of one job other than the first leave it alone.
    """
    if int(os.environ.get("RANK", "0")):
        return
    written = out / "recipe.yaml"
    if not resume:
        if written.exists():
            raise FileExistsError(f"{out} already holds a run: continue it with --resume, or choose another --out")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{out} is not an empty folder: choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        written.write_text(recipe)
        return
    if not written.exists():
        raise FileNotFoundError(f"there is no run to resume in {out}: leave --resume out to start one")
    before = written.read_text()
    if _essence(before) != _essence(recipe):
        changed = [line for line in difflib.ndiff(_essence(before), _essence(recipe)) if line[0] in "+-"]
        raise ValueError(
            f"the run in {out} has another recipe (- there, + here): " + "; ".join(" ".join(c.split()) for c in changed)
        )


def _essence(recipe: str) -> list[str]:
    """The lines of a recipe that decide its result: no comments, and not the hardware."""
    lines = [line for line in recipe.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return lines[: lines.index("hardware:")] if "hardware:" in lines else lines


def recipe_parser() -> ArgumentParser:
    """A parser whose keys are a recipe's."""
    parser = ArgumentParser(
        prog="splore run",
        usage="splore run RECIPE [--KEY=VALUE ...] --out DIR [--resume]",
        description="One run of the method, from images to a compressed file. RECIPE is a YAML file; each of its keys "
        "can be overridden here.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="another recipe, laid over the one before")
    parser.add_class_arguments(Recipe, None)
    return parser


def recipe_yaml(recipe: Recipe | None = None) -> str:
    """A recipe as YAML, each key with its meaning and unit; the default one when none is given."""
    from dataclasses import asdict

    parser = recipe_parser()
    values = parser.get_defaults() if recipe is None else parser.parse_object(asdict(recipe))
    return parser.dump(values, with_comments=True, skip_unset=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: exits 0, 1 for what went wrong on the way, 2 for what was asked wrongly, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        raise SystemExit(0 if words else 2)
    command, rest = words[0], words[1:]
    commands = {"run": _run, "recipe": _recipe, "inspect": _inspect, "evaluate": _evaluate}
    if command not in commands:
        _fail(f"there is no command {command!r}{_nearest(command, commands)}; splore --help lists them", 2)
    try:
        code = commands[command](rest)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("SPLORE_DEBUG"):
            raise
        _fail(" ".join(str(error).split()) or repr(error), 1)
    except Exception as error:  # noqa: BLE001
        if type(error).__name__ != "ArgumentError" or os.environ.get("SPLORE_DEBUG"):
            raise
        _fail(_explained(str(error), command), 2)
    raise SystemExit(code)


def _run(words: list[str]) -> int:
    if words and not words[0].startswith("-"):
        if not Path(words[0]).is_file():
            raise FileNotFoundError(f"there is no recipe file {words[0]}")
        words = ["--config", *words]
    parser = recipe_parser()
    parser.add_argument("--out", type=str, required=True, help="folder for everything that the run writes")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    values = parser.instantiate(parser.parse_args(words))
    fields = {name: values[name] for name in Recipe.__dataclass_fields__}
    return run(Recipe(**fields), Path(values.out), values.resume)


def _recipe(words: list[str]) -> int:
    ArgumentParser(
        prog="splore recipe", description="Prints the default recipe, each key explained.", exit_on_error=False
    ).parse_args(words)
    print(recipe_yaml(), end="")
    return 0


def _inspect(words: list[str]) -> int:
    parser = ArgumentParser(prog="splore inspect", description=inspect.__doc__, exit_on_error=False)
    parser.add_argument("model", type=str, help="a model file, or a net's name as in a recipe")
    parser.add_argument("--classes", type=int, default=1000, help="outputs of a named net")
    parser.add_argument("--image", type=list[int], default=[3, 224, 224], help="channels, height, width of an image")
    parser.add_argument("--as_json", action="store_true", help="print JSON")
    values = parser.parse_args(words)
    return inspect(values.model, values.classes, values.image, values.as_json)


def _evaluate(words: list[str]) -> int:
    parser = ArgumentParser(prog="splore evaluate", description=evaluate.__doc__, exit_on_error=False)
    parser.add_argument("file", type=str, help="a model file")
    parser.add_class_arguments(DataRecipe, "data")
    parser.add_argument("--device", type=str, default="auto", help="auto or cpu")
    values = parser.instantiate(parser.parse_args(words))
    return evaluate(values.file, values.data, values.device)


def _explained(message: str, command: str) -> str:
    """A parser's complaint, with the nearest keys where one is unknown."""
    message = " ".join(message.split())
    unknown = re.search(r"[Oo]ption '([\w.]+)' is not accepted|unrecognized arguments: --([\w.]+)", message)
    if unknown and command == "run":
        key = unknown.group(1) or unknown.group(2)
        keys = [name for name in recipe_parser().get_defaults().keys() if name != "config"]
        return f"there is no key {key!r} in a recipe{_nearest(key, keys)}; splore recipe explains all keys"
    return message


def _nearest(word: str, known: Sequence[str] | dict) -> str:
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _fail(message: str, code: int) -> None:
    print(f"splore: {message}", file=sys.stderr)
    raise SystemExit(code)
