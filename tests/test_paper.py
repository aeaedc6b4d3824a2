"""The runs behind benchmarks/paper's table: the recipe of each method is one that can run, at equal terms."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "paper"))

import run

import splore
from splore.design.prices import Params
from splore.runs.recipe_check import check_recipe
from splore.runs.recipe_file import load_recipe


@pytest.mark.parametrize("method", run.METHODS | run.ABLATIONS)
@pytest.mark.parametrize("net", run.NETS)
def test_every_method_is_a_recipe_of_equal_epochs_without_a_teacher(net, method):
    words, epochs = run.overrides(net, method, 0.15, ["--train.epochs=3", "--finetune.epochs=3", "--cut.steps=2"])
    recipe = load_recipe(run.RECIPES / run.NETS[net][0], words)
    check_recipe(recipe)
    assert recipe.model == net and epochs == 6
    assert recipe.train.epochs + (recipe.finetune.epochs if recipe.method != "dense" else 0) == 6
    assert (recipe.baseline, recipe.finetune.distill > 0) == (method == "distilled", method == "distilled")


@pytest.mark.parametrize(
    ("net", "kept", "rank"), [("vgg19", 0.0314, 4), ("vgg19", 0.01, 1), ("resnet20", 0.15, 1), ("resnet20", 0.9, 4)]
)
def test_ranks_that_are_kept_leave_room_for_entries(net, kept, rank):
    found = run.rank_within(net, 4, kept)
    assert found == rank

    def held(rank):
        model = splore.build(net, 10)
        splore.decompose(model, splore.Design(rank=rank))
        prices = Params(0.35 * kept).prices(model)
        return Params(0.35 * kept).allowed(model), prices.of_ranks(model)

    allowed, without = held(found)
    assert without <= allowed or found == 1
    if found < 4:
        allowed, without = held(found + 1)
        assert without > allowed


def test_the_unscaled_l1_is_as_strong_as_the_scaled_one_on_average():
    strength = run.mean_strength("digits_cnn", 0.01)
    model = splore.build("digits_cnn", 10)
    splore.decompose(model, splore.Design(rank=1))
    layers = [layer.S for layer in splore.decomposed_layers(model).values()]
    scaled = sum(0.01 * S.numel() / max(S.shape) ** 0.5 for S in layers)
    assert strength * sum(S.numel() for S in layers) == pytest.approx(scaled)
    words, _ = run.overrides("digits_cnn", "l1-unscaled", 0.02, ["--train.l1=0.01"])
    assert f"--train.l1={strength:.3g}" in words
