"""The command line: words into commands, and what went wrong into one line and an exit code."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from splore import commands
from splore.commands import Misuse
from splore.failures import exit_code, explained
from splore.names import nearest
from splore.runs.folder import RECIPE

if TYPE_CHECKING:
    from splore.runs.recipe import Recipe
    from splore.runs.recipe_keys import KeySection

T = TypeVar("T")

USAGE = """\
splore learns every weight of a network as a low-rank plus a sparse matrix, W = A·B + S.

  splore run RECIPE [--KEY=VALUE ...] --out DIR [--resume]    one run, from images to a compressed file
  splore run RECIPE --seeds 0 1 2 --out DIR [--resume]        the same run with several seeds, and their mean
  splore sweep RECIPE --seeds 0 1 2 --methods dense sparse low-rank+sparse --kept 0.3 0.15 --out DIR [--resume]
                                                              every seed with every method and share kept, compared
  splore recipe                                               the default recipe, each key explained
  splore inspect FILE_OR_MODEL                                the table of layers: rank, density, cost
  splore evaluate FILE --data.name NAME [--data.root DIR]     accuracy of a model file on the test images
  splore report RUN [RUN ...] [--out FILE] [--time]           one HTML page on finished runs, to open offline

splore COMMAND --help explains each; splore --version tells the version. Exit codes: 0 done, 1 something went wrong,
2 asked wrongly, 130 interrupted; with SPLORE_DEBUG=1 in the environment every error comes with its traceback."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: exits 0, 1 for what went wrong on the way, 2 for what was asked wrongly, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        raise SystemExit(0 if words else 2)
    if words[0] == "--version":
        from splore import __version__

        print(f"splore {__version__}")
        raise SystemExit(0)
    command, rest = words[0], words[1:]
    known = {
        "run": _run,
        "sweep": _sweep,
        "recipe": _recipe,
        "inspect": _inspect,
        "evaluate": _evaluate,
        "report": _report,
    }
    try:
        if command not in known:
            raise Misuse(f"there is no command {command!r}; {nearest(command, known)} splore --help lists them")
        raise SystemExit(known[command](rest))
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        code = exit_code(error)
        if code is None or os.environ.get("SPLORE_DEBUG"):
            raise
        _fail(explained(error), code)


def _fail(message: str, code: int) -> NoReturn:
    print(f"splore: {message}", file=sys.stderr)
    raise SystemExit(code)


class _Parser(argparse.ArgumentParser):
    """A parser of a command's words that says in one line what is wrong with them."""

    def __init__(self, command: str, description: str, usage: str | None = None) -> None:
        super().__init__(prog=f"splore {command}", description=description, usage=usage, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise Misuse(message)


class _Override(argparse.Action):
    """Keeps a key of a recipe as the word --KEY=VALUE, in the order in which they came."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        value: Any,  # noqa: ANN401 - argparse's own signature
        option: str | None = None,
    ) -> None:
        namespace.overrides = [*namespace.overrides, f"{option}={value}"]


def _run(words: list[str]) -> int:
    parser = _Parser(
        "run",
        "One run of the method, from images to a compressed file. RECIPE is a YAML file; each of its keys can be "
        "overridden here, and those it leaves out have the defaults below.",
        "splore run [RECIPE] [--KEY=VALUE ...] --out DIR [--resume] [--seeds K ...]",
    )
    _add_folder(parser)
    parser.add_argument("--print_config", action="store_true", help="print the recipe as it would be run, and end")
    values, recipe = _with_recipe(parser, words)
    if values.print_config:
        from splore.runs.recipe_file import recipe_yaml

        print(recipe_yaml(recipe), end="")
        return 0
    _check_out(values.out)
    if values.seeds is None:
        if values.jobs is not None:
            raise Misuse("--jobs says how many of the --seeds run side by side: give them too")
        return commands.run(recipe, values.out, values.resume)
    if any(word.startswith("--seed=") for word in values.overrides):
        raise Misuse("--seed and --seeds are both given: leave one out")
    return commands.sweep(recipe, values.seeds, values.out, values.resume, jobs=values.jobs)


def _sweep(words: list[str]) -> int:
    parser = _Parser(
        "sweep",
        "Runs of one recipe that differ in seed, method and share of the parameters kept, each in a folder of its own; "
        "at the end a table, mean and standard deviation over the seeds. With dense among the methods the others train "
        "no baseline of their own, and all see the images equally often.",
        "splore sweep [RECIPE] [--KEY=VALUE ...] [--seeds K ...] [--methods M ...] [--kept SHARE ...] --out DIR",
    )
    _add_folder(parser)
    parser.add_argument(
        "--methods",
        type=_or_recipe(str),
        nargs="+",
        metavar="M",
        default=[],
        help="dense, low-rank, sparse, low-rank+sparse; by default that of the recipe",
    )
    parser.add_argument(
        "--kept",
        type=_or_recipe(float),
        nargs="+",
        metavar="SHARE",
        default=[],
        help="shares of the dense net's parameters to keep, in place of cut.params",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="stop after so long, each run with a checkpoint, to go on later with --resume",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="run on the workers of the Dask cluster with this scheduler (tcp://host:8786), which must all see --out",
    )
    values, recipe = _with_recipe(parser, words)
    _check_out(values.out)
    if any(word.startswith("--seed=") for word in values.overrides):
        raise Misuse("a sweep takes its seeds from --seeds: leave --seed out")
    seeds = values.seeds or [recipe.seed]
    more = (values.methods, values.kept, values.jobs, values.minutes, values.scheduler)
    return commands.sweep(recipe, seeds, values.out, values.resume, *more)


def _add_folder(parser: _Parser) -> None:
    """Adds what runs and sweeps share: where they write, whether they go on, and the seeds."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for everything that the run writes")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in --out, by its recipe, from its last checkpoint"
    )
    parser.add_argument(
        "--seeds",
        type=_or_recipe(int),
        nargs="+",
        metavar="K",
        help="run with each of these seeds in place of seed, into folders of their own in --out",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="how many run side by side; by default as many as there are seeds on a GPU, one on a CPU",
    )


def _check_out(out: Path | None) -> None:
    if out is None:
        raise Misuse("expected --out DIR, the folder for everything that is written")


def _with_recipe(parser: _Parser, words: list[str]) -> tuple[argparse.Namespace, "Recipe"]:
    """The values of the words, RECIPE and its keys among them, and the recipe that they make."""
    from splore.runs.recipe_file import load_recipe, unknown_key
    from splore.runs.recipe_keys import recipe_sections

    parser.add_argument("recipe", nargs="*", metavar="RECIPE", help="a YAML file, as splore recipe prints it")
    parser.add_argument("--config", action=_Override, metavar="FILE", help="another recipe, laid over the one before")
    _add_keys(parser, recipe_sections())
    values, unknown = parser.parse_known_args(words)
    for word in unknown:
        if word.startswith("-"):
            raise unknown_key(word.lstrip("-").partition("=")[0], vars(values).keys() - {"recipe", "overrides"})
    recipes = [*values.recipe, *unknown]
    for name, value in vars(values).items():
        if isinstance(value, list):  # a list of seeds ends with the next option: a recipe may have been among them
            recipes += [str(each) for each in value if isinstance(each, Path)]
            setattr(values, name, [each for each in value if not isinstance(each, Path)])
    if len(recipes) > 1:
        raise Misuse(f"expected one recipe, found {' and '.join(recipes)}")
    # What a run that is gone on with was given, it need not be given again; nor does a later default count.
    stored = [values.out / RECIPE] if values.resume and values.out and (values.out / RECIPE).exists() else []
    files = [f"--config={file}" for file in (*stored, *recipes)]
    return values, load_recipe(overrides=[*files, *values.overrides])


def _or_recipe(kind: Callable[[str], T]) -> Callable[[str], T | Path]:
    """What reads a word as a value of a list, or as the path of a recipe."""

    def read(word: str) -> T | Path:
        return Path(word) if word.endswith((".yaml", ".yml")) else kind(word)

    read.__name__ = kind.__name__  # argparse names it in its errors
    return read


def _add_keys(parser: _Parser, sections: "Iterable[KeySection]") -> None:
    """Adds the keys of a recipe as options, and whole sections and parts of keys, which the help leaves out."""
    parser.set_defaults(overrides=[])
    for section in sections:
        group = parser.add_argument_group(section.about)
        if section.name:
            group.add_argument(f"--{section.name}", action=_Override, help=argparse.SUPPRESS)
        for key in section.keys:
            about = f"{key.meaning.removesuffix('.')} ({key.kind}; default: {key.default})".replace("%", "%%")
            group.add_argument(f"--{key.name}", action=_Override, metavar="VALUE", help=about)
            more = [f"--{key.name}.{part}" for part in key.parts] + ([f"--{key.name}+"] if key.is_list else [])
            for option in more:
                group.add_argument(option, action=_Override, help=argparse.SUPPRESS)


def _recipe(words: list[str]) -> int:
    _Parser("recipe", "Prints the default recipe, each key explained.").parse_args(words)
    from splore.runs.recipe_file import recipe_yaml

    print(recipe_yaml(), end="")
    return 0


def _inspect(words: list[str]) -> int:
    parser = _Parser("inspect", commands.inspect.__doc__ or "")
    parser.add_argument("file_or_model", help="a model file, or a net's name as in a recipe")
    parser.add_argument("--model", help="package.module:factory, for a file with a net of your own")
    parser.add_argument("--classes", type=int, default=1000, help="outputs of a named net")
    parser.add_argument(
        "--image",
        type=_image_shape,
        metavar="C,H,W",
        help="channels, height and width of an image; the usual ones of the net by default",
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON, with the sums")
    values = parser.parse_args(words)
    return commands.inspect(values.file_or_model, values.model, values.classes, values.image, values.json)


def _image_shape(word: str) -> list[int]:
    """A shape such as 3,32,32 or [3, 32, 32]."""
    try:
        return [int(side) for side in word.strip().removeprefix("[").removesuffix("]").split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected channels, height and width as in 3,32,32, found {word}") from error


def _evaluate(words: list[str]) -> int:
    from splore.runs.recipe_file import load_recipe
    from splore.runs.recipe_keys import recipe_sections

    parser = _Parser("evaluate", commands.evaluate.__doc__ or "")
    parser.add_argument("file", help="a model file")
    parser.add_argument("--model", help="package.module:factory, for a file with a net of your own")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto (a GPU if any) or cpu")
    _add_keys(parser, (section for section in recipe_sections() if section.name == "data"))
    values = parser.parse_args(words)
    data = load_recipe(overrides=values.overrides).data
    return commands.evaluate(values.file, data, values.model, values.device)


def _report(words: list[str]) -> int:
    parser = _Parser("report", commands.report.__doc__ or "")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder; any other stands for all runs below it")
    parser.add_argument("-o", "--out", default="report.html", metavar="FILE", help="the page to write")
    parser.add_argument("--time", action="store_true", help="measure milliseconds on this machine's CPU")
    parser.add_argument("--own-code", action="store_true", help="import nets and data sets of your own in the recipes")
    values = parser.parse_args(words)
    return commands.report(values.runs, values.out, values.time, values.own_code)
