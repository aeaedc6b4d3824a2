"""What the model file, the program file and the files of a run share: written whole or not at all, and checked."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

MESSAGE = 300  # characters of an error

_JSON_NAMES = {
    bool: "true or false",
    int: "a whole number",
    str: "a text",
    list: "a list",
    dict: "a JSON object",
    float: "a number",
}


def write_whole(path: str | os.PathLike[str], what: str, *parts: bytes | memoryview) -> None:
    """Writes a file whole or not at all: whoever reads it meanwhile, or after a crash, sees the old one or the new one.

    The parts go into a temporary file of the same folder, which is synced and takes the place of `path`; a link at
    `path` is followed. Permissions are the usual ones.

    Raises:
        OSError: it could not be written; the message calls it `what`. What stood at `path` is whole.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        message = f"{what} could not be written ({error.strerror or error}); what was there before is whole"
        raise OSError(error.errno, message, str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Makes a rename in the folder outlast a crash, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that a killed process left half written."""
    return name.startswith(".") and name.endswith(".tmp")


def remove_temporaries(folder: Path) -> None:
    """Removes what a kill left half written in a folder that no other process writes to."""
    for path in folder.iterdir():
        if is_temporary(path.name):
            path.unlink(missing_ok=True)


def sha256(parts: Iterable[bytes | memoryview]) -> str:
    """The SHA-256 of the parts one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def sealed(name: str, value: object) -> str:
    """A JSON text of a value under its name, with the SHA-256 of what it says."""
    text = json.dumps(value)
    return json.dumps({"sha256": sha256([text.encode()]), name: text})


def unsealed(name: str, text: str) -> dict:
    """The JSON object that a text of `sealed` holds. Raises ValueError where it was altered."""
    found = json_object(text)
    inner = typed(found.get(name), str)
    if found.get("sha256") != sha256([inner.encode()]):
        raise ValueError("its checksum does not match: the file was altered or damaged")
    return json_object(inner)


def json_object(text: str) -> dict:
    """The object that a JSON text holds. Raises ValueError where it is no JSON, or something else."""
    try:
        return typed(json.loads(text), dict)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def typed(value: object, kind: type[T]) -> T:
    """`value`, out of a JSON text, where it is of this very kind; ValueError elsewhere."""
    if type(value) is not kind:
        raise ValueError(f"expected {_JSON_NAMES[kind]}, found {value!r:.80}")
    return value  # type: ignore[return-value]


def short(error: Exception) -> str:
    """Its message; what that repeats of a file may be of any length."""
    text = str(error)
    return text if len(text) <= MESSAGE else f"{text[:MESSAGE]}..."


def numbers(value: object, least: int | None = None) -> tuple[int, ...]:
    """The whole numbers, none below `least`, of a list out of a JSON text; ValueError elsewhere."""
    found = tuple(typed(each, int) for each in typed(value, list))
    if least is not None and min(found, default=least) < least:
        raise ValueError(f"expected whole numbers of at least {least}, found {found!r:.80}")
    return found
