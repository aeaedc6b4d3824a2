"""Runs that start from weights on disk, by the command line."""

import json

import pytest
import torch
from command import TINY, splore, tensors


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """The folder of a dense run, whose weights are to start from."""
    folder = tmp_path_factory.mktemp("dense")
    done = splore(
        "run", *TINY, "--method=dense", "--finetune.epochs=0", "--train.epochs=6", "--out=dense", folder=folder
    )
    assert done.code == 0, done
    return folder / "dense"


def stages(out):
    return {row["stage"]: row for row in json.loads((out / "summary.json").read_text())["stages"]}


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
@pytest.mark.parametrize("density", [1.0, 0.1])
def test_a_run_from_weights_on_disk_says_what_it_was_given_and_meets_its_budget(dense, tmp_path, kind, density):
    weights = dense / "dense.safetensors"
    if kind == "torch":
        state = {f"module.{name}": value for name, value in tensors(weights).items()}
        weights = tmp_path / "weights.pt"
        torch.save({"state_dict": state, "epoch": 6}, weights)
    done = splore(
        "run", *TINY, f"--weights={weights}", "--baseline=false", f"--design.density={density}", "--train.l1=0",
        "--train.lr=0.01", "--finetune.lr=0.01", "--out=out", folder=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done
    rows, trained = stages(tmp_path / "out"), stages(dense)["dense"]
    assert list(rows) == ["as given", "as decomposed", "after training", "after the cut", "after fine-tuning"]
    assert rows["as given"]["loss"] == pytest.approx(trained["loss"], rel=1e-4)
    if density == 1:
        assert rows["as decomposed"]["loss"] == pytest.approx(trained["loss"], rel=1e-3)
    else:
        assert rows["as decomposed"]["loss"] > trained["loss"]
    assert rows["after fine-tuning"]["params"] == int(0.6 * trained["params"])
    assert "as decomposed" in done.out


def test_a_budget_that_is_missed_is_said(dense, tmp_path):
    done = splore(
        "run", *TINY, f"--weights={dense / 'dense.safetensors'}", "--baseline=false", "--train.l1=10",
        "--cut.params=0.9", "--cut.ranks=keep", "--out=out", folder=tmp_path,
    )  # fmt: skip
    assert done.code == 0 and "cut.params: the budget of" in done.out and "the net holds" in done.out, done


def test_weights_that_are_missing_unreadable_or_of_another_net_are_refused(dense, tmp_path):
    (tmp_path / "text.pt").write_text("no weights")
    torch.save({"layer.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, said in {
        "none.pt": "no file of weights",
        "text.pt": "can't be read as weights of torch",
        "other.pt": "don't fit",
        "list.pt": "expected a state dict",
    }.items():
        splore("run", *TINY, f"--weights={name}", "--out=out", folder=tmp_path).refused(said)
        assert not (tmp_path / "out").exists()


def test_a_teacher_on_disk_teaches_as_the_baseline_does(tmp_path):
    words = ("run", *TINY, "--finetune.distill=0.5")
    done = splore(*words, "--out=own", folder=tmp_path)
    assert done.code == 0 and "teacher" not in done.out, done
    taught = ("--baseline=false", "--finetune.teacher=own/dense.safetensors")
    done = splore(*words, *taught, "--out=given", folder=tmp_path)
    assert done.code == 0, done
    accuracy = stages(tmp_path / "own")["dense"]["accuracy"]
    assert f"teacher: {accuracy:.2f} % on" in done.out
    own, given = stages(tmp_path / "own"), stages(tmp_path / "given")
    assert list(given) == ["after training", "after the cut", "after fine-tuning"]
    assert all(given[name]["loss"] == pytest.approx(own[name]["loss"], rel=1e-4) for name in given)


def test_a_teacher_that_could_not_teach_is_refused(dense, tmp_path):
    state = tensors(dense / "dense.safetensors")
    last = list(state)[-1]
    torch.save(state | {last: torch.zeros(7)}, tmp_path / "classes.pt")
    for words, said in {
        ("--finetune.distill=0.5", "--baseline=false"): "set baseline: true, or finetune.teacher",
        ("--finetune.teacher=none.pt",): "set finetune.distill above 0",
        ("--finetune.distill=0.5", "--finetune.teacher=none.pt"): "no file of weights",
        ("--finetune.distill=0.5", "--finetune.teacher=classes.pt"): "expected all to fit",
    }.items():
        splore("run", *TINY, *words, "--out=out", folder=tmp_path).refused(said)
        assert not (tmp_path / "out").exists()
