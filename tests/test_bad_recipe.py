"""Recipes and options that are wrong: said in one clear line, with exit code 2, before anything is written."""

import random

import pytest
from command import RUN, TINY, nothing_written, splore

WRONG_KEYS = {
    "train.lrr": "train.lr",
    "trian.lr": "train.lr",
    "train.energy": "cut.energy",
    "epochs": "train.epochs",
    "modle": "model",
}


@pytest.mark.parametrize("key", WRONG_KEYS)
def test_an_unknown_key_is_named_with_the_nearest_ones(key, tmp_path):
    splore(*RUN, f"--{key}=1", folder=tmp_path).refused(repr(key), WRONG_KEYS[key], code=2)
    section, _, name = key.rpartition(".")
    (tmp_path / "r.yaml").write_text(f"{section}:\n  {name}: 1\n" if section else f"{name}: 1\n")
    splore(*RUN, "r.yaml", folder=tmp_path).refused("r.yaml", repr(key), WRONG_KEYS[key], code=2)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- model\n- vgg19\n", "found a list"),
        (b"just words\n", "found a str"),
        (b"", "found nothing"),
        (b"train: [1, 2\n", "line"),
        (b"train:\n  epochs: 1\n bad: 2\n", "line 3"),
        (b"train:\n\tepochs: 1\n", "line 2"),
        (b"train: 3\n", "'train'"),
        (b"train:\n  lr: 0.1\ntrain:\n  lr: 0.2\n", "second time in line 3"),
        (bytes(random.Random(0).randrange(256) for _ in range(300)), "not a text file"),
        (b"\x00\x01\x02", "not YAML"),
    ],
)
def test_a_recipe_that_is_no_mapping(content, said, tmp_path):
    (tmp_path / "r.yaml").write_bytes(content)
    splore(*RUN, "r.yaml", folder=tmp_path).refused("r.yaml", said, code=2)
    splore("run", "--config=r.yaml", "--out=out", folder=tmp_path).refused("r.yaml", said, code=2)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("train.epochs=many", "train.epochs"),
        ("train.epochs=1.5", "train.epochs"),
        ("train.epochs=0", "at least 1, found 0"),
        ("train.lr=fast", "train.lr"),
        ("train.lr=-1", "train.lr must be above 0, found -1"),
        ("train.lr=.inf", "train.lr must be above 0"),
        ("train.final_lr=1", "train.final_lr must lie between 0 and train.lr (0.1), found 1"),
        ("train.momentum=2", "train.momentum must lie between 0 and 1"),
        ("train.label_smoothing=2", "train.label_smoothing"),
        ("seed=-1", "seed must be at least 0"),
        ("data.batch_size=1", "data.batch_size must be at least 2"),
        ("data.workers=-1", "data.workers"),
        ("hardware.threads=-2", "hardware.threads"),
        ("hardware.trackers=[tensorbord]", "hardware.trackers"),
        ("method=lowrank", "low-rank"),
        ("baseline=perhaps", "baseline"),
        ("design.rank={enrgy: 0.9}", "enrgy"),
        ("design.rank={energy: 9}", "above 0 and at most 1, found 9"),
        ("design.rank=-1", "negative"),
        ("design.rank=1.5", "fraction"),
        ("design.density=3", "density"),
        ("cut.params=0", "cut.params must be above 0"),
        ("cut.params=1.5", "at most 1"),
        ("cut.energy=0.5", "cut.params or cut.energy"),
        ("cut.ranks=1.5", "cut.ranks must be above 0 and at most 1, found 1.5"),
        ("cut.ranks=share", "shared"),
        ("train.nuclear=-1", "train.nuclear"),
        ("cut.steps=9", "cut.steps (9) can't exceed finetune.epochs (2)"),
        ("finetune.epochs=-1", "finetune.epochs"),
        ("hardware={parallel: fsdp, compile: true, device: cpu}", "hardware.parallel: fsdp"),
        ("hardware={parallel: fsdp, precision: fp16, device: cpu}", "hardware.precision: fp16"),
    ],
)
def test_values_that_no_run_can_have(option, said, tmp_path):
    splore(*RUN, f"--{option}", folder=tmp_path).refused(said, code=2)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("design.rank=500", "rank 500 would make"),
        ("design.rank={budget: 0.0001}", "rank budget"),
        ("cut.params=0.05", "cut.params: a budget of 52 parameters can't be met"),
        ("design.include=[no_such_layer]", "no_such_layer"),
        ("design.include=['re:(']", "regular expression"),
        ("model=tests_support:two_outputs", "4 classes, but the model gives outputs of shape (2,)"),
        ("data.name=folder", "root"),
    ],
)
def test_what_cannot_be_met_is_found_before_any_training(option, said, tmp_path):
    splore(*RUN, f"--{option}", folder=tmp_path).refused(said)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("model=vgg91", "'vgg19'"),
        ("model=torchvision:resnet51", "'resnet50'"),
        ("model=timm:resnet51", "resnet50"),
        ("model=nowhere:net", "nowhere"),
        ("model=tests_support:tinny", "'tiny'"),
        ("data.name=digts", "'digits'"),
        ("data.name=cifar", "'cifar10'"),
        ("data.name=tests_support:blob", "'blobs'"),
    ],
)
def test_names_that_nothing_has(option, said, tmp_path):
    splore(*RUN, f"--{option}", folder=tmp_path).refused(said, code=2)
    assert nothing_written(tmp_path)


def test_a_corrected_command_may_use_the_same_folder(tmp_path):
    splore(*RUN, "--data.name=digts", folder=tmp_path).refused("digits")
    assert splore(*RUN, "--train.epochs=1", "--finetune.epochs=0", folder=tmp_path).code == 0


def test_words_that_fit_no_command(tmp_path):
    splore("runn", folder=tmp_path).refused("'runn'", "run", code=2)
    splore(*RUN, "nowhere.yaml", folder=tmp_path).refused("nowhere.yaml", code=2)
    splore(*RUN, "--config", "nowhere.yaml", folder=tmp_path).refused("nowhere.yaml", code=2)
    splore("run", *TINY, folder=tmp_path).refused("out", code=2)
    splore(*RUN, "a.yaml", "b.yaml", folder=tmp_path).refused("a.yaml and b.yaml", code=2)
    splore(*RUN, "--train.epochs", folder=tmp_path).refused("train.epochs", code=2)
    splore("inspect", folder=tmp_path).refused("file_or_model", code=2)
    splore("inspect", "resnet2", folder=tmp_path).refused("'resnet20'", code=2)
    splore("inspect", "resnet20", "--image=[3]", folder=tmp_path).refused("--image", code=2)
    splore("inspect", "resnet20", "--image=[3,1,-1]", folder=tmp_path).refused("--image", code=2)
    splore("evaluate", "nowhere.safetensors", folder=tmp_path).refused("nowhere.safetensors")
