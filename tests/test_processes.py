"""One run made by several processes, which share every batch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import HERE, TINY, checkpoints, contents, epochs, ranks, same_curves, same_weights, splore, views
from tests_support import blobs

WORDS = [
    "run", *TINY, "--out=out", "--data.batch_size=16", "--train.epochs=2", "--finetune.epochs=2", "--design.rank=2",
    "--cut.steps=2", "--cut.ranks=0.5", "--hardware.checkpoint_minutes=0",
    "--hardware.keep_checkpoints=true",
]  # fmt: skip


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A run by two processes to its end: the folder, where each rank's view of the evaluations lies, the outputs."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "seen").mkdir()
    commands = ranks(WORDS, folder, env={"SEE": str(folder / "seen")}, separate=True)
    done = [command.wait() for command in commands]
    assert [each.code for each in done] == [0, 0], done
    return folder, done


def test_only_the_first_writes_and_speaks(together):
    folder, (first, second) = together
    assert not (folder / "second" / "out").exists()
    assert second.out == "" and second.err == "" and first.err == ""
    assert epochs(folder / "out") == [
        (s, e) for s, n in (("dense", 4), ("train", 2), ("finetune", 2)) for e in range(1, n + 1)
    ]
    assert len(checkpoints(folder / "out")) == 2


def test_weights_masks_ranks_and_statistics_are_the_same_on_all_before_every_evaluation(together):
    masks, ranks_seen = set(), set()
    for one, other in views(together[0]):
        a, b = one["state"], other["state"]
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), key
        if "conv2.mask" in a:
            masks.add(int(a["conv2.mask"].sum()))
            ranks_seen.add(sum(value.shape[1] for key, value in a.items() if key.endswith(".A")))
    assert len(masks) == 3 and len(ranks_seen) == 2, "neither cut was seen"


def test_each_evaluation_sees_each_sample_exactly_once(together):
    test = blobs()[1]
    expected = sorted(image.flatten().tolist() for image, _ in test)
    passes = [torch.cat([one["images"], other["images"]]) for one, other in views(together[0])]
    assert len(passes) == 3 * (8 + 4), "three batches, after each epoch and for each row of the table"
    for first in range(0, len(passes), 3):
        seen = torch.cat(passes[first : first + 3])
        assert sorted(image.flatten().tolist() for image in seen) == expected
    assert "on 40 test images" in together[1][0].out


def test_the_loss_curve_is_that_of_one_process(tmp_path):
    """Without batch norm, whose statistics each process takes of its own share."""
    words = [*WORDS, "--model=tests_support:plain", "--baseline=false"]
    commands = ranks(words, tmp_path / "two")
    assert splore(*words, folder=tmp_path / "one").code == 0
    assert [command.wait().code for command in commands] == [0, 0]
    same_curves(tmp_path / "one/out", tmp_path / "two/out")
    summaries = [json.loads((tmp_path / name / "out/summary.json").read_text()) for name in ("one", "two")]
    assert summaries[0]["compressed"]["params"] == summaries[1]["compressed"]["params"]


def test_a_rank_that_dies_ends_the_job_and_it_can_be_resumed(together, tmp_path):
    commands = ranks(WORDS, tmp_path, env={"DIE_AT": "60", "DIE_RANK": "1"})
    done = [command.wait() for command in commands]
    assert done[1].code == -signal.SIGKILL
    done[0].refused("another process of this job has died", "--resume", code=1)
    state = torch.load(checkpoints(tmp_path / "out")[-1], weights_only=True)
    assert (state["stage"], state["epoch"]) != ("dense", 0)
    again = [command.wait() for command in ranks([*WORDS, "--resume"], tmp_path)]
    assert [each.code for each in again] == [0, 0], again
    same_weights(tmp_path / "out/model.safetensors", together[0] / "out/model.safetensors")
    assert epochs(tmp_path / "out") == epochs(together[0] / "out")


def test_what_was_asked_wrongly_ends_every_process(together, tmp_path):
    out = together[0] / "out"
    before = contents(out)
    for words, said in (([*WORDS, "--model=vgg91"], "'vgg19'"), ([*WORDS, "--data.batch_size=15"], "multiple of 2")):
        done = [command.wait() for command in ranks(words, tmp_path)]
        first, *others = sorted(done, key=lambda each: said not in each.err)
        first.refused(said)
        for other in others:  # a slow one may find its peer gone before it has looked itself
            last = other.err.strip().splitlines()[-1]
            assert other.code and last.startswith("splore: ") and (said in last or "another process" in last), other
    assert not (tmp_path / "out").exists() and contents(out) == before


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_the_usual_launchers(launcher, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    words = [*WORDS, "--train.epochs=1", "--finetune.epochs=0", "--cut.steps=1", "--baseline=false"]
    if launcher == "accelerate":
        script = Path(sys.executable).with_name("accelerate")
        start = [script, "launch", "--cpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no",
                 "--dynamo_backend=no", "--no_python"]  # fmt: skip
    else:
        start = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node=2", "--no-python"]
    done = subprocess.run(
        [*start, Path(sys.executable).with_name("splore"), *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("after training:") == 1
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["stages"]
    assert [row["stage"] for row in rows] == ["after training", "after the cut", "after fine-tuning"]
