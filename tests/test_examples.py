"""The examples run as they stand, from the folder that a clone is."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import splore

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
    # Four workers' buffers for 16 sizes, some 25 MiB, still come; an image kept of each request would be 100 and more.
    assert found["memory_mib"][1] < found["memory_mib"][0] + 60
    assert found["idle_cpu_percent"] < 10


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the server forks")
def test_a_client_finds_right_what_the_network_itself_says_of_images(tmp_path):
    classes = ("stoat", "otter", "weasel")
    model = splore.build("resnet20", num_classes=3).eval()
    model.task = splore.Task(classes, splore.Preprocessing((32, 32), (0.5,) * 3, (0.2,) * 3))
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (30, 32, 32, 3), np.uint8)
    x = torch.from_numpy(np.stack([model.task.preprocessing(each) for each in pixels]))
    splore.quantize(model, [x])
    splore.compile(model, x[:8], deterministic=True).save(tmp_path / "net.splore")
    with torch.no_grad():
        labels = splore.Engine.load(tmp_path / "net.splore")(x).argmax(1).tolist()
    labels[:3] = [(label + 1) % 3 for label in labels[:3]]
    for name in classes:
        (tmp_path / "images" / name).mkdir(parents=True)
    for i, label in enumerate(labels):
        Image.fromarray(pixels[i]).save(tmp_path / "images" / classes[label] / f"{i}.png")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd, port = listener.fileno(), listener.getsockname()[1]
        words = [ROOT / "examples/serve.py", tmp_path / "net.splore", "--fd", fd, "--workers", 2]
        server = subprocess.Popen([sys.executable, *map(str, words)], pass_fds=[fd], stdout=subprocess.PIPE)
    try:
        assert server.stdout.readline() == b"ready\n"
        words = [ROOT / "examples/client.py", tmp_path / "net.splore", tmp_path / "images", "--port", port]
        found = json.loads(run(*words, "--images", 90, "--batch", 7, folder=tmp_path))
    finally:
        server.terminate()
        server.wait(60)
    assert (found["images"], found["right"]) == (30, 27)
    assert found["difference"] < 1e-4


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
