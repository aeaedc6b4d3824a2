"""A recipe in the words of a command: its file, its keys as options, and where a run writes."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from splore.commands.parser import Misuse, Parser
from splore.runs.folder import RECIPE, stored_recipe

if TYPE_CHECKING:
    from splore.runs.recipe import Recipe
    from splore.runs.recipe_keys import KeySection

T = TypeVar("T")


class Override(argparse.Action):
    """Keeps a key of a recipe as the word --KEY=VALUE, in the order in which they came."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        value: Any,  # noqa: ANN401 - argparse's own signature
        option: str | None = None,
    ) -> None:
        namespace.overrides = [*namespace.overrides, f"{option}={value}"]


def with_recipe(parser: Parser, words: list[str]) -> tuple[argparse.Namespace, "Recipe"]:
    """The values of the words, RECIPE and its keys among them, and the recipe that they make."""
    from splore.runs.recipe_file import load_recipe, unknown_key
    from splore.runs.recipe_keys import recipe_sections

    parser.add_argument("recipe", nargs="*", metavar="RECIPE", help="a YAML file, as splore recipe prints it")
    parser.add_argument("--config", action=Override, metavar="FILE", help="another recipe, laid over the one before")
    add_keys(parser, recipe_sections())
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


def add_keys(parser: Parser, sections: "Iterable[KeySection]") -> None:
    """Adds the keys of a recipe as options, and whole sections and parts of keys, which the help leaves out."""
    parser.set_defaults(overrides=[])
    for section in sections:
        group = parser.add_argument_group(section.about)
        if section.name:
            group.add_argument(f"--{section.name}", action=Override, help=argparse.SUPPRESS)
        for key in section.keys:
            about = f"{key.meaning.removesuffix('.')} ({key.kind}; default: {key.default})".replace("%", "%%")
            group.add_argument(f"--{key.name}", action=Override, metavar="VALUE", help=about)
            more = [f"--{key.name}.{part}" for part in key.parts] + ([f"--{key.name}+"] if key.is_list else [])
            for option in more:
                group.add_argument(option, action=Override, help=argparse.SUPPRESS)


def or_recipe(kind: Callable[[str], T]) -> Callable[[str], T | Path]:
    """What reads a word as a value of a list, or as the path of a recipe."""

    def read(word: str) -> T | Path:
        return Path(word) if word.endswith((".yaml", ".yml")) else kind(word)

    read.__name__ = kind.__name__  # argparse names it in its errors
    return read


def add_folder(parser: Parser) -> None:
    """Adds what runs and sweeps share: where they write, whether they go on, and the seeds."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for everything that the run writes")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in --out, by its recipe, from its last checkpoint"
    )
    parser.add_argument(
        "--seeds",
        type=or_recipe(int),
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


def check_out(out: Path | None) -> None:
    """Raises Misuse where no folder was given."""
    if out is None:
        raise Misuse("expected --out DIR, the folder for everything that is written")


def check_same(out: Path, recipe: str) -> None:
    """Raises ValueError, naming the keys, where the run in `out` has another recipe."""
    from splore.runs.recipe_file import changes

    differences = changes(stored_recipe(out), recipe)
    if differences:
        raise ValueError(
            f"the run in {out} has another recipe: {'; '.join(differences)}. Resume with the same one, or choose "
            "another --out"
        )
