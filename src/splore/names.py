"""What to offer to a person who typed a name that nothing has."""

import difflib
from collections.abc import Iterable


class UnknownName(ValueError):
    """Nothing has the name that was asked for."""


def nearest(name: str, known: Iterable[str], few: int = 12) -> str:
    """A half sentence that offers the known names most like `name`; all of them where they are at most `few`.

    Of names with dots, those that end in the same part count as near too.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    close = close or [each for each in known if "." in each and each.rpartition(".")[2] == name.rpartition(".")[2]][:3]
    if close:
        return "did you mean " + " or ".join(repr(each) for each in close) + "?"
    if len(known) <= few:
        return "known are " + ", ".join(known) + "."
    return f"none of the {len(known)} known names is close to it."
