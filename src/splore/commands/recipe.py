"""splore recipe: the default recipe."""

from splore.commands.parser import Parser


def command(words: list[str]) -> int:
    """Parses the words and carries the command out; returns its exit code."""
    Parser("recipe", "Prints the default recipe, each key explained.").parse_args(words)
    from splore.runs.recipe_file import recipe_yaml

    print(recipe_yaml(), end="")
    return 0
