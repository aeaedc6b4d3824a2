"""The keys of a recipe one by one, out of its dataclasses: what the command line's help and the docs say of them."""

import types
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse

from splore.runs.recipe import Recipe

_KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false", types.NoneType: "null"}


@dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Attributes:
        name: with its section, as in train.lr.
        kind: what its values are, in words.
        default: as YAML has it.
        meaning: what it does, and its unit.
        parts: names within a value that may be a mapping.
        is_list: whether its value is a list.
    """

    name: str
    kind: str
    default: str
    meaning: str
    parts: tuple[str, ...]
    is_list: bool

    @property
    def expected(self) -> str:
        """The kind of value with its article, for a message."""
        nouns = ("whole number", "number", "text", "list")
        return f"a {self.kind}" if self.kind.startswith(nouns) else self.kind


@dataclass(frozen=True)
class KeySection:
    """The keys that stand together in a recipe; `name` is empty for those that stand at its head."""

    name: str
    about: str
    keys: tuple[Key, ...]


def recipe_sections() -> list[KeySection]:
    """All keys of a recipe by section, in its order."""
    hints = get_type_hints(Recipe)
    default = Recipe()
    inner = [field.name for field in fields(Recipe) if is_dataclass(hints[field.name])]
    return [_section("", default, inner), *(_section(name, getattr(default, name), []) for name in inner)]


def markdown() -> str:
    """The keys as Markdown, a table for each section."""
    blocks = []
    for section in recipe_sections():
        rows = "\n".join(
            f"| `{key.name}` | {key.kind} | `{key.default}` | {key.meaning.replace('|', chr(92) + '|')} |"
            for key in section.keys
        )
        title = f"`{section.name}`: " if section.name else ""
        blocks.append(
            f"### {title}{section.about}\n\n| key | value | default | meaning |\n| --- | --- | --- | --- |\n{rows}\n"
        )
    return "\n".join(blocks)


def _section(name: str, default: Any, without: list[str]) -> KeySection:  # noqa: ANN401 - any of the recipe's dataclasses
    kind = type(default)
    hints = get_type_hints(kind)
    doc = parse(kind.__doc__ or "")
    meanings = {each.arg_name: " ".join((each.description or "").split()) for each in doc.params}
    keys = tuple(
        Key(
            name=f"{name}.{field.name}".lstrip("."),
            kind=_either(_words(hints[field.name])),
            default=_yaml(getattr(default, field.name)),
            meaning=meanings[field.name],
            parts=tuple(
                part.name for each in get_args(hints[field.name]) if is_dataclass(each) for part in fields(each)
            ),
            is_list=get_origin(hints[field.name]) is list,
        )
        for field in fields(kind)
        if field.name not in without
    )
    return KeySection(name, (doc.short_description or "").removesuffix("."), keys)


def _words(hint: Any) -> list[str]:  # noqa: ANN401 - a type, or what typing makes of several
    """The values that a type allows, in words."""
    if get_origin(hint) is Literal:
        return [str(each) for each in get_args(hint)]
    if get_origin(hint) in (Union, types.UnionType):
        return [word for each in get_args(hint) for word in _words(each)]
    if get_origin(hint) is list:
        return [f"list of {_either(_words(get_args(hint)[0]))}"]
    if is_dataclass(hint):
        return ["{" + ", ".join(f"{part.name}: number" for part in fields(hint)) + "}"]
    return [_KINDS[hint]]


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _yaml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not value[:1].isalnum():
        return f'"{value}"'  # such as *, which means something else in YAML
    return "null" if value is None else str(value)
