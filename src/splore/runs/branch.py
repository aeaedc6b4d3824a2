"""More budgets for one trained net: a run of its own for each, in a folder within, that begins where training ended."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from splore.design.decompose import materialise
from splore.modelfile.file import load
from splore.runs.folder import RECIPE, SUMMARY, write_recipe
from splore.runs.journal import JOURNAL
from splore.runs.recipe import Recipe
from splore.runs.recipe_budget import currency_of
from splore.runs.recipe_file import load_recipe, recipe_yaml
from splore.runs.record import FILES
from splore.train.checkpoint import Checkpoints, random_state

BEFORE = ("as given", "as decomposed", "dense", "after training")
"""The rows of the table of stages that a branch shares with its run."""


def branches(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe of each further budget, by the name of its folder."""
    currency = currency_of(recipe.cut)
    return {
        f"{currency}-{amount:g}": replace(recipe, cut=replace(recipe.cut, budgets=[], **{str(currency): amount}))  # type: ignore[arg-type]
        for amount in recipe.cut.budgets
    }


def is_finished(folder: Path) -> bool:
    """Whether a run and all its branches have come to their ends."""
    if not (folder / SUMMARY).exists():
        return False
    return all((folder / name / SUMMARY).exists() for name in branches(load_recipe(folder / RECIPE)))


def begin(run: Path, folder: Path, recipe: Recipe, model: nn.Module) -> None:
    """Makes the folder of a branch of a finished run, unless it is there: one that goes on at the cut.

    `model` is the net of the recipe, decomposed; it stays as it is. The recipe is written last: a folder without one is
    begun anew.
    """
    if (folder / RECIPE).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    summary = json.loads((run / SUMMARY).read_text())
    rows = [row for row in summary["stages"] if row["stage"] in BEFORE]
    for row in rows:
        shutil.copy2(run / FILES[row["stage"]], folder)
    lines = (run / JOURNAL).read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line).get("stage") in ("dense", "train")]
    (folder / JOURNAL).write_bytes(b"".join(kept))
    torch.manual_seed(recipe.seed)
    Checkpoints(folder / "checkpoints").save(
        {
            "stage": "finetune",
            "epoch": 0,
            "step": 0,
            "sums": torch.zeros(3, dtype=torch.float64),
            "model": load(run / FILES["after training"], materialise(copy.deepcopy(model))).state_dict(),
            "optimizer": None,
            "random": random_state(),
            "journal": sum(map(len, kept)),
            "rows": rows,
            "seconds": 0.0,
        }
    )
    write_recipe(folder, recipe_yaml(recipe))
