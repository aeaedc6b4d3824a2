"""A run that dies, however it dies, and is resumed ends as if nothing had happened: the same bits, the same journal."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal

import pytest
import torch
from command import TINY, Command, checkpoints, contents, journal, same_weights, splore, tensors, until

WORDS = [
    "run", *TINY, "--out=out", "--model=tests_support:forgetful", "--data.batch_size=16", "--train.epochs=3",
    "--finetune.epochs=3", "--design.rank=2", "--cut.steps=2", "--cut.ranks=0.5", "--finetune.distill=0.5",
    "--train.density=0.5", "--hardware.checkpoint_minutes=0", "--hardware.keep_checkpoints=true",
]  # fmt: skip
"""Everything that a resumed run could get wrong: dropout, momentum, ranks and masks that change, a teacher, batch norm
measured anew. A checkpoint after every step."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = splore(*WORDS, folder=folder)
    assert done.code == 0, done
    trained, cut = (tensors(folder / "out" / f"{name}.safetensors")["conv2.A"].shape[1] for name in ("trained", "cut"))
    assert (trained, cut) == (2, 1), "no rank was cut"
    return folder / "out"


def assert_same(out, undisturbed):
    """The same weights in every model file, the same lines in the journal, the same summary."""
    for name in ("dense", "trained", "cut", "model"):
        same_weights(out / f"{name}.safetensors", undisturbed / f"{name}.safetensors")
    assert journal(out) == journal(undisturbed)
    one, other = (json.loads((each / "summary.json").read_text()) for each in (out, undisturbed))
    for key in ("dense", "compressed", "stages", "seed"):
        assert one[key] == other[key]
    assert len(checkpoints(out)) <= 2
    assert not list(out.rglob("*.tmp")), "left over from a kill"


def resume(folder, **how):
    begun = (folder / "out" / "recipe.yaml").exists()
    return Command([*WORDS, "--resume"] if begun else WORDS, folder, **how)


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_again_and_again_it_ends_with_the_same_bits(seed, undisturbed, tmp_path):
    """SIGKILL some forward passes after each start, and then up to 30 ms later: within a step, an evaluation, a cut, or
    while a checkpoint, a model file or the journal is being written."""
    draw = random.Random(seed)
    kills, stages = 0, set()
    for _ in range(60):
        fate = {"DIE_AT": str(draw.randint(3, 16)), "DIE_WITHIN": str(draw.uniform(0, 0.03))}
        done = resume(tmp_path, env=fate).wait()
        if done.code == 0:
            break
        assert done.code == -signal.SIGKILL, done
        kills += 1
        found = checkpoints(tmp_path / "out")
        assert len(found) <= 3, "two, and one whose predecessor was about to go"
        if found:
            stages.add(torch.load(found[-1], weights_only=True)["stage"])
    assert done.code == 0, "it never came to its end"
    assert kills >= 10
    assert stages >= {"dense", "train", "finetune"}
    assert_same(tmp_path / "out", undisturbed)


def newest(out):
    """The newest checkpoint's contents; None while there is none."""
    with contextlib.suppress(IndexError, FileNotFoundError):
        return torch.load(checkpoints(out)[-1], weights_only=True)


@pytest.mark.parametrize("stage", ["train", "finetune"])
def test_killed_at_the_very_start_of_a_stage(stage, undisturbed, tmp_path):
    """Before its first step: what the last stage left behind is all there is, and the cut is still to come."""
    words = [word for word in WORDS if "checkpoint_minutes" not in word]
    command = Command(words, tmp_path, env={"SLEEP": "0.04"})
    until(lambda: (newest(tmp_path / "out") or {}).get("stage") == stage)
    command.process.kill()
    assert command.wait().code == -signal.SIGKILL
    assert newest(tmp_path / "out")["optimizer"] is None
    done = splore(*words, "--resume", folder=tmp_path)
    assert done.code == 0 and f"going on in stage {stage}" in done.out, done
    assert_same(tmp_path / "out", undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_stops_with_a_checkpoint(number, undisturbed, tmp_path):
    words = [word for word in WORDS if "checkpoint_minutes" not in word]  # none within an epoch by default
    command = Command(words, tmp_path, env={"SLEEP": "0.1"})
    until(lambda: len(checkpoints(tmp_path / "out")) == 2)  # the first epochs have ended
    os.kill(command.process.pid, number)
    done = command.wait()
    assert done.code == 130
    assert done.err == "splore: stopped; the same command with --resume continues the run in out\n"
    state = torch.load(checkpoints(tmp_path / "out")[-1], weights_only=True)
    assert state["stage"] == "dense" and state["step"] > 0
    again = splore(*words, "--resume", folder=tmp_path)
    assert again.code == 0 and "going on in stage dense, epoch" in again.out, again
    assert_same(tmp_path / "out", undisturbed)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was killed within its second stage."""
    folder = tmp_path_factory.mktemp("interrupted")
    done = splore(*WORDS, folder=folder, env={"DIE_AT": "85"})
    assert done.code == -signal.SIGKILL
    newest = checkpoints(folder / "out")
    assert len(newest) == 2 and torch.load(newest[-1], weights_only=True)["stage"] == "train"
    return folder / "out"


def torn(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def altered(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def without_digest(path):
    path.with_suffix(".sha256").unlink()


@pytest.mark.parametrize("damage", [torn, altered, without_digest])
def test_a_damaged_checkpoint_is_not_loaded_but_the_one_before(damage, interrupted, undisturbed, tmp_path):
    out = shutil.copytree(interrupted, tmp_path / "out")
    damage(checkpoints(out)[-1])
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "tr')  # what was being written when it died
    done = splore(*WORDS, "--resume", folder=tmp_path)
    assert done.code == 0 and "going on in stage train" in done.out, done
    assert_same(out, undisturbed)


def test_a_checkpoint_whose_optimiser_has_other_groups_says_so_and_stays(interrupted, tmp_path):
    out = shutil.copytree(interrupted, tmp_path / "out")
    path = checkpoints(out)[-1]
    state = torch.load(path, weights_only=True)
    state["optimizer"]["param_groups"].pop()
    torch.save(state, path)
    path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    done = splore(*WORDS, "--resume", folder=tmp_path)
    assert done.code != 0 and "grouped the parameters otherwise" in done.err and "Traceback" not in done.err, done
    assert path in checkpoints(out)


def test_a_damaged_checkpoint_does_not_displace_a_whole_one(interrupted, tmp_path):
    """Killed again right after the first new checkpoint: two whole ones must be there, not a damaged one."""
    out = shutil.copytree(interrupted, tmp_path / "out")
    whole, damaged = checkpoints(out)
    torn(damaged)
    splore(*WORDS, "--resume", folder=tmp_path, env={"DIE_AT": "3"})
    left = checkpoints(out)
    assert damaged not in left and len(left) == 2
    assert whole in left or len({path.stat().st_size for path in left}) == 1


def test_without_any_whole_checkpoint_it_starts_again(interrupted, undisturbed, tmp_path):
    out = shutil.copytree(interrupted, tmp_path / "out")
    for path in checkpoints(out):
        torn(path)
    done = splore(*WORDS, "--resume", folder=tmp_path)
    assert done.code == 0 and "no whole checkpoint" in done.out, done
    assert_same(out, undisturbed)


def test_a_finished_run_has_nothing_left_to_resume(undisturbed, tmp_path):
    out = shutil.copytree(undisturbed, tmp_path / "out")
    before = contents(out)
    done = splore(*WORDS, "--resume", folder=tmp_path)
    assert done.code == 0 and "finished" in done.out and not done.err
    assert contents(out) == before


def test_killed_before_the_summary_only_that_is_made_anew(undisturbed, tmp_path):
    """The kill came as the last checkpoint had been written, before the one it displaces was gone."""
    out = shutil.copytree(undisturbed, tmp_path / "out")
    (out / "summary.json").unlink()
    oldest = checkpoints(out)[0]
    shutil.copy(oldest, oldest.with_name(f"{int(oldest.stem) - 1:06d}.pt"))
    done = splore(*WORDS, "--resume", folder=tmp_path)
    assert done.code == 0 and "epoch 1/" not in done.out, done
    assert_same(out, undisturbed)


def test_another_recipe_is_refused_with_the_keys_that_changed(interrupted, tmp_path):
    out = shutil.copytree(interrupted, tmp_path / "out")
    before = contents(out)
    done = splore(*WORDS, "--resume", "--seed=3", "--train.lr=0.2", folder=tmp_path)
    done.refused("seed is 0 there and 3 here", "train.lr is 0.1 there and 0.2 here", code=2)
    assert "epochs" not in done.err and "threads" not in done.err
    (out / "recipe.yaml").write_text("cut short: [")
    splore(*WORDS, "--resume", folder=tmp_path).refused("out/recipe.yaml", "not YAML", code=2)
    (out / "recipe.yaml").write_bytes(before["recipe.yaml"])
    assert contents(out) == before


def test_what_it_was_given_need_not_be_given_again(interrupted, undisturbed, tmp_path):
    """Not even where the defaults have become others since, or there were keys fewer."""
    out = shutil.copytree(interrupted, tmp_path / "out")
    stored = (out / "recipe.yaml").read_text()
    assert "  density: 1.0\n" in stored and "  temperature: 4.0\n" in stored
    older = stored.replace("  density: 1.0\n", "  density: 0.5\n").replace("  temperature: 4.0\n", "")
    (out / "recipe.yaml").write_text(older)
    done = splore("run", "--out=out", "--resume", folder=tmp_path)
    assert done.code == 0 and "going on in stage train" in done.out, done
    assert_same(out, undisturbed)


def test_it_may_be_resumed_on_other_hardware(interrupted, tmp_path):
    out = shutil.copytree(interrupted, tmp_path / "out")
    done = splore(*WORDS, "--resume", "--hardware.checkpoint_minutes=5", "--hardware.threads=2", folder=tmp_path)
    assert done.code == 0, done
    assert (out / "model.safetensors").exists()
