"""The command line: one typed function = one command."""

import difflib
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NoReturn

from jsonargparse import ArgumentParser

from splore.output import SUMMARY, check_free, claimed, held, stored_recipe
from splore.recipe import DataRecipe, Recipe, check
from splore.recipe_file import (
    RecipeError,
    changes,
    check_recipe_file,
    recipe_parser,
    recipe_yaml,
    unknown_key,
    without_noise,
)

USAGE = """\
splore learns every weight of a network as a low-rank plus a sparse matrix, W = A·B + S.

  splore run RECIPE [--KEY=VALUE ...] --out DIR [--resume]    one run, from images to a compressed file
  splore recipe                                               the default recipe, each key explained
  splore inspect FILE_OR_MODEL                                the table of layers: rank, density, cost
  splore evaluate FILE --data.name NAME [--data.root DIR]     accuracy of a model file on the test images

splore COMMAND --help explains each. Exit codes: 0 done, 1 something went wrong, 2 asked wrongly, 130 interrupted;
with SPLORE_DEBUG=1 in the environment every error comes with its traceback."""


class Misuse(Exception):
    """The command can't be carried out as it was given: exit code 2."""


def run(recipe: Recipe, out: Path, resume: bool = False) -> int:
    """Runs a recipe into the folder `out`; with `resume`, continues the run that the folder holds.

    Nothing is written before the data, the model and the budgets have been found to be possible.
    """
    text = recipe_yaml(recipe)
    first = not int(os.environ.get("RANK", "0"))  # of the processes of one job, the one that writes
    with ExitStack() as hold:
        try:
            check(recipe)
            if resume:
                _check_same(out, text)
            elif first:
                check_free(out)
        except (ValueError, FileExistsError, FileNotFoundError) as error:
            raise Misuse(str(error)) from error
        if resume and (out / SUMMARY).exists():
            print(f"the run in {out} is finished: nothing is left to do")
            return 0
        if resume and first:
            hold.enter_context(held(out))
        from splore.run import Run
        from splore.train.checkpoint import Checkpoints
        from splore.train.loop import Diverged, Stopped

        def begin() -> None:
            if first and not resume:
                hold.enter_context(claimed(out, text))

        try:
            Run(recipe, out, resume).execute(begin)
        except (Stopped, KeyboardInterrupt):
            go_on = f"the same command with --resume continues the run in {out}"
            print(
                f"splore: stopped; {go_on if (out / 'recipe.yaml').exists() else 'nothing was begun'}", file=sys.stderr
            )
            return 130
        except Diverged as error:
            last = Checkpoints(out / "checkpoints").newest()
            kept = f"the last good checkpoint, {last}, is kept" if last else "there was no checkpoint yet"
            raise Diverged(f"{error}; {kept}") from error
    return 0


def evaluate(file: str, data: DataRecipe, model: str | None = None, device: Literal["auto", "cpu"] = "auto") -> int:
    """Classifies the test images with a model file and prints the accuracy."""
    from rich.console import Console

    from splore.run import evaluate_on

    score = evaluate_on(_loaded(file, model), data, device)
    top5 = "" if score.top5 is None else f", top-5 {score.top5:.2f} %"
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{file}: accuracy {score.accuracy:.2f} %{top5}, loss {score.loss:.4f}, {score.samples:,} images")
    return 0


def inspect(
    file_or_model: str,
    model: str | None = None,
    classes: int = 1000,
    image: Sequence[int] | None = None,
    as_json: bool = False,
) -> int:
    """Prints the table of layers of a model file, or of a net that is named as in a recipe."""
    from splore.design.cost import cost
    from splore.measure.report import layer_table, show
    from splore.zoo.build import build, usual_image

    if image is not None and (len(image) != 3 or min(image) < 1):
        raise Misuse(f"--image is channels, height and width, found {list(image)}")
    if os.path.exists(file_or_model) or file_or_model.endswith(".safetensors"):
        net = _loaded(file_or_model, model)
    else:
        usual = usual_image(file_or_model)
        net = build(file_or_model, classes, image[0] if image else usual[0])
    shape = tuple(image) if image else usual_image(net.origin.source, net.origin.in_channels)
    try:
        price = cost(net, shape)
    except RuntimeError as error:
        raise Misuse(f"the net can't take images of shape {shape}, give theirs as --image: {error}") from error
    if as_json:
        print(json.dumps(price.as_dict(), indent=2))
    else:
        show(layer_table(price))
    return 0


def _loaded(file: str, source: str | None) -> "nn.Module":  # noqa: F821
    """The net of a model file; `source` names the factory of a net that is neither the zoo's nor a library's."""
    from splore.deploy.file import load, read_structure
    from splore.zoo.build import build

    origin = read_structure(file).origin
    if source is None:
        if (
            origin is not None
            and ":" in origin["source"]
            and not origin["source"].startswith(("torchvision:", "timm:"))
        ):
            raise Misuse(
                f"{file} holds a net of your own: name the function that builds it, --model={origin['source']}, "
                "if you trust its code"
            )
        return load(file)
    net = build(source, **({key: origin[key] for key in ("num_classes", "in_channels")} if origin else {}))
    loaded = load(file, net)
    loaded.origin = net.origin
    return loaded


def _check_same(out: Path, recipe: str) -> None:
    """Raises ValueError, naming the keys, where the run in `out` has another recipe."""
    differences = changes(stored_recipe(out), recipe)
    if differences:
        raise ValueError(
            f"the run in {out} has another recipe: {'; '.join(differences)}. Resume with the same one, or choose "
            "another --out"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: exits 0, 1 for what went wrong on the way, 2 for what was asked wrongly, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        raise SystemExit(0 if words else 2)
    command, rest = words[0], words[1:]
    commands = {"run": _run, "recipe": _recipe, "inspect": _inspect, "evaluate": _evaluate}
    debug = bool(os.environ.get("SPLORE_DEBUG"))
    try:
        if command not in commands:
            raise Misuse(f"there is no command {command!r}{_nearest(command, commands)}; splore --help lists them")
        raise SystemExit(commands[command](rest))
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        code = _exit_code(error)
        if code is None or debug:
            raise
        _fail(_explained(error, command), code)


def _exit_code(error: Exception) -> int | None:
    """2 for what was asked wrongly, 1 for what went wrong outside of this program, None for a mistake within it."""
    kind = type(error).__name__  # by name: what defines them takes long to import
    if isinstance(error, Misuse | RecipeError) or kind == "ArgumentError":
        return 2
    known = isinstance(error, ValueError | OSError | ImportError) or kind in ("Diverged", "OutOfMemoryError")
    return 1 if known else None


def _explained(error: Exception, command: str) -> str:
    """What to say of an error, in one line."""
    message = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError":
        return f"the device's memory is full: make data.batch_size smaller ({message.split('. ')[0]})"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, FileExistsError):
        message = error.strerror + (f": {error.filename}" if error.filename else "")
    unknown = re.search(r"unrecognized arguments: --([\w.]+)", message)
    if unknown and command == "run":
        return str(unknown_key(unknown.group(1)))
    return message or repr(error)


def _run(words: list[str]) -> int:
    parser = recipe_parser()
    parser.add_argument("--out", type=str, required=True, help="folder for everything that the run writes")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    words = _with_recipe(words)
    for before, word in zip(["", *words], words, strict=False):
        if before == "--config" or word.startswith("--config="):
            check_recipe_file(word.removeprefix("--config="))
    values = parser.parse_args(words)
    try:
        values = parser.instantiate(values)
    except ValueError as error:
        reason = next((line.strip(" -") for line in str(error).splitlines() if ", found " in line), str(error))
        raise Misuse(reason) from error
    fields = {name: values[name] for name in Recipe.__dataclass_fields__}
    return run(Recipe(**fields), Path(values.out), values.resume)


def _with_recipe(words: list[str]) -> list[str]:
    """The words with the one that names the recipe, wherever it stands, as an option at their head."""
    recipes, others, value = [], [], False
    for word in words:
        if value or word.startswith("-"):
            others.append(word)
            alone = word in ("--resume", "-h", "--help") or word.startswith("--print_config")
            value = not value and "=" not in word and not alone
        else:
            recipes.append(word)
    if len(recipes) > 1:
        raise Misuse(f"expected one recipe, found {' and '.join(recipes)}")
    return [f"--config={recipe}" for recipe in recipes] + others


def _recipe(words: list[str]) -> int:
    parser = ArgumentParser(
        prog="splore recipe", description="Prints the default recipe, each key explained.", exit_on_error=False
    )
    parser.parse_args(words)
    print(recipe_yaml(), end="")
    return 0


def _inspect(words: list[str]) -> int:
    parser = ArgumentParser(prog="splore inspect", description=inspect.__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("file_or_model", type=str, help="a model file, or a net's name as in a recipe")
    parser.add_argument("--model", type=str | None, help="package.module:factory, for a file with a net of your own")
    parser.add_argument("--classes", type=int, default=1000, help="outputs of a named net")
    parser.add_argument(
        "--image",
        type=list[int] | None,
        help="[channels,height,width] of an image; the usual ones of the net by default",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    values = parser.parse_args(words)
    return inspect(values.file_or_model, values.model, values.classes, values.image, values.json)


def _evaluate(words: list[str]) -> int:
    parser = ArgumentParser(
        prog="splore evaluate", description=evaluate.__doc__, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("file", type=str, help="a model file")
    parser.add_class_arguments(DataRecipe, "data")
    parser.add_argument("--model", type=str | None, help="package.module:factory, for a file with a net of your own")
    parser.add_argument("--device", type=Literal["auto", "cpu"], default="auto", help="auto (a GPU if any) or cpu")
    values = parser.instantiate(without_noise(parser).parse_args(words))
    return evaluate(values.file, values.data, values.model, values.device)


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _fail(message: str, code: int) -> NoReturn:
    print(f"splore: {message}", file=sys.stderr)
    raise SystemExit(code)
