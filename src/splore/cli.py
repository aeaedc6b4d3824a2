"""The command line: words into commands, and what went wrong into one line and an exit code."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

from splore.commands import Misuse, evaluate, inspect, run, run_seeds
from splore.names import nearest

USAGE = """\
splore learns every weight of a network as a low-rank plus a sparse matrix, W = A·B + S.

  splore run RECIPE [--KEY=VALUE ...] --out DIR [--resume]    one run, from images to a compressed file
  splore run RECIPE --seeds 0 1 2 --out DIR [--resume]        the same run with several seeds, and their mean
  splore recipe                                               the default recipe, each key explained
  splore inspect FILE_OR_MODEL                                the table of layers: rank, density, cost
  splore evaluate FILE --data.name NAME [--data.root DIR]     accuracy of a model file on the test images

splore COMMAND --help explains each. Exit codes: 0 done, 1 something went wrong, 2 asked wrongly, 130 interrupted;
with SPLORE_DEBUG=1 in the environment every error comes with its traceback."""


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
            raise Misuse(f"there is no command {command!r}; {nearest(command, commands)} splore --help lists them")
        raise SystemExit(commands[command](rest))
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        code = _exit_code(error)
        if code is None or debug:
            raise
        _fail(_explained(error, command), code)


_NOT_COMPILED = ("BackendCompilerFailed", "InductorError")
"""Errors of torch.compile."""


def _exit_code(error: Exception) -> int | None:
    """2 for what was asked wrongly, 1 for what went wrong outside of this program, None for a mistake within it."""
    kind = type(error).__name__  # by name: what defines them takes long to import
    if isinstance(error, Misuse | FileExistsError) or kind in ("ArgumentError", "RecipeError", "UnknownName"):
        return 2
    kinds = ("Diverged", "OutOfMemoryError", *_NOT_COMPILED)
    known = isinstance(error, ValueError | OSError | ImportError) or kind in kinds
    return 1 if known or _is_loss_of_peers(error) else None


def _is_loss_of_peers(error: Exception) -> bool:
    """Whether an error says that another process of the same job is gone."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or not isinstance(error, RuntimeError):
        return False
    dist = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    return dist or "gloo" in str(error).lower() or "Connection closed by peer" in str(error)


def _explained(error: Exception, command: str) -> str:
    """What to say of an error, in one line."""
    message = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError":
        return f"the device's memory is full: make data.batch_size smaller ({message.split('. ')[0]})"
    if type(error).__name__ in _NOT_COMPILED:
        return (
            "the net could not be compiled: see that a C++ compiler (g++) works, or set hardware.compile: false "
            f"({message[:300]})"
        )
    if _is_loss_of_peers(error):
        return (
            "another process of this job has died or can't be reached: the same command with --resume continues from "
            f"the last checkpoint ({message[:200]})"
        )
    if isinstance(error, OSError) and error.strerror and not isinstance(error, FileExistsError):
        message = error.strerror + (f": {error.filename}" if error.filename else "")
    unknown = re.search(r"unrecognized arguments: --([\w.]+)", message)
    if unknown and command == "run":
        from splore.runs.recipe_file import unknown_key

        return str(unknown_key(unknown.group(1)))
    return message or repr(error)


def _run(words: list[str]) -> int:
    from splore.runs.recipe_file import check_recipe_file, recipe_from, recipe_parser

    parser = recipe_parser()
    parser.add_argument("--out", type=str, required=True, help="folder for everything that the run writes")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        help="run with each of these seeds in place of seed, into folders of their own in --out",
    )
    parser.add_argument(
        "--jobs",
        type=int | None,
        help="how many of the seeds run side by side; by default all of them on a GPU, one on a CPU",
    )
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
    recipe, out = recipe_from(values), Path(values.out)
    if values.seeds is None:
        if values.jobs is not None:
            raise Misuse("--jobs says how many of the --seeds run side by side: give them too")
        return run(recipe, out, values.resume)
    if any(word.partition("=")[0] == "--seed" for word in words):
        raise Misuse("--seed and --seeds are both given: leave one out")
    return run_seeds(recipe, values.seeds, out, values.resume, values.jobs)


def _with_recipe(words: list[str]) -> list[str]:
    """The words with the one that names the recipe, wherever it stands, as an option at their head."""
    recipes, others, value, seeds = [], [], False, False
    for word in words:
        if seeds and re.fullmatch(r"-?[\d.]+", word):
            others.append(word)
        elif value or word.startswith("-"):
            others.append(word)
            seeds = word == "--seeds"
            alone = seeds or word in ("--resume", "-h", "--help") or word.startswith("--print_config")
            value = not value and "=" not in word and not alone
        else:
            recipes.append(word)
    if len(recipes) > 1:
        raise Misuse(f"expected one recipe, found {' and '.join(recipes)}")
    return [f"--config={recipe}" for recipe in recipes] + others


def _recipe(words: list[str]) -> int:
    from jsonargparse import ArgumentParser

    from splore.runs.recipe_file import recipe_yaml

    parser = ArgumentParser(
        prog="splore recipe", description="Prints the default recipe, each key explained.", exit_on_error=False
    )
    parser.parse_args(words)
    print(recipe_yaml(), end="")
    return 0


def _inspect(words: list[str]) -> int:
    from jsonargparse import ArgumentParser

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
    from jsonargparse import ArgumentParser

    from splore.runs.recipe import DataRecipe
    from splore.runs.recipe_file import without_noise

    parser = ArgumentParser(
        prog="splore evaluate", description=evaluate.__doc__, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("file", type=str, help="a model file")
    parser.add_class_arguments(DataRecipe, "data")
    parser.add_argument("--model", type=str | None, help="package.module:factory, for a file with a net of your own")
    parser.add_argument("--device", type=Literal["auto", "cpu"], default="auto", help="auto (a GPU if any) or cpu")
    values = parser.instantiate(without_noise(parser).parse_args(words))
    return evaluate(values.file, values.data, values.model, values.device)


def _fail(message: str, code: int) -> NoReturn:
    print(f"splore: {message}", file=sys.stderr)
    raise SystemExit(code)
