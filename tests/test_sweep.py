"""A sweep over seeds, methods and shares kept: equal terms, one table, stopped and gone on with as one."""

import json
import os
import signal
import time
from statistics import mean

import pytest
from command import HERE, TINY, Command, checkpoints, contents, epochs, splore, until

from splore.runs.recipe import CutRecipe, FinetuneRecipe, Recipe, TrainRecipe
from splore.runs.recipe_file import load_recipe, recipe_yaml
from splore.runs.sweep import trials_of

SWEEP = ["sweep", *TINY, "--train.epochs=1", "--finetune.epochs=1", "--cut.ranks=keep", "--out=out"]
COMPARED = ["--seeds", "0", "1", "--methods", "dense", "sparse", "--kept", "0.5"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two methods with two seeds each, to their end: the folder, what was printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = splore(*SWEEP, *COMPARED, "--jobs=2", folder=folder)
    assert done.code == 0 and not done.err, done
    return folder / "out", done


def summary_of(out):
    return json.loads((out / "summary.json").read_text())


def trial_recipes(recipe, tmp_path, *choice):
    """Each trial's recipe, as the run that it makes will read it."""
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_yaml(recipe))
    return {trial.name: load_recipe(trial.words[0], trial.words[1:]) for trial in trials_of(recipe, file, *choice)}


def test_all_methods_train_equally_long_and_only_what_is_asked_for_differs(tmp_path):
    recipe = Recipe(train=TrainRecipe(epochs=3), cut=CutRecipe(None, energy=0.9), finetune=FinetuneRecipe(epochs=2))
    found = trial_recipes(recipe, tmp_path, [4, 2], ["dense", "low-rank+sparse"], [0.3, 0.15])
    assert list(found) == [
        f"{name}-seed-{seed}" for seed in (4, 2) for name in ("dense-100", "low-rank+sparse-30", "low-rank+sparse-15")
    ]
    for name, each in found.items():
        trained = each.train.epochs + (each.finetune.epochs if each.method != "dense" else 0)
        assert trained == 5 and each.seed == int(name[-1])
        if each.method == "dense":
            assert each.cut == recipe.cut
        else:
            assert not each.baseline and each.finetune == recipe.finetune
            assert each.cut == CutRecipe(0.3 if "-30-" in name else 0.15)


def test_without_methods_and_shares_only_the_seed_differs(tmp_path):
    recipe = Recipe(finetune=FinetuneRecipe(distill=0.5))
    found = trial_recipes(recipe, tmp_path, [0, 7])
    assert found == {"seed-0": recipe, "seed-7": Recipe(seed=7, finetune=recipe.finetune)}


def test_those_that_learn_from_a_dense_net_train_their_own(tmp_path):
    recipe = Recipe(finetune=FinetuneRecipe(distill=0.5))
    assert all(each.baseline for each in trial_recipes(recipe, tmp_path, [0], ["dense", "sparse"]).values())
    recipe = Recipe(finetune=FinetuneRecipe(distill=0.5, teacher="dense.safetensors"))
    assert not trial_recipes(recipe, tmp_path, [0], ["dense", "sparse"])["sparse-seed-0"].baseline


def test_the_table_has_a_row_for_each_method_and_share(finished):
    out, done = finished
    whole = summary_of(out)
    assert set(whole["groups"]) == {"dense 100 %", "sparse 50 %"} and whole["failed"] == {}
    for group, name, part in (("dense 100 %", "dense-100", "dense"), ("sparse 50 %", "sparse-50", "compressed")):
        each = [json.loads((out / f"{name}-seed-{seed}" / "summary.json").read_text()) for seed in (0, 1)]
        assert [whole["runs"][f"{name}-seed-{seed}"] for seed in (0, 1)] == each
        accuracy = mean(summary[part]["accuracy"] for summary in each)
        row = next(line for line in done.out.splitlines() if line.startswith(f"| {group}"))
        assert f"{accuracy:.2f} ± " in row and " % (2)" in row
        assert whole["groups"][group][-1]["accuracy"]["mean"] == pytest.approx(accuracy)
    assert epochs(out / "dense-100-seed-0") == [("dense", 1), ("dense", 2)]
    assert epochs(out / "sparse-50-seed-1") == [("train", 1), ("finetune", 1)]
    assert sum(line.startswith("sparse-50-seed-1  finetune") for line in done.out.splitlines()) == 1


def test_what_is_finished_is_left_alone_and_more_can_be_added(finished):
    out, _ = finished
    before = contents(out)
    again = splore(*SWEEP, *COMPARED, "--resume", folder=out.parent)
    assert again.code == 0 and contents(out) == before
    splore(*SWEEP, *COMPARED, folder=out.parent).refused("already holds a run", "--resume", code=2)
    splore(*SWEEP, "--seeds", "0", "--resume", "--train.lr=0.3", folder=out.parent).refused("train.lr", code=2)
    splore("run", *SWEEP[1:], "--resume", folder=out.parent).refused("several seeds", "splore sweep", code=2)
    assert contents(out) == before
    more = splore(*SWEEP, *COMPARED, "0.7", "--resume", folder=out.parent)
    assert more.code == 0 and "| sparse 70 %" in more.out, more
    after = contents(out)
    assert all(after[name] == before[name] for name in before if name != "summary.json")


def test_after_its_minutes_it_stops_with_checkpoints(tmp_path):
    words = [*SWEEP, "--train.epochs=2", "--baseline=false", "--seeds", "0", "1", "--jobs=2"]
    done = splore(*words, "--minutes=0.15", folder=tmp_path, env={"SLEEP": "0.7"})
    assert done.code == 0
    assert done.err == "splore: stopped after 0.15 minutes; the same command with --resume continues the runs in out\n"
    for seed in (0, 1):
        assert not (tmp_path / f"out/seed-{seed}/summary.json").exists()
        log = (tmp_path / f"out/seed-{seed}.log").read_text()
        assert not checkpoints(tmp_path / f"out/seed-{seed}") or "stopped; the same command" in log
    again = splore(*words, "--resume", folder=tmp_path)
    assert again.code == 0 and " % (2)" in again.out, again


def test_asked_twice_it_ends_at_once(tmp_path):
    command = Command([*SWEEP, "--baseline=false", "--seeds", "0"], tmp_path, env={"SLEEP": "60"})
    until(lambda: (tmp_path / "out/seed-0/metrics.jsonl").exists())
    time.sleep(1)  # into the first step, which takes a minute
    begun = time.monotonic()
    for _ in range(2):
        os.kill(command.process.pid, signal.SIGINT)
        time.sleep(1)
    assert command.wait().code == 130
    assert time.monotonic() - begun < 30
    assert not list((tmp_path / "out").glob(".stop"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "dense", "spares"], "'sparse'"),
        (["--methods", "dense", "dense"], "--methods must differ, found dense 2 times"),
        (["--kept", "0.3", "1.3"], "cut.params must be above 0 and at most 1, found 1.3"),
        (["--kept", "much"], "--kept"),
        (["--seed=3"], "--seeds"),
        (["--scheduler=tcp://127.0.0.1:1", "--jobs=2"], "--jobs"),
        (["--minutes=soon"], "--minutes"),
        (["--out="], "--out"),
    ],
)
def test_sweeps_that_cannot_be(words, said, tmp_path):
    splore(*SWEEP, *words, folder=tmp_path).refused(said, code=2)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def cluster(monkeypatch):
    """A scheduler and two workers, each a process that makes one run at a time, where seed 1 has no luck."""
    distributed = pytest.importorskip("distributed")
    env = {"PYTHONPATH": str(HERE), "COLUMNS": "200", "UNLUCKY": "1", "SLEEP": "0.1"}
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None, env=env) as found:
        yield found.scheduler_address


def test_a_cluster_makes_the_runs_of_a_sweep(cluster, tmp_path):
    """Only on its workers is the net of seed 1 not to be built."""
    words = [*SWEEP, "--model=tests_support:unlucky", "--baseline=false", "--seeds", "1", "2"]
    done = splore(*words, f"--scheduler={cluster}", folder=tmp_path)
    done.refused("seed 1 failed", "no luck with this seed", "seed-1.log", "--resume", code=1)
    assert " % (1)" in done.out and sum(line.startswith("seed 2  ") for line in done.out.splitlines()) == 2
    before = contents(tmp_path / "out/seed-2")
    again = splore(*words, "--resume", folder=tmp_path)
    assert again.code == 0 and " % (2)" in again.out, again
    assert contents(tmp_path / "out/seed-2") == before


def test_asked_to_stop_the_runs_on_a_cluster_stop_with_checkpoints(cluster, tmp_path):
    words = [*SWEEP, "--baseline=false", "--train.epochs=200", "--seeds", "0", "3", f"--scheduler={cluster}"]
    command = Command(words, tmp_path)
    folders = [tmp_path / "out" / f"seed-{seed}" for seed in (0, 3)]
    until(lambda: all(checkpoints(folder) for folder in folders))
    os.kill(command.process.pid, signal.SIGINT)
    assert command.wait().code == 130
    for folder in folders:
        assert "stopped; the same command" in folder.with_suffix(".log").read_text()


def test_without_a_scheduler_at_its_address_nothing_is_written(tmp_path):
    pytest.importorskip("distributed")
    done = splore(*SWEEP, "--seeds", "0", "--scheduler=tcp://127.0.0.1:9", folder=tmp_path)
    assert done.code == 1 and "127.0.0.1:9" in done.err
    assert not (tmp_path / "out").exists()
