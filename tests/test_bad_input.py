"""Data, folders, files and runs that go wrong: said in one clear line, with a non-zero exit, and nothing is lost."""

import json
import os

import pytest
import torch
from command import RUN, TINY, Command, checkpoints, contents, nothing_written, same_weights, splore
from PIL import Image
from safetensors.torch import save_file
from tests_support import blobs, tiny

from splore import Design, decompose, save
from splore.vision import build


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    assert splore(*RUN, "--train.epochs=1", "--finetune.epochs=1", folder=folder).code == 0
    return folder / "out"


def images(root, side=8, count=3):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("L", (side, side), 40 * i).save(folder / f"{i}.png")


FOLDER = [*RUN, "--data.name=folder", "--data.root=images", "--model=digits_cnn", "--train.epochs=1"]


def test_a_data_folder_that_is_missing_or_empty(tmp_path):
    splore(*FOLDER, folder=tmp_path).refused("images", "train/<class>/<image>")
    (tmp_path / "images").mkdir()
    splore(*FOLDER, folder=tmp_path).refused("images", "train")
    (tmp_path / "images" / "train").mkdir()
    (tmp_path / "images" / "test").mkdir()
    splore(*FOLDER, folder=tmp_path).refused("images/train", "class")
    (tmp_path / "images" / "train" / "cat").mkdir()
    splore(*FOLDER, folder=tmp_path).refused("images/train/cat")
    splore(*RUN, "--data.name=cifar10", "--data.root=images/test", folder=tmp_path).refused("cifar10", "download")
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("side", [8, 120])
def test_an_unreadable_image_is_named(side, tmp_path):
    """A small one when it is decoded at the start, a large one in the middle of the training, by a worker."""
    images(tmp_path / "images", side)
    broken = tmp_path / "images" / "train" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:45])
    words = [*FOLDER, "--data.batch_size=4", "--data.workers=1"]
    if side == 120:
        words += ["--model=tests_support:colour", "--baseline=false"]
    splore(*words, folder=tmp_path).refused("images/train/dog/1.png", code=1)
    assert broken.stat().st_size == 45


def test_a_folder_that_holds_something_is_left_alone(finished, tmp_path):
    before = contents(finished)
    done = splore("run", *TINY, "--out", finished, folder=tmp_path)
    done.refused(finished, "already holds a run", "--resume", code=2)
    assert contents(finished) == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years")
    splore(*RUN, folder=tmp_path).refused("not empty", code=2)
    splore(*RUN, "--resume", folder=tmp_path).refused("no run to resume", code=2)
    assert contents(tmp_path / "out") == {"thesis.txt": b"years"}
    splore("run", *TINY, "--out=out/thesis.txt", folder=tmp_path).refused("is a file", code=2)
    splore("run", *TINY, "--out=out/thesis.txt/more", folder=tmp_path).refused("thesis.txt is a file")
    assert contents(tmp_path / "out") == {"thesis.txt": b"years"}


def test_a_folder_without_permission_to_write(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    (tmp_path / "work").mkdir()
    words = ["run", *TINY, "--out", closed / "out"]
    for folder in (tmp_path, *tmp_path.parents):
        if os.stat(folder).st_uid == os.getuid() and os.geteuid() == 0:
            os.chmod(folder, os.stat(folder).st_mode | 0o011)
    closed.chmod(0o555)
    try:
        splore(*words, folder=tmp_path / "work", nobody=True).refused(closed)
    finally:
        closed.chmod(0o755)
    assert not list(closed.iterdir())


def test_model_files_that_are_truncated_altered_or_foreign(finished, tmp_path):
    whole = (finished / "model.safetensors").read_bytes()
    middle = len(whole) // 2
    files = {
        "truncated": whole[:-10],
        "header only": whole[:40],
        "empty": b"",
        "altered": whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:],
        "altered header": whole.replace(b"splore.header", b"splore.heades", 1),
        "pickle": b"\x80\x04\x95" + whole[:middle],
    }
    torch.save({"weight": torch.ones(3)}, tmp_path / "torch.safetensors")
    save_file({"weight": torch.ones(3)}, tmp_path / "foreign.safetensors")
    for name, content in files.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    for name in (*files, "torch", "foreign"):
        file = tmp_path / f"{name}.safetensors"
        before = file.read_bytes()
        for command in (["inspect", file], ["evaluate", file, "--device=cpu"]):
            splore(*command, folder=tmp_path).refused(file, code=1)
        assert file.read_bytes() == before


def test_a_model_file_of_other_data_or_another_net(finished, tmp_path):
    file, net = finished / "model.safetensors", "--model=tests_support:tiny"
    splore("evaluate", file, "--data.name=tests_support:blobs", folder=tmp_path).refused(
        "--model=tests_support:tiny", code=2
    )
    splore("evaluate", file, net, "--data.name=digits", folder=tmp_path).refused("10 classes", "(4,)", code=1)
    splore("inspect", file, "--model=tests_support:plain", folder=tmp_path).refused("another network", code=1)
    model = build("digits_cnn", 7, 1)
    decompose(model, Design(rank=1))
    save(model, tmp_path / "seven.safetensors")
    splore("evaluate", "seven.safetensors", folder=tmp_path).refused("10 classes", "(7,)", code=1)


def test_a_loss_that_explodes_stops_and_leaves_the_last_good_checkpoint(tmp_path):
    words = [*RUN, "--train.epochs=6", "--train.lr=1e30", "--train.momentum=0", "--train.warmup_epochs=0"]
    done = splore(*words, folder=tmp_path)
    done.refused("NaN or infinite", "lower the learning rate", "stage dense, epoch 1", "no checkpoint yet", code=1)
    assert not checkpoints(tmp_path / "out")


def test_a_loss_that_becomes_nan_later_keeps_the_checkpoint_before(tmp_path):
    # The 3 steps of the first epoch and the 2 batches of its evaluation are fine, and what follows is not.
    done = splore(*RUN, "--train.epochs=3", folder=tmp_path, env={"NAN_AT": "7"})
    (last,) = checkpoints(tmp_path / "out")
    done.refused("NaN or infinite", "stage dense, epoch 2", last.relative_to(tmp_path), "is kept", code=1)
    state = torch.load(last, weights_only=True)
    assert (state["stage"], state["epoch"]) == ("dense", 1)
    assert all(value.isfinite().all() for value in state["model"].values())
    again = splore(*RUN, "--train.epochs=3", "--resume", folder=tmp_path)
    assert again.code == 0, again
    assert splore(*RUN, "--train.epochs=3", folder=tmp_path / "undisturbed").code == 0
    same_weights(tmp_path / "out/model.safetensors", tmp_path / "undisturbed/out/model.safetensors")


def test_a_full_disk_leaves_what_was_whole(finished, tmp_path):
    """The largest file may have 12 kB: the first checkpoint does not fit any more."""
    words = [*RUN, "--train.epochs=1", "--finetune.epochs=1"]
    done = splore(*words, folder=tmp_path, file_limit=12_000)
    done.refused("checkpoint could not be written", "File too large", "out/checkpoints/000000.pt", code=1)
    assert not list((tmp_path / "out" / "checkpoints").iterdir())
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert splore(*words, "--resume", folder=tmp_path).code == 0
    same_weights(tmp_path / "out/model.safetensors", finished / "model.safetensors")


def test_no_room_for_a_model_file_or_the_journal(tmp_path):
    words = ["--model=digits_cnn", "--train.epochs=1", "--finetune.epochs=0", "--baseline=false"]
    for limit, said in ((500, "recipe.yaml"), (20_000, "trained.safetensors")):
        done = splore("run", *TINY, *words, f"--out={limit}", folder=tmp_path, file_limit=limit)
        done.refused("File too large", said, code=1)
        assert not (tmp_path / str(limit) / said).exists()


def test_a_user_set_that_gives_nonsense(tmp_path):
    splore(*RUN, "--data.name=tests_support:tiny", folder=tmp_path).refused("tests_support:tiny", "num_classes")
    splore(*RUN, "--data.name=tests_support:two_outputs", folder=tmp_path).refused("must return two data sets")
    assert nothing_written(tmp_path)


def test_two_processes_do_not_write_one_run(tmp_path):
    words = [*RUN, "--train.epochs=1", "--finetune.epochs=0", "--baseline=false"]
    slow = Command(words, tmp_path, env={"SLEEP": "0.4"})
    while not (tmp_path / "out" / "recipe.yaml").exists():
        assert slow.process.is_alive()
    splore(*words, "--resume", folder=tmp_path).refused("another process is writing", code=2)
    splore(*words, folder=tmp_path).refused("already holds a run", code=2)
    assert slow.wait().code == 0
    assert "compressed" in json.loads((tmp_path / "out" / "summary.json").read_text())


def test_a_mistake_within_the_program_shows_its_traceback(tmp_path):
    """What no user can be blamed for is not dressed up as a message."""
    done = splore(*RUN, "--model=tests_support:mistaken", folder=tmp_path)
    assert done.code == 1 and "Traceback" in done.err and "ZeroDivisionError" in done.err
    hidden = splore(*RUN, "--data.name=digts", folder=tmp_path, env={"SPLORE_DEBUG": "1"})
    assert hidden.code == 1 and "Traceback" in hidden.err


def test_the_set_that_these_tests_use_can_be_learned():
    """Else a run that loses everything would look like one that learned nothing."""
    train, test = blobs()
    assert {label for _, label in test} == {0, 1, 2, 3} and len(train) == 96
    assert tiny(4)(test[0][0][None]).shape == (1, 4)
