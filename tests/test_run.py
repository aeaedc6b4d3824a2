"""Whole runs from the command line: what they write, by every method, and what they show."""

import json
import os
import re
import threading

import pytest
from command import TINY, Command, epochs, plain, same_weights, script, splore, tensors


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run to its end, with everything at its default: the folder, what was printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = splore("run", *TINY, "--out", "out", folder=folder)
    assert done.code == 0, done
    return folder / "out", done


def test_a_run_from_end_to_end_writes_what_it_says(finished):
    out, done = finished
    assert not done.err
    summary = json.loads((out / "summary.json").read_text())
    dense, compressed = summary["dense"], summary["compressed"]
    assert set(compressed) - set(dense) == {"params_kept", "macs_kept"}
    for part in (dense, compressed):
        assert {"accuracy", "params", "macs", "bytes"} <= set(part)
        assert 0 <= part["accuracy"] <= 100
    assert dense["params"] == 8 * 9 + 2 * 8 + 12 * 8 * 9 + 12 + 2 * 12 + 12 * 4 + 4
    assert dense["macs"] == 36 * 8 * 9 + 9 * 12 * 8 * 9 + 12 * 4
    assert compressed["params"] == int(0.6 * dense["params"])
    assert compressed["params_kept"] == pytest.approx(compressed["params"] / dense["params"])
    assert compressed["macs_kept"] == pytest.approx(compressed["macs"] / dense["macs"])
    assert compressed["bytes"] == (out / "model.safetensors").stat().st_size
    assert dense["bytes"] == (out / "dense.safetensors").stat().st_size
    assert [row["stage"] for row in summary["stages"]] == [
        "dense",
        "after training",
        "after the cut",
        "after fine-tuning",
    ]
    for row in summary["stages"]:
        assert f"{row['accuracy']:.2f} %" in done.out
    stages = [("dense", 4), ("train", 2), ("finetune", 2)]
    assert epochs(out) == [(stage, epoch) for stage, count in stages for epoch in range(1, count + 1)]
    assert not list(out.rglob("*.tmp")) and not (out / "checkpoints").exists()


def test_no_escape_sequence_and_no_return_when_the_output_is_no_terminal(finished):
    _, done = finished
    assert "\x1b" not in done.out and "\r" not in done.out
    assert len(done.out.splitlines()) < 40


def test_the_recipe_in_the_output_makes_the_same_run_again(finished, tmp_path):
    out, _ = finished
    done = splore("run", out / "recipe.yaml", "--out", "again", folder=tmp_path)
    assert done.code == 0, done
    same_weights(out / "model.safetensors", tmp_path / "again" / "model.safetensors")
    assert (tmp_path / "again" / "recipe.yaml").read_text() == (out / "recipe.yaml").read_text()


def test_inspect_shows_a_model_file_and_a_named_net(finished, tmp_path):
    file = finished[0] / "model.safetensors"
    summary = json.loads((finished[0] / "summary.json").read_text())["compressed"]
    shown = splore("inspect", file, "--model=tests_support:tiny", "--image=[1,6,6]", folder=tmp_path)
    assert shown.code == 0 and not shown.err
    assert re.search(r"conv2 .*12x8x3x3 .*channel", shown.out) and str(summary["params"]) in shown.out
    as_json = splore("inspect", file, "--model=tests_support:tiny", "--image=[1,6,6]", "--json", folder=tmp_path)
    price = json.loads(as_json.out)["compressed"]
    assert (price["params"], price["macs"]) == (summary["params"], summary["macs"])
    named = splore("inspect", "digits_cnn", "--classes=10", folder=tmp_path)
    assert named.code == 0 and "371.40 k" in named.out


def test_evaluate_finds_the_accuracy_that_the_run_found(finished, tmp_path):
    summary = json.loads((finished[0] / "summary.json").read_text())["compressed"]
    words = ["--data.name=tests_support:blobs", "--data.batch_size=7", "--data.workers=0", "--device=cpu"]
    done = splore("evaluate", finished[0] / "model.safetensors", "--model=tests_support:tiny", *words, folder=tmp_path)
    assert done.code == 0 and not done.err
    assert f"accuracy {summary['accuracy']:.2f} %" in done.out and "40 images" in done.out


ONE = ["--train.epochs=1", "--finetune.epochs=1"]


@pytest.mark.parametrize("method", ["dense", "low-rank", "sparse", "low-rank+sparse"])
def test_methods_run_and_meet_the_budget(method, tmp_path):
    words = [f"--method={method}", "--baseline=false", "--cut.ranks=keep"]
    done = splore("run", *TINY, *ONE, *words, "--out=out", folder=tmp_path)
    assert done.code == 0, done
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    if method == "dense":
        assert summary["dense"]["accuracy"] is not None and "compressed" not in summary
        assert (tmp_path / "out" / "dense.safetensors").exists()
        return
    assert summary["dense"]["accuracy"] is None and summary["dense"]["params"] == 1040
    assert summary["compressed"]["params"] <= 0.6 * 1040
    if method != "low-rank":
        assert summary["compressed"]["params"] == int(0.6 * 1040)
    shown = splore(
        "inspect", "out/model.safetensors", "--model=tests_support:tiny", "--image=[1,6,6]", "--json", folder=tmp_path
    )
    layer = next(layer for layer in json.loads(shown.out)["layers"] if layer["name"] == "conv2")
    assert (layer["rank"] == 0) == (method == "sparse")
    assert (layer["density"] is None) == (method == "low-rank")


def test_a_cut_by_energy_in_steps_of_ranks_too_with_distillation(tmp_path):
    words = ["--cut.params=null", "--cut.energy=0.7", "--cut.steps=2", "--cut.ranks=0.5", "--design.rank=2"]
    words += ["--finetune.distill=0.5", "--train.proximal=false", "--design.scheme=spatial", "--finetune.epochs=2"]
    done = splore("run", *TINY, "--train.epochs=1", *words, "--out=out", folder=tmp_path)
    assert done.code == 0, done
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["stages"]
    assert rows[2]["params"] < rows[1]["params"] and rows[3]["params"] == rows[2]["params"]
    kept = [
        line["kept"]
        for line in map(json.loads, (tmp_path / "out/metrics.jsonl").open())
        if line.get("stage") == "finetune"
    ]
    assert kept[0] > kept[1], "the second step of the cut cut nothing"


def test_a_budget_shared_by_ranks_and_entries(tmp_path):
    words = ["--design.rank=4", "--cut.params=0.3", "--train.nuclear=0.3"]
    done = splore("run", *TINY, *ONE, *words, "--out=out", folder=tmp_path)
    assert done.code == 0, done
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["stages"]
    assert rows[-1]["params"] == int(0.3 * 1040)
    trained, cut = (tensors(tmp_path / f"out/{name}.safetensors")["conv2.A"].shape[1] for name in ("trained", "cut"))
    assert trained == 4 > cut, "no rank was cut"
    assert re.search(r"^ranks of L from here on: \d in \d layers?", done.out, re.MULTILINE), done.out


def test_a_result_without_any_low_rank_part_is_said_to_be_sparse_only(tmp_path):
    plain = splore("run", *TINY, *ONE, "--cut.ranks=keep", "--out=plain", folder=tmp_path)
    strong = splore("run", *TINY, *ONE, "--cut.params=0.3", "--train.nuclear=1000", "--out=out", folder=tmp_path)
    assert plain.code == strong.code == 0, strong
    assert "sparse only" in strong.out and "sparse only" not in plain.out, strong.out


def test_without_fine_tuning_the_cut_is_the_end(tmp_path):
    done = splore("run", *TINY, "--train.epochs=1", "--finetune.epochs=0", "--out=out", folder=tmp_path)
    assert done.code == 0, done
    same_weights(tmp_path / "out/cut.safetensors", tmp_path / "out/model.safetensors")
    assert ("finetune", 1) not in epochs(tmp_path / "out")


def test_tensorboard_has_loss_accuracy_density_rank_and_energy(tmp_path):
    words = ["--hardware.trackers=[tensorboard]", "--train.epochs=2", "--finetune.epochs=1", "--cut.ranks=keep"]
    done = script("run", *TINY, *words, "--out=out", folder=tmp_path)
    assert done.code == 0 and not done.err, done
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars = {}
    for file in (tmp_path / "out").rglob("events.out.*"):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            scalars.setdefault(tag, []).extend(event.value for event in events.Scalars(tag))
    for stage, count in (("dense", 3), ("train", 2), ("finetune", 1)):
        for name in ("loss", "accuracy", "test_accuracy", "kept"):
            assert len(scalars[f"{stage}/{name}"]) == count, (stage, name, sorted(scalars))
    for layer in ("conv1", "conv2", "head"):
        assert scalars[f"rank/{layer}"] == [1, 1, 1]
        assert len(scalars[f"density/{layer}"]) == 3 and all(0 <= each <= 1 for each in scalars[f"density/{layer}"])
        assert len(scalars[f"energy/{layer}"]) == 3
    lines = [line for line in map(json.loads, (tmp_path / "out/metrics.jsonl").open()) if line.get("stage") == "train"]
    assert scalars["train/loss"] == pytest.approx([line["loss"] for line in lines])


def test_a_terminal_shows_the_progress_live(tmp_path):
    parent, child = os.openpty()
    seen = bytearray()

    def watch():
        try:
            while chunk := os.read(parent, 4096):
                seen.extend(chunk)
        except OSError:
            pass  # the other end is closed

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    words = [*TINY, "--train.epochs=1", "--finetune.epochs=1", "--baseline=false", "--out=out"]
    command = Command(["run", *words], tmp_path, env={"SLEEP": "0.5", "TERM": "xterm"}, terminal=os.ttyname(child))
    done = command.wait()
    os.close(child)
    watcher.join(10)
    os.close(parent)
    assert done.code == 0 and not done.err, done
    text = seen.decode()
    assert "\x1b[" in text, "nothing moved"
    shown = plain(text)
    assert re.search(r"train +epoch 1/1  loss \d\.\d+  acc", shown), "no line of the epoch"
    assert re.findall(r"(\d)/3", shown)[-1] == "3", "the bar does not end full"
    for part in (
        r"train +epoch 1/1",
        r"loss \d",
        r"acc \d+\.\d %",
        r"kept \d+\.\d+ %",
        r"\d+ img/s",
        r"-:--:--|\d:\d\d",
    ):
        assert re.search(part, shown), (part, shown)


def test_the_weight_decay_takes_s_where_no_l1_is_on_it(tmp_path):
    words = ["run", *TINY, "--baseline=false", "--cut.ranks=keep"]
    sizes = {}
    for l1 in (0.01, 0):
        for decay in (0, 0.5):
            out = tmp_path / f"{l1}-{decay}"
            done = splore(*words, f"--train.l1={l1}", f"--train.weight_decay={decay}", "--out", out, folder=tmp_path)
            assert done.code == 0, done
            for file in ("trained", "model"):
                sizes[l1, decay, file] = tensors(out / f"{file}.safetensors")["conv2.S.values"].abs().sum().item()
    assert sizes[0.01, 0, "trained"] == sizes[0.01, 0.5, "trained"]  # the l1's affair
    assert sizes[0.01, 0.5, "model"] < 0.9 * sizes[0.01, 0, "model"]
    assert sizes[0, 0.5, "trained"] < 0.9 * sizes[0, 0, "trained"]
