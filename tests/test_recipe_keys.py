"""What is said of a recipe's keys is said of each, and the docs have it as it is now."""

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))

import keys

from splore.runs.recipe import Recipe
from splore.runs.recipe_file import load_recipe, recipe_yaml
from splore.runs.recipe_keys import recipe_sections


def test_every_key_is_there_with_its_default_and_a_meaning():
    found = {key.name: key for section in recipe_sections() for key in section.keys}
    names = set()
    for field in dataclasses.fields(Recipe):
        value = getattr(Recipe(), field.name)
        inner = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        names |= {f"{field.name}.{part.name}" for part in inner} or {field.name}
    assert found.keys() == names
    assert load_recipe(overrides=[f"--{key.name}={key.default}" for key in found.values()]) == Recipe()
    for key in found.values():
        assert len(key.meaning.split()) >= 3 and key.kind, key


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model", "text"),
        ("seed", "whole number"),
        ("baseline", "true or false"),
        ("data.root", "text or null"),
        ("design.rank", "whole number, number, {energy: number} or {budget: number}"),
        ("cut.ranks", "number, shared or keep"),
        ("hardware.precision", "fp32, bf16 or fp16"),
    ],
)
def test_kinds_are_told_in_words(name, kind):
    assert [key.kind for section in recipe_sections() for key in section.keys if key.name == name] == [kind]


def test_the_page_of_recipes_has_the_keys_as_they_are():
    page = keys.PAGE.read_text()
    assert page == keys.with_keys(page), "make docs writes them anew"


def test_the_keys_of_a_page_are_written_between_its_markers_alone():
    page = keys.with_keys(f"before\n{keys.BEGIN}what was{keys.END}\nafter\n")
    assert page.startswith("before\n") and page.endswith("\nafter\n") and "what was" not in page
    assert keys.with_keys(page) == page
    with pytest.raises(ValueError, match="between which"):
        keys.with_keys("no marker")


def test_the_printed_recipe_says_the_same_of_each_key():
    printed = " ".join(recipe_yaml().replace("#", " ").split())
    for section in recipe_sections():
        for key in section.keys:
            assert key.meaning[:30] in printed, key
