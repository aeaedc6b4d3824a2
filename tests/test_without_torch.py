"""What a machine needs that only runs programs: this package, NumPy and safetensors, in an environment of their own."""

import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import splore
from splore.engine.library import load_library

NEEDED = ("numpy", "safetensors", "splore")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A bare environment with nothing but what is needed; returns its Python."""
    folder = tmp_path_factory.mktemp("bare")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in NEEDED:
        home = Path(importlib.util.find_spec(name).origin).parent
        (packages / name).symlink_to(home)
        for libraries in home.parent.glob(f"{name}.libs"):
            (packages / libraries.name).symlink_to(libraries)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
    splore.decompose(model, splore.Design(rank=1))
    splore.prune(model, params=0.6)
    model.task = splore.Task(("no", "yes"), splore.Preprocessing((8, 8), (0.5,) * 3, (0.2,) * 3))
    folder = tmp_path_factory.mktemp("program")
    splore.compile(model, torch.zeros(1, 3, 8, 8), threads=1).save(folder / "net.splore")
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    x = torch.from_numpy(model.task.preprocessing(image))[None]
    with torch.no_grad():
        return folder / "net.splore", model(x).numpy()


def run(python, *words):
    environment = {"SPLORE_PLAN": "fast", "SPLORE_LIBRARY": load_library()._name, "PATH": os.environ["PATH"]}
    return subprocess.run([python, *map(str, words)], env=environment, capture_output=True, text=True, timeout=240)


def test_a_program_runs_and_names_the_class_of_an_image(bare, program):
    file, expected = program
    code = f"""
import importlib.util, sys
assert not any(importlib.util.find_spec(name) for name in ("torch", "rich", "accelerate", "jsonargparse", "PIL"))
import numpy as np, splore
engine = splore.Engine.load({str(file)!r}, threads=1)
image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
y = engine(engine.task.preprocessing(image)[None])
print(engine.task.classes[y.argmax()], *y[0])
"""
    done = run(bare, "-c", code)
    assert done.returncode == 0, done.stderr
    name, *values = done.stdout.split()
    np.testing.assert_allclose([float(value) for value in values], expected[0], rtol=1e-4, atol=1e-5)
    assert name == ("no", "yes")[expected[0].argmax()]


@pytest.mark.parametrize(
    ("words", "part"), [(["inspect"], "conv 3x3"), (["bench", "--seconds=0.05", "--threads=1"], "images/s")]
)
def test_commands_on_a_program_need_no_torch_either(words, part, bare, program):
    done = run(bare, "-m", "splore", words[0], program[0], *words[1:])
    assert done.returncode == 0 and part in done.stdout, done


def test_what_needs_torch_says_so_in_a_line(bare, tmp_path):
    done = run(bare, "-m", "splore", "inspect", "resnet20")
    assert done.returncode == 1 and done.stderr.startswith("splore: ") and "torch" in done.stderr, done
    missing = run(bare, "-m", "splore", "bench", tmp_path / "none.splore")
    assert missing.returncode == 1 and "Traceback" not in missing.stderr, missing
    assert sys.executable != str(bare)
