"""Recipes as YAML: read with a clear word on what is wrong, written with every key explained, and compared."""

import io
import json
import re
from argparse import ArgumentError
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentParser

from splore.names import nearest
from splore.runs.recipe import Recipe
from splore.runs.recipe_keys import recipe_sections

ELSEWHERE = ("hardware.", "data.root", "data.workers", "data.download")
"""Keys that say where and how a run is made; it may be resumed with others."""


class RecipeError(ValueError):
    """A recipe, or an option in its place, that can't be read."""


def load_recipe(path: str | Path | None = None, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a YAML file (the default one when there is none), with overrides: --KEY=VALUE, or --config=FILE.

    Raises RecipeError for a file, a key or a value that no recipe has.
    """
    words = [*([] if path is None else [f"--config={path}"]), *overrides]
    for word in words:
        if word.startswith("--config="):
            check_recipe_file(word.removeprefix("--config="))
    parser = _parser()
    try:
        values = parser.instantiate(parser.parse_args(words))
    except (ArgumentError, ValueError) as error:
        raise RecipeError(_plain(str(error))) from error
    return Recipe(**{name: values[name] for name in Recipe.__dataclass_fields__})


_KEY = re.compile(r'Parser key "([^"]+)"')
_VALUE = re.compile(r"(?:Got value|Given value): (.*)$", re.MULTILINE)


def _plain(message: str) -> str:
    """What the parser says of a value, in one line and in the words of the table of keys."""
    lines = [line.strip(" -") for line in message.splitlines()]
    own = next((line for line in lines if ", found " in line), None)
    keys, values = _KEY.findall(message), _VALUE.findall(message)
    known = {key.name: key for section in recipe_sections() for key in section.keys}
    if own or not keys or keys[-1] not in known or not values:
        return own or " ".join(lines)
    return f"{keys[-1]}: expected {known[keys[-1]].expected}, found {values[-1]}"


def _parser() -> ArgumentParser:
    """A parser whose keys are a recipe's."""
    parser = ArgumentParser(prog="splore run", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_class_arguments(Recipe, None)
    return parser


def recipe_yaml(recipe: Recipe | None = None) -> str:
    """A recipe as YAML, each key with its meaning and unit; the default one when none is given."""
    parser = _parser()
    values = parser.get_defaults() if recipe is None else parser.parse_object(asdict(recipe))
    return parser.dump(values, with_comments=True, skip_unset=False)


def check_recipe_file(path: str) -> None:
    """Raises RecipeError, with the file and the place in it, unless it holds a mapping of known keys.

    Values are left to the parser.
    """
    if not Path(path).exists():
        raise RecipeError(f"there is no recipe file {path}")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise RecipeError(f"{path} is not a text file: a recipe is a YAML file, see splore recipe") from error
    found = _mapping(text, path)
    known = known_keys()
    sections = {key.partition(".")[0] for key in known if "." in key}
    for name, value in found.items():
        if name in sections and not isinstance(value, dict):
            raise RecipeError(f"{path}: the section {name!r} must hold keys with values, found {value!r}")
        for key in [f"{name}.{part}" for part in value] if isinstance(value, dict) else [str(name)]:
            if key not in known:
                raise unknown_key(key, known, f"{path}: ")


def known_keys() -> list[str]:
    """The keys of a recipe, sections joined to their keys by dots."""
    return [key.name for section in recipe_sections() for key in section.keys]


def unknown_key(key: str, known: Iterable[str], where: str = "") -> RecipeError:
    """What to say of a key that no recipe has."""
    offer = nearest(key, known)
    return RecipeError(f"{where}there is no key {key!r} in a recipe; {offer} splore recipe explains all keys")


def changes(there: str, here: str) -> list[str]:
    """The keys in which two recipes that `recipe_yaml` wrote differ, with both values; not those of `ELSEWHERE`.

    A key that was unknown when one of them was written is at its default there.
    """
    before, now = (
        _flat(_mapping(recipe_yaml(), "")) | _flat(_mapping(text, "the recipe of the run")) for text in (there, here)
    )
    return [
        f"{key} is {before.get(key)} there and {now.get(key)} here"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(ELSEWHERE)
    ]


def overrides(recipe: Recipe, changed: Recipe) -> list[str]:
    """The words --KEY=VALUE that make of one recipe another."""
    before, after = (_flat(_mapping(recipe_yaml(each), "")) for each in (recipe, changed))
    return [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in after.items()
        if value != before[key]
    ]


def _mapping(text: str, name: str) -> dict:
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        found = YAML(typ="safe", pure=True).load(io.StringIO(text))
    except DuplicateKeyError as error:
        place = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{name}: a key is given a second time{place}") from error
    except MarkedYAMLError as error:
        place = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{name} is not YAML: {error.problem or error.context}{place}") from error
    except YAMLError as error:
        raise RecipeError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        kind = "nothing" if found is None else f"a {type(found).__name__}"
        raise RecipeError(f"{name} must hold keys with values, as splore recipe prints them; found {kind}")
    return found


def _flat(recipe: dict) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in recipe.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": part for key, part in value.items()}
        else:
            flat[name] = value
    return flat
