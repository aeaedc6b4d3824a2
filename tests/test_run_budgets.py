"""Runs whose cut is to a budget in bytes, multiply-adds or time, and runs of several budgets, by the command line."""

import json

import pytest
from command import TINY, epochs, same_weights, splore

from splore.runs.branch import is_finished

WORDS = [*TINY, "--baseline=false", "--cut.params=null"]


def stages(out):
    return {row["stage"]: row for row in json.loads((out / "summary.json").read_text())["stages"]}


@pytest.mark.parametrize("steps", [1, 2])
def test_a_budget_of_bytes_is_met_by_the_run_s_file(tmp_path, steps):
    words = ["--cut.bytes=0.6", "--finetune.epochs=2", f"--cut.steps={steps}", "--out=out"]
    done = splore("run", *WORDS, *words, folder=tmp_path)
    assert done.code == 0, done
    rows = stages(tmp_path / "out")
    dense = splore(
        "run", *TINY, "--method=dense", "--train.epochs=1", "--finetune.epochs=0", "--out=d", folder=tmp_path
    )
    assert dense.code == 0, dense
    allowed = 0.6 * (tmp_path / "d" / "dense.safetensors").stat().st_size
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert 0.95 * allowed <= size <= allowed
    assert rows["after fine-tuning"]["currency"] == "bytes"
    assert rows["after fine-tuning"]["cost"] == pytest.approx(size, rel=0.01)
    assert "bytes" in done.out


def test_a_budget_of_bytes_is_that_of_the_file_in_eight_bits_where_the_run_ends_with_one(tmp_path):
    done = splore(
        "run", *WORDS, "--model=digits_cnn", "--cut.bytes=0.1", "--quantize.images=20", "--out=out", folder=tmp_path
    )
    assert done.code == 0, done
    rows = stages(tmp_path / "out")
    files = {name: (tmp_path / "out" / f"{name}.safetensors").stat().st_size for name in ("model", "quantized")}
    dense = json.loads((tmp_path / "out" / "summary.json").read_text())["dense"]["bytes"]
    assert rows["in eight bits"]["cost"] == files["quantized"]
    assert 0.97 * 0.1 * dense <= files["quantized"] <= 0.1 * dense < files["model"]


def test_a_budget_of_multiply_adds_is_met(tmp_path):
    done = splore("run", *WORDS, "--cut.macs=0.5", "--out=out", folder=tmp_path)
    assert done.code == 0, done
    assert 0.47 < stages(tmp_path / "out")["after fine-tuning"]["macs_kept"] <= 0.5


def test_a_budget_of_time_cuts_by_timings_and_says_what_it_missed_and_nothing_else(tmp_path):
    words = ["--cut.ms=50", "--cut.threads=1", "--out=out"]
    done = splore("run", *WORDS, *words, folder=tmp_path, env={"WARN": "of something else"})
    assert done.code == 0, done
    assert stages(tmp_path / "out")["after fine-tuning"]["currency"] == "ms"
    assert "cut.ms: the budget of 50 ms leaves room for more entries" in done.out
    assert "of something else" not in done.out


def test_several_budgets_take_one_training_and_each_is_what_a_run_of_its_own_gives(tmp_path):
    words = [*TINY, "--baseline=false", "--finetune.epochs=1"]
    several = splore("run", *words, "--cut.params=0.6", "--cut.budgets=[0.5]", "--out=several", folder=tmp_path)
    assert several.code == 0, several
    single = splore("run", *words, "--cut.params=0.5", "--out=single", folder=tmp_path)
    assert single.code == 0, single
    branch = tmp_path / "several" / "params-0.5"
    kept = {
        out: stages(out)["after fine-tuning"]["params"] for out in (tmp_path / "several", branch, tmp_path / "single")
    }
    assert kept[branch] == kept[tmp_path / "single"] < kept[tmp_path / "several"]
    assert stages(branch)["after the cut"]["loss"] == pytest.approx(
        stages(tmp_path / "single")["after the cut"]["loss"]
    )
    assert same_weights(branch / "trained.safetensors", tmp_path / "several" / "trained.safetensors") is None
    assert [stage for stage, _ in epochs(branch)] == ["train", "train", "finetune"]
    again = splore(
        "run", *words, "--cut.params=0.6", "--cut.budgets=[0.5]", "--out=several", "--resume", folder=tmp_path
    )
    assert again.code == 0 and "nothing is left to do" in again.out, again
    assert is_finished(tmp_path / "several")
    (branch / "summary.json").unlink()
    assert not is_finished(tmp_path / "several")
    resumed = splore(
        "run", *words, "--cut.params=0.6", "--cut.budgets=[0.5]", "--out=several", "--resume", folder=tmp_path
    )
    assert resumed.code == 0 and (branch / "summary.json").exists(), resumed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cut.bytes=0.1"], "give cut.params or cut.bytes and set the others to null"),
        (["--cut.params=null", "--cut.bytes=1.5"], "cut.bytes must be above 0 and at most 1, found 1.5"),
        (["--cut.params=null", "--cut.ms=0"], "cut.ms must be above 0, found 0"),
        (["--cut.budgets=[2]"], "found 2"),
        (["--cut.params=null", "--cut.budgets=[0.2]"], "cut.budgets are more of the budget that is set"),
        (["--cut.params=null", "--cut.macs=0.2", "--method=low-rank"], "low rank alone meets a budget by its ranks"),
    ],
)
def test_budgets_that_no_run_can_have_are_refused_before_any_work(tmp_path, words, said):
    splore("run", *TINY, *words, "--out=out", folder=tmp_path).refused(said, code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cut.params=null", "--cut.bytes=0.1"], "cut.bytes: a budget of"),
        (["--cut.params=null", "--cut.bytes=0.9", "--cut.budgets=[0.1]"], "cut.bytes: a budget of"),
        (["--cut.params=null", "--cut.bytes=0.1", "--method=sparse", "--quantize.images=20"], "cut.bytes: a budget of"),
        (["--cut.budgets=[0.05]"], "cut.params: a budget of 52 parameters"),
    ],
)
def test_budgets_that_no_cut_can_meet_are_refused_before_any_training(tmp_path, words, said):
    splore("run", *TINY, *words, "--out=out", folder=tmp_path).refused(said, "can't be met by cutting", code=1)
    assert not (tmp_path / "out").exists()
