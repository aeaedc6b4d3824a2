"""Things of a user's own, imported by `package.module:name`."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from splore.names import UnknownName, nearest


def import_callable(spec: str) -> Callable[..., Any]:
    """The callable that "package.module:name" names; modules of the working directory are found too.

    Raises UnknownName for a spec without both halves, and for a module or a name that does not exist; ValueError for a
    name that cannot be called. An error inside the imported module is left as it is.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise UnknownName(f"expected 'package.module:name', found {spec!r}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # a console script starts without it; worker processes inherit it from here
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise UnknownName(
            f"{spec!r}: there is no module {error.name!r}; name one that is installed or lies in {here}"
        ) from error
    found = getattr(module, attribute, None)
    if found is None:
        names = [each for each in dir(module) if callable(getattr(module, each)) and not each.startswith("_")]
        raise UnknownName(f"{spec!r}: the module {module_name} has no {attribute!r}; {nearest(attribute, names)}")
    if not callable(found):
        raise ValueError(f"{spec!r}: expected something that can be called, found {type(found).__name__}")
    return found


def call(spec: str, function: Callable[..., Any], **arguments: object) -> Any:  # noqa: ANN401
    """What the function returns; ValueError where it wants other arguments than it is given."""
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        given = f"{', '.join(arguments)} alone" if arguments else "nothing"
        raise ValueError(f"{spec} is given {given}, but {error}: let the rest have defaults") from error
    except ValueError:  # some callables written in C have no signature
        pass
    return function(**arguments)


def takes(function: Callable[..., Any], parameter: str, by_keywords: bool = False) -> bool:
    """Whether `function` has a parameter of this name; `by_keywords`: a `**` parameter counts too."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        return False
    return parameter in parameters or (
        by_keywords and any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    )
