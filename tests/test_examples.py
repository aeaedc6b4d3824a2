"""The examples run as they stand, from the folder that a clone is."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*words, folder):
    """What a command prints, in a folder of its own; it must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_loop_of_ones_own_keeps_a_twentieth_of_the_parameters_and_the_accuracy(tmp_path):
    out = run(ROOT / "examples/train.py", folder=tmp_path)
    rows = {line[:8].strip(): line[8:].split() for line in out.splitlines() if " % " in line}
    assert rows.keys() == {"dense", "A·B + S"}, out
    dense, ours = (float(rows[net][0]) for net in ("dense", "A·B + S"))
    assert dense > 97 and ours > dense - 2
    assert rows["dense"][3] == "100.00%" and rows["A·B + S"][3] == "5.00%"
    assert (tmp_path / "digits.safetensors").stat().st_size < 30_000


@pytest.mark.slow
def test_an_engine_is_served_from_threads_without_torch(tmp_path):
    out = run(ROOT / "examples/deploy.py", folder=tmp_path)
    assert "without torch" in out and "largest difference" in out


@pytest.mark.slow
def test_a_detector_runs_its_nets_in_the_engine(tmp_path):
    out = run(ROOT / "examples/detection.py", folder=tmp_path)
    assert out.count("differs from torch") == 4 and out.count(" boxes") == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory and time are read from /proc")
def test_a_server_is_restarted_under_load_and_nobody_sees_it(tmp_path):
    out = run(ROOT / "benchmarks/soak.py", "--seconds", 6, "--restarts", 2, folder=tmp_path)
    found = json.loads(out)
    assert found["errors"] == 0 and found["requests"] > 50
    assert found["memory_mib"][1] < found["memory_mib"][0] + 20
    assert found["idle_cpu_percent"] < 10


@pytest.mark.slow
def test_a_data_set_and_a_net_of_ones_own(tmp_path):
    out = run("-m", "splore", "run", "examples/own_recipe.yaml", "--out", tmp_path / "own", folder=ROOT)
    compressed = re.search(r"after fine-tuning +(\S+) % +\S+ k +(\S+) %", out)
    assert compressed, out
    assert float(compressed[1]) > 90 and compressed[2] == "10.00"
    model = tmp_path / "own/model.safetensors"
    words = ["-m", "splore", "evaluate", model, "--model=examples.own:net", "--data.name=examples.own:stripes"]
    assert f"{compressed[1]} %" in run(*words, folder=ROOT)


@pytest.mark.slow
def test_a_pitch_tracker_keeps_a_tenth_of_its_parameters_and_its_pitches(tmp_path):
    pytest.importorskip("torchcrepe", reason="only this example needs it")
    words = ["--frames", 64, "--epochs", 1, "--rate", 3e-4, "--held-back", 64, "--timed", "--json", "figures.json"]
    run(ROOT / "examples/crepe.py", *words, folder=tmp_path)
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["parameters kept"] == pytest.approx(0.1, abs=1e-6)
    assert found["cents"]["median"] < 15 and found["cents"]["sure"] > 32
    assert found["bytes"] < 0.16 * found["bytes of CREPE"]
    again = run(ROOT / "examples/crepe.py", "--held-back", 64, "--timed", folder=tmp_path)
    assert json.loads(again)["cents"] == found["cents"]  # the copy in the file is the one that was taught
