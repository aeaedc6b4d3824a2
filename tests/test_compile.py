"""Compiled training: it can be resumed, and says what it lacks where there is no compiler."""

import shutil
import signal

import pytest
from command import TINY, Command, checkpoints, same_curves, splore, until

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


def test_without_a_compiler_it_says_what_to_install(tmp_path):
    done = splore(*RUN, folder=tmp_path, env={"PATH": str(tmp_path), "CXX": ""})
    done.refused("hardware.compile", "no g++", "install", "hardware.compile: false", code=1)
    done = splore(*RUN, folder=tmp_path, env={"CXX": "no-such-compiler -O1"})
    done.refused("no-such-compiler", "CXX", code=1)
    assert not (tmp_path / "out").exists()
