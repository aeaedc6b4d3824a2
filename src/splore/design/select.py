"""Which layers of a model are meant, by name, glob, regular expression or class; and others in their places."""

import fnmatch
import re
from collections.abc import Mapping, Sequence

from torch import nn

Pattern = str | type[nn.Module]
"""A module's name (`layer1.0.conv1`), a glob over names (`layer*.conv1`), `re:` and a regular expression that must
match the whole name, a class's name (`Conv2d`), or a class. A class means its subclasses too."""


def matches(pattern: Pattern, name: str, module: nn.Module) -> bool:
    """Whether a module of this name is meant by the pattern."""
    if isinstance(pattern, type):
        return isinstance(module, pattern)
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return fnmatch.fnmatchcase(name, pattern) or any(kind.__name__ == pattern for kind in type(module).__mro__)


def select(
    model: nn.Module,
    kinds: tuple[type[nn.Module], ...],
    include: Sequence[Pattern],
    exclude: Sequence[Pattern] = (),
) -> tuple[list[str], list[Pattern]]:
    """The names of the modules that a pattern of `include` means and none of `exclude` does, and the idle patterns.

    Only modules of `kinds` are looked at; one that the model holds several times is meant by any of its names and
    returned by the first. A pattern that meant none of them is idle; a caller reports it, for it is most often a
    typing error, or the name of a container (its layers are `name.*`).

    Raises:
        ValueError: a `re:` pattern is no regular expression.
    """
    for pattern in (*include, *exclude):
        if isinstance(pattern, str) and pattern.startswith("re:"):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                raise ValueError(f"the pattern {pattern!r} is no regular expression: {error}") from error
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, kinds):
            names.setdefault(module, []).append(name)
    busy: set[Pattern] = set()
    selected = []
    for module, own in names.items():
        hits = [pattern for pattern in include if any(matches(pattern, name, module) for name in own)]
        vetoes = [pattern for pattern in exclude if any(matches(pattern, name, module) for name in own)]
        busy.update(hits, vetoes)
        if hits and not vetoes:
            selected.append(own[0])
    return selected, [pattern for pattern in (*include, *exclude) if pattern not in busy]


def replace(model: nn.Module, others: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Puts other modules in the places of some, in place, wherever the model holds them.

    Returns the model, or what replaces it where it is itself to be replaced.
    """
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if path and module in others:
            model.set_submodule(path, others[module])
    return others.get(model, model)
