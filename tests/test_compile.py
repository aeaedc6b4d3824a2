"""Compiled training: it can be resumed, and says what it lacks where there is no compiler."""

import shutil
import signal

import pytest
import torch
from command import TINY, Command, checkpoints, same_curves, splore, until

from splore.runs.prepare import prepare
from splore.runs.processes import common_score
from splore.runs.recipe import DataRecipe, Recipe
from splore.train.loop import Position, fit

RUN = ["run", *TINY, "--out=out", "--hardware.compile=true"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_run_is_resumed(tmp_path):
    words = [*RUN, "--model=digits_cnn", "--data.name=digits", "--data.batch_size=512", "--baseline=false"]
    words += ["--hardware.checkpoint_minutes=0", "--finetune.epochs=1"]
    whole = splore(*words, folder=tmp_path / "whole")
    assert whole.code == 0, whole
    command = Command(words, tmp_path)
    until(lambda: checkpoints(tmp_path / "out"))
    command.process.kill()
    assert command.wait().code == -signal.SIGKILL
    done = splore(*words, "--resume", folder=tmp_path)
    assert done.code == 0 and "going on in stage train, epoch" in done.out, done
    same_curves(tmp_path / "whole/out", tmp_path / "out")


def test_only_full_batches_of_the_training_are_compiled(tmp_path):
    graphs, sizes = [], []
    torch._dynamo.reset()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    model.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward, dynamic=False)
    prepared = prepare(Recipe(data=DataRecipe(batch_size=500)), tmp_path)

    def loss(outputs, labels, images):
        sizes.append(len(labels))
        return torch.nn.functional.cross_entropy(outputs, labels)

    fit(
        model, prepared.data.train, torch.optim.SGD(model.parameters(), lr=0.1), prepared.accelerator, epochs=2,
        learning_rate=lambda progress: 0.1, loss=loss, position=Position(), compiled_batch=500,
        end_epoch=lambda position: common_score(model, prepared.data.test, prepared.accelerator),
    )  # fmt: skip
    assert sizes == [500, 500, 347] * 2 and len(graphs) == 1


def test_without_a_compiler_it_says_what_to_install(tmp_path):
    done = splore(*RUN, folder=tmp_path, env={"PATH": str(tmp_path), "CXX": ""})
    done.refused("hardware.compile", "no g++", "install", "hardware.compile: false", code=1)
    done = splore(*RUN, folder=tmp_path, env={"CXX": "no-such-compiler -O1"})
    done.refused("no-such-compiler", "CXX", code=1)
    assert not (tmp_path / "out").exists()
