"""The command line: options, help, and recipes as files."""

import dataclasses
import importlib.metadata
import os
import re
import subprocess
import sys

import pytest
from command import SPLORE, splore

from splore import __version__
from splore.design.ranks import Budget, Energy
from splore.runs.recipe import (
    CutRecipe,
    DataRecipe,
    DesignRecipe,
    FinetuneRecipe,
    HardwareRecipe,
    QuantizeRecipe,
    Recipe,
    TrainRecipe,
)
from splore.runs.recipe_file import load_recipe, recipe_yaml

RECIPE_OPTIONS = [
    "--model", "--pretrained", "--weights", "--method", "--baseline", "--seed", "--evaluate_every",
    "--data.name", "--data.root", "--data.batch_size", "--data.download", "--data.workers",
    "--data.size", "--data.augment", "--data.validation", "--data.normalisation",
    "--design.rank", "--design.scheme", "--design.include", "--design.exclude", "--design.start", "--design.density",
    "--design.block",
    "--train.epochs", "--train.optimizer", "--train.lr", "--train.final_lr", "--train.momentum", "--train.weight_decay",
    "--train.warmup_epochs", "--train.label_smoothing",
    "--train.l1", "--train.l1_scaling", "--train.proximal", "--train.frobenius", "--train.nuclear",
    "--train.density",
    "--cut.params", "--cut.bytes", "--cut.macs", "--cut.ms", "--cut.batch", "--cut.threads", "--cut.budgets",
    "--cut.energy", "--cut.score", "--cut.ranks", "--cut.steps", "--cut.recalibrate_batches",
    "--finetune.epochs", "--finetune.lr", "--finetune.warmup_epochs", "--finetune.distill", "--finetune.temperature",
    "--finetune.teacher",
    "--quantize.images", "--quantize.ranges", "--quantize.epochs", "--quantize.lr",
    "--hardware.device", "--hardware.precision", "--hardware.compile", "--hardware.cuda_graphs",
    "--hardware.channels_last", "--hardware.parallel", "--hardware.threads", "--hardware.checkpoint_minutes",
    "--hardware.trackers", "--hardware.keep_checkpoints",
]  # fmt: skip
OPTIONS = {
    "run": {"--help", "--config", "--print_config", "--out", "--resume", "--seeds", "--jobs", *RECIPE_OPTIONS},
    "sweep": {"--help", "--config", "--out", "--resume", "--seeds", "--methods", "--kept", "--jobs", "--minutes",
              "--scheduler", *RECIPE_OPTIONS},
    "recipe": {"--help"},
    "inspect": {"--help", "--model", "--classes", "--image", "--json"},
    "evaluate": {"--help", "--model", "--device", *(name for name in RECIPE_OPTIONS if name.startswith("--data"))},
    "quantize": {"--help", "--out", "--model", *(name for name in RECIPE_OPTIONS if name.startswith(
                 ("--data", "--quantize", "--train", "--hardware")))},
    "compile": {"--help", "--out", "--image", "--batch", "--threads", "--model", "--layers", "--any_size"},
    "bench": {"--help", "--against", "--image", "--batch", "--threads", "--seconds", "--model", "--layers", "--json"},
    "export": {"--help", "--to", "--out", "--image", "--model"},
    "push": {"--help", "--private", "--revision"},
}  # fmt: skip

ODD = Recipe(
    model="timm:resnet18.a1_in1k",
    pretrained=True,
    weights="weights.pt",
    method="low-rank",
    baseline=False,
    seed=17,
    evaluate_every=3,
    data=DataRecipe("cifar100", "0123", 64, True, 0, 48, "mirror", 0.25, "net"),
    design=DesignRecipe(0.25, "spatial", ["re:layer[12]\\..*", "*"], ["fc", "null"], "random", 0.5, 4),
    train=TrainRecipe(7, "adamw", 1e-5, 1e-6, 0.0, 1e-10, 0.5, 0.1, 3.0, "none", False, 0.0, 1e-3, 0.25),
    cut=CutRecipe(None, 0.2, 0.3, 4.0, 3, 2, [0.5], 0.99, "relative", 0.5, 4, 0),
    finetune=FinetuneRecipe(5, 1e-4, 0.25, 0.5, 1e3, "teacher.pt"),
    quantize=QuantizeRecipe(64, "max", 2, 1e-3),
    hardware=HardwareRecipe("cpu", "bf16", True, True, False, "fsdp", 3, 1e-3, ["tensorboard", "wandb"], True),
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


@pytest.mark.parametrize("command", OPTIONS)
def test_help_names_every_option_and_explains_it(command, tmp_path):
    done = splore(command, "--help", folder=tmp_path)
    assert done.code == 0 and not done.err
    described = re.findall(r"^ +(?:-\w(?: \w+)?, )?(--[\w.]+)(.*(?:\n {10,}\S.*)*)", done.out, re.MULTILINE)
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


def test_what_needs_pytorch_says_so_where_it_is_missing():
    program = """
import sys
class Missing:
    def find_spec(self, name, *_):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name=name)
sys.meta_path.insert(0, Missing())
from splore.cli import main
main(["compile", "net.safetensors"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and done.stderr == (
        "splore: this needs PyTorch, and only programs (.splore) do without: pip install torch\n"
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_is_no_error(unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = subprocess.Popen([SPLORE, "recipe"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    command.stdout.close()
    assert command.communicate(timeout=240)[1] == b"" and command.returncode == 141


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
