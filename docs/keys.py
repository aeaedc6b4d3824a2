"""The keys of a recipe as Markdown, into docs/recipes.md between its two markers: python docs/keys.py"""

from pathlib import Path

from splore.runs.recipe_keys import markdown

PAGE = Path(__file__).with_name("recipes.md")
BEGIN, END = "<!-- keys: made by docs/keys.py -->\n", "<!-- end of keys -->"


def with_keys(page: str) -> str:
    """The page with the keys as they are now. Raises ValueError where a marker is missing."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"{PAGE} must have the lines {BEGIN.strip()!r} and {END!r}, between which the keys stand")
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_keys(PAGE.read_text()))
