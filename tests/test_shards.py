"""A run whose parameters, gradients and momentum are cut into shards over two processes (FSDP2)."""

import json
import signal

import pytest
import torch
from command import (
    TINY,
    Process,
    checkpoints,
    epochs,
    free_port,
    ranks,
    same_curves,
    same_weights,
    splore,
    tensors,
    views,
)
from tests_support import plain

from splore.design.decompose import Design, decompose
from splore.train.shards import Shards, local

WORDS = [
    "run", *TINY, "--out=out", "--model=tests_support:plain", "--baseline=false", "--data.batch_size=16",
    "--finetune.epochs=3", "--design.rank=2", "--cut.steps=2", "--cut.ranks=0.5",
    "--hardware.parallel=fsdp",
]  # fmt: skip
"""Without batch norm, whose statistics each process takes of its own share of a batch."""


def same_within_rounding(one, two):
    """Asserts that two model files agree within rounding, and exactly in where S is."""
    a, b = tensors(one), tensors(two)
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert value.shape == b[key].shape, key
        if value.is_floating_point():
            torch.testing.assert_close(b[key], value, rtol=1e-3, atol=1e-5, msg=key)
        else:
            assert torch.equal(value, b[key]), key


def holds_half(rank, port):
    """What one of two processes finds in its shards."""
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = plain(4)
    decompose(model, Design(rank=2))
    shards = Shards(model, torch.device("cpu"))
    optimizer = torch.optim.SGD(shards.net.parameters(), 0.1, momentum=0.9)
    shards.net(torch.randn(4, 1, 6, 6)).square().sum().backward()
    optimizer.step()
    parameters = list(shards.net.parameters())
    everything = sum(parameter.numel() for parameter in model.parameters())
    for held in (parameters, [p.grad for p in parameters], [optimizer.state[p]["momentum_buffer"] for p in parameters]):
        assert sum(local(tensor).numel() for tensor in held) == everything // 2
    before = [parameter.detach().clone() for parameter in model.parameters()]
    shards.gather()
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    for new, old in zip(model.parameters(), before, strict=True):
        new.data.copy_(old)
    shards.scatter()
    torch.nn.init.zeros_(model.conv1.S)
    shards.gather()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    torch.distributed.destroy_process_group()


def test_each_process_holds_half():
    processes = [Process(target=holds_half, args=(rank, port)) for port in [free_port()] for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process, in which there is nothing to shard."""
    folder = tmp_path_factory.mktemp("alone")
    done = splore(*WORDS, folder=folder)
    assert done.code == 0, done
    return folder / "out"


@pytest.mark.parametrize("gather", ["1000000", "300"])
def test_losses_and_weights_are_those_of_one_process(gather, alone, tmp_path):
    """Gathered together, and the larger layers each by itself."""
    done = [command.wait() for command in ranks(WORDS, tmp_path, env={"GATHER": gather})]
    assert [each.code for each in done] == [0, 0] and not done[0].err, done
    same_curves(alone, tmp_path / "out")
    for name in ("trained", "cut", "model"):
        same_within_rounding(alone / f"{name}.safetensors", tmp_path / "out" / f"{name}.safetensors")
    first, second = (json.loads((out / "summary.json").read_text()) for out in (alone, tmp_path / "out"))
    assert first["compressed"]["params"] == second["compressed"]["params"]


@pytest.mark.parametrize(
    "words",
    [
        ["--train.proximal=false", "--cut.score=energy_share"],
        ["--method=sparse", "--cut.ranks=keep"],
        ["--method=low-rank"],
        ["--cut.ranks=shared", "--train.nuclear=2"],
        ["--train.l1=0", "--train.density=0.5"],
        ["--baseline=true", "--finetune.distill=0.5", "--cut.params=null", "--cut.energy=0.9"],
    ],
)
def test_the_other_methods_too(words, tmp_path):
    words = [*WORDS, *words]
    commands = ranks(words, tmp_path / "two")
    assert splore(*words, folder=tmp_path / "one").code == 0
    assert [command.wait().code for command in commands] == [0, 0]
    same_curves(tmp_path / "one/out", tmp_path / "two/out")


@pytest.mark.parametrize("gather", ["1000000", "50"])
def test_what_is_frozen_stays(gather, tmp_path):
    words = [*WORDS, "--model=tests_support:half_frozen", "--design.include=[Linear, conv2]", "--cut.params=0.6"]
    commands = ranks(words, tmp_path / "two", env={"GATHER": gather})
    alone = splore(*words, folder=tmp_path / "one")
    assert alone.code == 0, alone
    done = [command.wait() for command in commands]
    assert [each.code for each in done] == [0, 0], done
    same_curves(tmp_path / "one/out", tmp_path / "two/out")
    trained, final = (tensors(tmp_path / f"two/out/{name}.safetensors") for name in ("trained", "model"))
    frozen = [key for key in final if "conv1" in key or "bias" in key]
    assert len(frozen) >= 4 and all(torch.equal(final[key], trained[key]) for key in frozen)
    assert not torch.equal(final["head.A"], trained["head.A"])


def test_weights_masks_ranks_and_statistics_are_the_same_on_all(tmp_path):
    """With batch norm."""
    (tmp_path / "seen").mkdir()
    words = [*WORDS, "--model=tests_support:tiny"]
    commands = ranks(words, tmp_path, env={"SEE": str(tmp_path / "seen")}, separate=True)
    assert [command.wait().code for command in commands] == [0, 0]
    masks, ranks_seen = set(), set()
    for one, other in views(tmp_path):
        a, b = one["state"], other["state"]
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), key
        masks.add(int(a["conv2.mask"].sum()))
        ranks_seen.add(sum(value.shape[1] for key, value in a.items() if key.endswith(".A")))
    assert len(masks) == 3 and len(ranks_seen) == 2, "neither cut was seen"


@pytest.mark.parametrize("stage", ["train", "finetune"])
def test_killed_it_is_resumed_by_two_or_by_one(stage, alone, tmp_path):
    """A checkpoint is that of one process: it doesn't tell how many wrote it."""
    words = [*WORDS, "--hardware.checkpoint_minutes=0"]
    done = [
        command.wait()
        for command in ranks(words, tmp_path, env={"DIE_AT": {"train": "14", "finetune": "49"}[stage], "DIE_RANK": "1"})
    ]
    assert done[1].code == -signal.SIGKILL and done[0].code == 1, done
    state = torch.load(checkpoints(tmp_path / "out")[-1], weights_only=True)
    assert state["stage"] == stage and state["step"] > 0 and state["optimizer"]["state"]
    if stage == "train":
        again = [command.wait() for command in ranks([*words, "--resume"], tmp_path)]
        assert [each.code for each in again] == [0, 0], again
    else:
        again = [splore(*words, "--hardware.parallel=ddp", "--resume", folder=tmp_path)]
    assert again[0].code == 0 and f"going on in stage {stage}, epoch" in again[0].out, again
    assert epochs(tmp_path / "out") == epochs(alone)
    same_curves(alone, tmp_path / "out")
    same_within_rounding(alone / "model.safetensors", tmp_path / "out" / "model.safetensors")


def test_in_bf16_the_same_run_twice_ends_with_the_same_bits(tmp_path):
    short = [*WORDS, "--train.epochs=1", "--finetune.epochs=1", "--cut.steps=1", "--hardware.precision=bf16"]
    for name in ("one", "other"):
        assert [command.wait().code for command in ranks(short, tmp_path / name)] == [0, 0]
    same_weights(tmp_path / "one/out/model.safetensors", tmp_path / "other/out/model.safetensors")
