"""What all commands share: a parser of their words, and the error for what was asked wrongly."""

import argparse
from typing import NoReturn


class Misuse(Exception):
    """The command can't be carried out as it was given: exit code 2."""


class Parser(argparse.ArgumentParser):
    """A parser of a command's words that says in one line what is wrong with them."""

    def __init__(self, command: str, description: str, usage: str | None = None) -> None:
        super().__init__(prog=f"splore {command}", description=description, usage=usage, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise Misuse(message)


def image_shape(word: str) -> list[int]:
    """A shape such as 3,32,32 or [3, 32, 32]."""
    try:
        return [int(side) for side in word.strip().removeprefix("[").removesuffix("]").split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected channels, height and width as in 3,32,32, found {word}") from error
