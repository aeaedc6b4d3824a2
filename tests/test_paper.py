"""The runs behind benchmarks/paper's table: the recipe of each method is one that can run, at equal terms."""

import argparse
import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "paper"))

import run
import table

import splore
from splore.design.prices import Params
from splore.runs.recipe_check import check_recipe
from splore.runs.recipe_file import load_recipe, recipe_yaml


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


def arguments(out, **more):
    given = {"net": ["resnet20"], "method": ["dense", "best", "low-rank"], "kept": [0.3, 0.1], "seeds": [0]}
    return argparse.Namespace(**given | more, root=None, parallel=1, out=out)


def test_one_training_serves_all_shares_and_each_has_a_summary_of_its_own(tmp_path):
    args = arguments(tmp_path, currency="params", together=False)
    single = [name for names in run.trials(args, []).values() for name in names]
    assert single == [
        "resnet20-dense-100-30ep-seed0",
        *(f"resnet20-{method}-{kept}-30ep-seed0" for method in ("best", "low-rank") for kept in (30, 10)),
    ]
    args.together = True
    found = run.trials(args, [])
    assert sorted(name for names in found.values() for name in names) == sorted(single)
    places = next(places for trial, places in found.items() if "best" in trial.name)
    assert places == {"resnet20-best-30-30ep-seed0": "", "resnet20-best-10-30ep-seed0": "params-0.1"}


def test_shares_of_bytes_and_of_milliseconds_are_budgets_of_them(tmp_path):
    args = arguments(tmp_path, currency="bytes", together=True)
    args.method = ["dense", "sparse"]
    (_, dense), (trial, places) = run.trials(args, []).items()
    assert dense == {"resnet20-dense-100-30ep-seed0": ""}
    recipe = load_recipe(trial.words[0], trial.words[1:])
    check_recipe(recipe)
    assert (recipe.cut.params, recipe.cut.bytes, recipe.cut.budgets) == (None, 0.3, [0.1])
    assert places == {"resnet20-sparse-bytes30-30ep-seed0": "", "resnet20-sparse-bytes10-30ep-seed0": "bytes-0.1"}
    args.currency, args.method = "ms", ["sparse"]
    threads = ["--cut.threads=1"]
    ((trial, places),) = run.trials(args, threads).items()
    recipe = load_recipe(trial.words[0], trial.words[1:])
    check_recipe(recipe)
    dense = json.loads((tmp_path / "resnet20-batch1-threads1.json").read_text())["dense_ms"]
    assert dense > 0 and (recipe.cut.params, recipe.cut.ms, recipe.cut.budgets) == (None, 0.3 * dense, [0.1 * dense])
    assert run.trials(args, threads) == {trial: places}  # a second timing would give others
    assert list(places) == ["resnet20-sparse-ms30-30ep-seed0", "resnet20-sparse-ms10-30ep-seed0"]
    folder = tmp_path / trial.name
    for ms, place in enumerate((folder / place for place in places.values()), 1):
        place.mkdir()
        (place / "recipe.yaml").write_text(recipe_yaml(recipe))
        (place / "summary.json").write_text(json.dumps({"dense": {}, "compressed": {}, "stages": [{"cost": ms}]}))
    run.keep(folder, places, tmp_path)
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in places)
    assert (first["compressed"]["ms"], second["compressed"]["ms"]) == (1, 2)
    assert first["dense"]["ms"] == second["dense"]["ms"] == dense


def test_a_net_in_eight_bits_has_rows_of_its_own_beside_the_dense_one_in_float32(tmp_path):
    args = arguments(tmp_path, currency="bytes", together=False)
    args.method, args.kept = ["dense", "sparse"], [0.05]
    (dense, _), (trial, places) = run.trials(args, ["--quantize.images=100", "--design.block=4"]).items()
    assert load_recipe(dense.words[0], dense.words[1:]).quantize.images == 0
    assert list(places) == ["resnet20-sparse-int8-bytes5-30ep-seed0"]
    summary = json.loads((run.RESULTS / "resnet20-sparse-15-6ep-seed0.json").read_text())
    summary["stages"].append(summary["stages"][-1] | {"stage": "in eight bits", "accuracy": 12.5, "bytes": 54_321})
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(load_recipe(trial.words[0], trial.words[1:])))
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "rows").mkdir()
    run.keep(tmp_path, places, tmp_path / "rows")
    (row,) = table.rows(tmp_path / "rows")
    assert (row["values"], row["currency"], row["accuracy_mean"], row["bytes"]) == ("int8", "bytes", 12.5, 54_321)
    assert row["cost"] == 54_321 / summary["dense"]["bytes"]
    assert table.cost(row).endswith("% of the bytes, int8")


def test_rows_say_the_currency_and_the_cost_in_it(tmp_path):
    for name in ("resnet20-best-15-6ep-seed0", "resnet20-dense-100-6ep-seed0"):
        shutil.copy(run.RESULTS / f"{name}.json", tmp_path)
    shutil.copy(run.RESULTS / "resnet20-best-15-6ep-seed0.json", tmp_path / "resnet20-best-bytes20-6ep-seed0.json")
    rows = {(row["method"], row["currency"]): row for row in table.rows(tmp_path)}
    assert rows["best", "params"]["cost"] == pytest.approx(0.15, abs=1e-3)
    assert rows["best", "bytes"]["cost"] == pytest.approx(
        rows["best", "bytes"]["bytes"] / rows["dense", "params"]["bytes"], rel=1e-3
    )
    assert rows["dense", "params"]["cost"] == 1


def test_a_net_behind_the_threshold_is_named_so_and_others_are_not(tmp_path):
    for method in ("dense", "low-rank", "sparse", "best"):
        kept = 100 if method == "dense" else 15
        given = "resnet20-dense-100" if method == "dense" else "resnet20-best-15"
        summary = json.loads((run.RESULTS / f"{given}-6ep-seed0.json").read_text())
        if method != "sparse":
            summary["recipe"]["train"]["density"] = 0.14
        (tmp_path / f"resnet20-{method}-{kept}-6ep-seed0.json").write_text(json.dumps(summary))
    said = [table.trained(row) for row in table.rows(tmp_path)]
    assert said == ["dense", "best, train.density 0.14", "low-rank", "sparse"]


def test_the_unscaled_l1_is_as_strong_as_the_scaled_one_on_average():
    strength = run.mean_strength("digits_cnn", 0.01)
    model = splore.build("digits_cnn", 10)
    splore.decompose(model, splore.Design(rank=1))
    layers = [layer.S for layer in splore.decomposed_layers(model).values()]
    scaled = sum(0.01 * S.numel() / max(S.shape) ** 0.5 for S in layers)
    assert strength * sum(S.numel() for S in layers) == pytest.approx(scaled)
    words, _ = run.overrides("digits_cnn", "l1-unscaled", 0.02, ["--train.l1=0.01"])
    assert f"--train.l1={strength:.3g}" in words
