"""What a recipe chooses of a user's own images: size, augmentation, a split for validation, the normalisation."""

import json

import pytest
import torch
from command import TINY, splore
from images import CPU, equal, write_images

from splore.vision import open_data, trained_with


def batches(split):
    return list(split.epoch(0))


@pytest.mark.parametrize("side", [8, 120])
def test_images_held_back_are_not_learned_by_and_are_the_same_for_every_seed(tmp_path, side):
    write_images(tmp_path, (side, side), counts={"train": 10, "test": 3})
    whole = open_data("folder", str(tmp_path), 4, 0, CPU, workers=0, augment="none")
    some, other = (
        open_data("folder", str(tmp_path), 4, seed, CPU, workers=0, augment="none", validation=0.25) for seed in (0, 1)
    )
    assert whole.validation is None and whole.watched is whole.test
    assert (some.train.samples, some.validation.samples, some.test.samples) == (15, 5, 6)
    assert some.watched is some.validation and equal(batches(some.validation), batches(other.validation))
    assert equal(batches(some.test), batches(whole.test))

    def pixels(split):
        return {tuple(x.flatten()[:50].tolist()) for images, _ in batches(split) for x in images}

    learned, held = pixels(some.train), pixels(some.validation)
    assert learned | held == pixels(whole.train) and not learned & held and len(learned) == 15


@pytest.mark.parametrize("share", [0.01, 0.999])
def test_a_share_that_leaves_nothing_is_refused(tmp_path, share):
    write_images(tmp_path)
    with pytest.raises(ValueError, match="for validation holds"):
        open_data("folder", str(tmp_path), 4, 0, CPU, workers=0, validation=share)


def test_small_images_of_a_folder_can_be_brought_to_a_size(tmp_path):
    write_images(tmp_path, (20, 30))
    data = open_data("folder", str(tmp_path), 4, 0, CPU, workers=0, size=64)
    assert data.image_shape == (3, 64, 64) and batches(data.train)[0][0].shape == (4, 3, 64, 64)
    assert batches(data.test)[0][0].shape == (4, 3, 64, 64)
    assert data.preprocessing.size == (64, 64) and data.preprocessing.shorter_side == 73
    with pytest.raises(ValueError, match="a size holds for folders"):
        open_data("digits", None, 4, 0, CPU, size=64)


@pytest.mark.parametrize("side", [8, 120])
def test_each_way_of_augmenting_varies_what_it_says(tmp_path, side):
    write_images(tmp_path, (side, side))

    def images(way):
        data = open_data("folder", str(tmp_path), 12, 0, CPU, workers=0, augment=way, size=None)
        order = torch.cat([y for _, y in data.train.epoch(0)])
        return torch.cat([x for x, _ in data.train.epoch(0)]), order

    plain, order = images("none")
    for way in ("mirror", "shift", "shift+mirror", "usual", *(["randaugment"] if side == 120 else [])):
        varied, again = images(way)
        assert torch.equal(order, again)  # of labels, for the order of samples does not depend on the way
        same = (varied == plain).flatten(1).all(1)
        mirrored = (varied == plain.flip(3)).flatten(1).all(1)
        if way == "mirror":
            assert (same | mirrored).all() and same.any() and mirrored.any()
        else:
            assert not (same | mirrored).all()


def test_what_images_in_memory_or_of_ones_own_cannot_do_is_refused(tmp_path):
    write_images(tmp_path)
    with pytest.raises(ValueError, match="randaugment holds for folders of larger images"):
        open_data("folder", str(tmp_path), 4, 0, CPU, workers=0, augment="randaugment")
    with pytest.raises(ValueError, match="augments and sizes its images itself"):
        open_data("examples.own:stripes", None, 4, 0, CPU, workers=0, augment="none")


@pytest.mark.parametrize("side", [8, 300])
def test_the_normalisation_is_that_of_the_net_where_it_is_asked_for(tmp_path, side):
    write_images(tmp_path, (side, side))
    trained = trained_with("timm:vit_tiny_patch16_224")
    assert trained.mean == trained.deviation == (0.5, 0.5, 0.5) and trained.size == (224, 224)
    data = open_data("folder", str(tmp_path), 4, 0, CPU, workers=0, trained=trained)
    usual = open_data("folder", str(tmp_path), 4, 0, CPU, workers=0)
    assert data.preprocessing.mean == pytest.approx((0.5, 0.5, 0.5))
    ours = torch.cat([x for x, _ in data.test.epoch(0)])
    assert -1 <= ours.min() < -0.9 and 0.9 < ours.max() <= 1
    if side == 8:
        mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        theirs = torch.cat([x for x, _ in usual.test.epoch(0)])
        torch.testing.assert_close(ours, (theirs * deviation + mean - 0.5) / 0.5, rtol=1e-4, atol=1e-4)


def test_libraries_say_how_their_nets_were_trained_and_others_do_not():
    assert trained_with("torchvision:resnet50").shorter_side == 232
    assert trained_with("timm:efficientnet_b3").size == (288, 288)
    for source in ("resnet20", "timm:nothing", "torchvision:nothing", "examples.own:net"):
        assert trained_with(source) is None


@pytest.mark.slow
def test_a_run_by_adamw_on_images_of_ones_own_watches_those_held_back_and_is_evaluated_as_it_was_trained(tmp_path):
    write_images(tmp_path / "images", (40, 40), counts={"train": 12, "test": 4})
    words = [
        *TINY, "--data.name=folder", f"--data.root={tmp_path / 'images'}", "--data.batch_size=8", "--data.workers=0",
        "--model=timm:test_vit", "--data.size=160", "--data.normalisation=net", "--data.augment=mirror",
        "--data.validation=0.25", "--train.optimizer=adamw", "--train.lr=0.001", "--finetune.lr=0.001",
    ]  # fmt: skip
    done = splore("run", *words, "--baseline=false", "--out=out", folder=tmp_path)
    assert done.code == 0, done
    stages = json.loads((tmp_path / "out/summary.json").read_text())["stages"]
    last = {row["stage"]: row for row in stages}["after fine-tuning"]
    done = splore(
        "evaluate", "out/model.safetensors", "--data.name=folder", f"--data.root={tmp_path / 'images'}",
        "--data.workers=0", "--device=cpu", folder=tmp_path,
    )  # fmt: skip
    assert f"accuracy {last['accuracy']:.2f} %" in done.out and f"loss {last['loss']:.4f}, 8 images" in done.out, done


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("train.epochs=many", "train.epochs: expected a whole number, found many"),
        ("train.lr=fast", "train.lr: expected a number, found fast"),
        ("baseline=perhaps", "baseline: expected true or false, found perhaps"),
        ("method=lowrank", "method: expected dense, low-rank, sparse or low-rank+sparse, found lowrank"),
        ("data.workers=[1]", "data.workers: expected a whole number or null, found [1]"),
        (
            "design.rank={enrgy: 0.9}",
            "design.rank: expected a whole number, number, {energy: number} or {budget: number}",
        ),
        ("data.validation=1", "data.validation must be at least 0 and below 1, found 1"),
        ("data.size=4", "data.size must be at least 8, found 4"),
        (
            "data.normalisation=net",
            "data.normalisation: net holds for nets whose training timm or torchvision describe",
        ),
    ],
)
def test_a_wrong_value_is_said_in_the_words_of_the_table_of_keys(option, said, tmp_path):
    splore("run", "--out=out", f"--{option}", folder=tmp_path).refused(said)
