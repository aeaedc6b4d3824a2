import dataclasses
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import threading

import pytest
from command import TINY, Command, epochs, plain, same_weights, script, splore, tensors

from splore import __version__
from splore.design.ranks import Budget, Energy
from splore.runs.recipe import (
    CutRecipe,
    DataRecipe,
    DesignRecipe,
    FinetuneRecipe,
    HardwareRecipe,
    Recipe,
    TrainRecipe,
)
from splore.runs.recipe_file import load_recipe, recipe_yaml

RECIPE_OPTIONS = [
    "--model", "--pretrained", "--method", "--baseline", "--seed", "--evaluate_every",
    "--data.name", "--data.root", "--data.batch_size", "--data.download", "--data.workers",
    "--design.rank", "--design.scheme", "--design.include", "--design.exclude", "--design.start", "--design.density",
    "--train.epochs", "--train.lr", "--train.final_lr", "--train.momentum", "--train.weight_decay",
    "--train.warmup_epochs", "--train.label_smoothing",
    "--train.l1", "--train.l1_scaling", "--train.proximal", "--train.frobenius", "--train.nuclear",
    "--cut.params", "--cut.energy", "--cut.score", "--cut.ranks", "--cut.steps", "--cut.recalibrate_batches",
    "--finetune.epochs", "--finetune.lr", "--finetune.warmup_epochs", "--finetune.distill", "--finetune.temperature",
    "--hardware.device", "--hardware.precision", "--hardware.compile", "--hardware.channels_last",
    "--hardware.parallel", "--hardware.threads", "--hardware.checkpoint_minutes", "--hardware.trackers",
    "--hardware.keep_checkpoints",
]  # fmt: skip
OPTIONS = {
    "run": {"--help", "--config", "--print_config", "--out", "--resume", "--seeds", "--jobs", *RECIPE_OPTIONS},
    "sweep": {"--help", "--config", "--out", "--resume", "--seeds", "--methods", "--kept", "--jobs", "--minutes",
              "--scheduler", *RECIPE_OPTIONS},
    "recipe": {"--help"},
    "inspect": {"--help", "--model", "--classes", "--image", "--json"},
    "evaluate": {"--help", "--model", "--device", "--data.name", "--data.root", "--data.batch_size", "--data.download",
                 "--data.workers"},
}  # fmt: skip

ODD = Recipe(
    model="timm:resnet18.a1_in1k",
    pretrained=True,
    method="low-rank",
    baseline=False,
    seed=17,
    evaluate_every=3,
    data=DataRecipe("cifar100", "0123", 64, True, 0),
    design=DesignRecipe(0.25, "spatial", ["re:layer[12]\\..*", "*"], ["fc", "null"], "random", 0.5),
    train=TrainRecipe(7, 1e-5, 1e-6, 0.0, 1e-10, 0.5, 0.1, 3.0, "none", False, 0.0, 1e-3),
    cut=CutRecipe(None, 0.99, "relative", 0.5, 4, 0),
    finetune=FinetuneRecipe(5, 1e-4, 0.25, 0.5, 1e3),
    hardware=HardwareRecipe("cpu", "bf16", True, False, "fsdp", 3, 1e-3, ["tensorboard", "wandb"], True),
)


def leaves(value, name=""):
    if not dataclasses.is_dataclass(value) or isinstance(value, Energy | Budget):
        return {name: value}
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {
        key: leaf for each, part in fields.items() for key, leaf in leaves(part, f"{name}.{each}".strip(".")).items()
    }


def read(text, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return load_recipe(file)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run to its end, with everything at its default: the folder, what was printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = splore("run", *TINY, "--out", "out", folder=folder)
    assert done.code == 0, done
    return folder / "out", done


@pytest.mark.parametrize("command", OPTIONS)
def test_help_names_every_option_and_explains_it(command, tmp_path):
    done = splore(command, "--help", folder=tmp_path)
    assert done.code == 0 and not done.err
    described = re.findall(r"^ +(?:-h, )?(--[\w.]+)(.*(?:\n {10,}\S.*)*)", done.out, re.MULTILINE)
    assert {name for name, _ in described} == OPTIONS[command]
    for name, text in described:
        assert len(re.findall(r"[a-z]{2,}", text.replace(name, ""))) >= 3, (name, text)


def test_the_version_is_that_of_the_package(tmp_path):
    done = splore("--version", folder=tmp_path)
    assert (done.code, done.out) == (0, f"splore {importlib.metadata.version('splore')}\n")
    assert done.out.split()[1] == __version__


@pytest.mark.parametrize("at", range(5))
def test_a_recipe_stands_anywhere_among_the_options(at, tmp_path):
    (tmp_path / "r.yaml").write_text("train:\n  lr: 0.3\n  l1: 0.5\n")
    options = ["--train.lr=0.2", "--cut.steps", "2", "--resume", "--seeds", "0", "1"]
    place = [0, 1, 3, 4, 7][at]
    done = splore("run", *options[:place], "r.yaml", *options[place:], "--print_config", folder=tmp_path)
    assert done.code == 0 and not done.err, done
    recipe = read(done.out, tmp_path)
    assert (recipe.train.lr, recipe.train.l1, recipe.cut.steps) == (0.2, 0.5, 2)


def test_parts_of_keys_and_whole_sections_are_options_too(tmp_path):
    words = ["--design.rank.energy=0.9", "--design.exclude+=fc", "--cut={steps: 3, params: 0.2}", "--cut.steps=2"]
    recipe = read(splore("run", *words, "--print_config", folder=tmp_path).out, tmp_path)
    assert recipe == Recipe(design=DesignRecipe(Energy(0.9), exclude=["fc"]), cut=CutRecipe(params=0.2, steps=2))


def test_every_key_of_a_recipe_is_an_option():
    assert {f"--{key}" for key in leaves(Recipe())} == set(RECIPE_OPTIONS)


def test_usage_when_nothing_is_asked(tmp_path):
    asked, nothing = splore("--help", folder=tmp_path), splore(folder=tmp_path)
    assert (asked.code, nothing.code) == (0, 2)
    for command in OPTIONS:
        assert f"splore {command}" in asked.out and f"splore {command}" in nothing.out


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), ([], 2), (["runn"], 2)])
def test_help_and_mistakes_are_answered_without_pytorch(words, code):
    program = f"""
import sys
from splore.cli import main
try:
    main({words})
except SystemExit as end:
    sys.exit(100 if "torch" in sys.modules else end.code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done


def test_the_printed_recipe_is_the_default_one_with_every_key_explained(tmp_path):
    done = splore("recipe", folder=tmp_path)
    assert done.code == 0 and not done.err
    assert read(done.out, tmp_path) == Recipe()
    lines = done.out.splitlines()
    for key in leaves(Recipe()):
        at = [i for i, line in enumerate(lines) if line.strip().startswith(key.rpartition(".")[2] + ":")]
        assert at and all(lines[i - 1].lstrip().startswith("#") for i in at), key


def test_every_key_survives_the_way_through_a_file(tmp_path):
    ordinary, odd = leaves(Recipe()), leaves(ODD)
    assert [key for key in ordinary if ordinary[key] == odd[key]] == []  # else this would test nothing of that key
    assert leaves(read(recipe_yaml(ODD), tmp_path)) == odd


@pytest.mark.parametrize("rank", [0, 3, 0.5, Energy(0.9), Budget(0.25)])
def test_every_kind_of_rank_survives_the_way_through_a_file(rank, tmp_path):
    recipe = Recipe(design=DesignRecipe(rank))
    again = read(recipe_yaml(recipe), tmp_path)
    assert again == recipe and type(again.design.rank) is type(rank)


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
    words = [*TINY, "--train.epochs=1", "--finetune.epochs=0", "--baseline=false", "--out=out"]
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
        r"params \d+\.\d+ % of dense",
        r"\d+ img/s",
        r"-:--:--|\d:\d\d",
    ):
        assert re.search(part, shown), (part, shown)
