"""Several seeds of one recipe: the runs are what each would be alone, and no one's end is another's."""

import json
import os
import signal
from statistics import mean, stdev

import pytest
from command import TINY, Command, checkpoints, contents, same_weights, splore, until

RUN = ["run", *TINY, "--model=tests_support:unlucky", "--baseline=false", "--out=out"]
SHORT = ["--train.epochs=1", "--finetune.epochs=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two seeds side by side, to their end: the folder, what was printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = splore(*RUN, *SHORT, "--seeds", "0", "3", "--jobs=2", folder=folder)
    assert done.code == 0 and not done.err, done
    return folder / "out", done


def summary_of(out):
    return json.loads((out / "summary.json").read_text())


def test_each_seed_is_the_run_that_it_would_be_alone(finished, tmp_path):
    for seed in (0, 3):
        assert splore(*RUN, *SHORT, f"--seed={seed}", f"--out={seed}", folder=tmp_path).code == 0
        same_weights(tmp_path / str(seed) / "model.safetensors", finished[0] / f"seed-{seed}" / "model.safetensors")


def test_a_line_per_epoch_of_each_seed_and_logs_of_all_the_rest(finished):
    out, done = finished
    for seed in (0, 3):
        for stage in ("train", "finetune"):
            assert sum(line.startswith(f"seed {seed}  {stage}") for line in done.out.splitlines()) == 1
        log = (out / f"seed-{seed}.log").read_text()
        assert "after fine-tuning: " in log and "seed" not in log.split("files in")[0]
    assert "after fine-tuning: " not in done.out


def test_mean_and_standard_deviation_over_the_seeds(finished):
    out, done = finished
    whole = summary_of(out)
    each = [json.loads((out / f"seed-{seed}" / "summary.json").read_text()) for seed in (0, 3)]
    assert whole["seeds"] == {"0": each[0], "3": each[1]} and whole["failed"] == {}
    assert [stage["stage"] for stage in whole["stages"]] == ["after training", "after the cut", "after fine-tuning"]
    for number, stage in enumerate(whole["stages"]):
        values = [summary["stages"][number]["accuracy"] for summary in each]
        assert stage["n"] == 2
        assert stage["accuracy"] == {"mean": pytest.approx(mean(values)), "std": pytest.approx(stdev(values))}
        assert f"{mean(values):.2f} ± {stdev(values):.2f} % (2)" in done.out


def test_finished_seeds_are_left_alone_and_others_can_be_added(finished, tmp_path):
    out, done = finished
    before = contents(out)
    again = splore(*RUN, *SHORT, "--seeds", "0", "3", "--resume", folder=out.parent)
    assert again.code == 0 and again.out.strip() and again.out.strip() in done.out, again
    assert contents(out) == before
    splore(*RUN, *SHORT, "--seeds", "0", folder=out.parent).refused("already holds a run", "--resume", code=2)
    splore(*RUN, *SHORT, "--resume", folder=out.parent).refused("several seeds", "--seeds", code=2)
    splore(*RUN, *SHORT, "--seeds", "0", "--resume", "--train.lr=0.3", folder=out.parent).refused("train.lr", code=2)
    assert contents(out) == before


def test_a_seed_that_fails_does_not_lose_the_others(tmp_path):
    words = [*RUN, *SHORT, "--data.download=true", "--seeds", "1", "2"]
    done = splore(*words, folder=tmp_path, env={"UNLUCKY": "1"})
    done.refused("seed 1 failed", "no luck with this seed", "seed-1.log", "--resume", code=1)
    assert " % (1)" in done.out, "the table of the one that did not fail"
    whole = summary_of(tmp_path / "out")
    assert list(whole["seeds"]) == ["2"] and "no luck" in whole["failed"]["1"]
    assert whole["stages"][0]["accuracy"]["std"] is None
    before = contents(tmp_path / "out" / "seed-2")
    again = splore(*words, "--resume", folder=tmp_path)
    assert again.code == 0 and " % (2)" in again.out, again
    assert contents(tmp_path / "out" / "seed-2") == before
    assert summary_of(tmp_path / "out")["failed"] == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_all_stop_with_a_checkpoint_and_go_on(number, finished, tmp_path):
    words = [*RUN, *SHORT, "--train.epochs=2", "--seeds", "0", "3", "--jobs=2"]
    command = Command(words, tmp_path, env={"SLEEP": "0.3"})
    folders = [tmp_path / "out" / f"seed-{seed}" for seed in (0, 3)]
    until(lambda: all(checkpoints(folder) for folder in folders))
    os.kill(command.process.pid, number)
    done = command.wait()
    assert done.code == 130
    assert done.err == "splore: stopped; the same command with --resume continues the runs in out\n"
    assert not any((folder / "summary.json").exists() for folder in folders)
    again = splore(*words, "--resume", folder=tmp_path)
    assert again.code == 0 and " % (2)" in again.out, again
    for seed in (0, 3):
        assert "going on in stage" in (tmp_path / "out" / f"seed-{seed}.log").read_text()


def test_what_is_wrong_for_every_seed_leaves_nothing_behind(tmp_path):
    done = splore(*RUN, *SHORT, "--seeds", "0", "1", "--model=vgg91", folder=tmp_path)
    done.refused("'vgg19'", code=2)
    assert set(contents(tmp_path / "out")) <= {".lock"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds"], "seeds"),
        (["--seeds", "0", "1", "0"], "--seeds must differ, found 0 2 times"),
        (["--seeds", "0", "-1"], "--seeds must be at least 0, found -1"),
        (["--seeds", "0.5"], "seeds"),
        (["--seeds", "0", "1", "--jobs=0"], "--jobs must be at least 1"),
        (["--jobs=2"], "--seeds"),
        (["--seed=2", "--seeds", "0", "1"], "--seed and --seeds"),
        (["--seeds", "0", "--resume"], "no run to resume"),
        (["--seeds", "0", "--train.epochs=0"], "train.epochs must be at least 1"),
    ],
)
def test_seeds_that_cannot_be(words, said, tmp_path):
    splore(*RUN, *words, folder=tmp_path).refused(said, code=2)
    assert not (tmp_path / "out").exists()


def test_a_single_run_is_not_gone_on_with_as_one_of_several(tmp_path):
    assert splore(*RUN, *SHORT, "--finetune.epochs=0", folder=tmp_path).code == 0
    splore(*RUN, *SHORT, "--finetune.epochs=0", "--seeds", "0", "--resume", folder=tmp_path).refused(
        "single run", code=2
    )
