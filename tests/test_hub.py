"""The Hugging Face Hub without a network: what a repository holds, and nets read from the layout of the Hub's cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import TINY
from command import splore as run
from huggingface_hub import ModelCard

import splore
from splore.deploy.hub import push_to_hub, write_repository
from splore.modelfile.hub import located

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = splore.build("digits_cnn", 10, 1)
    splore.decompose(model, splore.Design(rank=1))
    splore.prune(model, params=0.2)
    model.task = splore.Task(tuple("0123456789"), splore.Preprocessing((8, 8), (0.0,), (0.0627,)))
    return model.eval()


@pytest.fixture(scope="module")
def cache(model, tmp_path_factory):
    """The Hub's cache as it lies on disk once "user/net" was fetched."""
    cache = tmp_path_factory.mktemp("hub")
    repository = cache / "models--user--net"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "refs", repository / "blobs"):
        folder.mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    write_repository(model, snapshot, "user/net")
    blob = repository / "blobs" / "1"
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    return cache


def offline(code, cache, folder):
    env = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=240
    )


def test_a_net_is_loaded_by_its_name_from_the_cache_without_a_network(model, cache, tmp_path):
    code = f"""
import torch, splore
x = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)
for name in ("user/net", "user/net@{COMMIT}", "user/net@main"):
    net = splore.load(name).eval()
    torch.save((net(x).detach(), net.task.classes), "found.pt")
try:
    splore.load("user/other")
except OSError as error:
    print(error)
"""
    done = offline(code, cache, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "user/other" in done.stdout and "check the path" in done.stdout
    found, classes = torch.load(tmp_path / "found.pt")
    with torch.no_grad():
        assert torch.equal(found, model(torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)))
    assert classes == model.task.classes


def test_a_net_without_a_run_has_a_card_that_the_hub_can_read(model, cache):
    text = (cache / "models--user--net/snapshots" / COMMIT / "README.md").read_text()
    card = ModelCard(text)
    card.data.to_dict()
    assert card.data.library_name == "splore" and 'splore.load("user/net")' in text and "0, 1, 2" in text


def test_the_card_of_a_run_has_its_figures(tmp_path):
    words = ["run", *TINY, "--cut.params=0.6", "--out=out"]
    assert run(*words, folder=tmp_path).code == 0
    (tmp_path / "repository").mkdir()
    write_repository(tmp_path / "out", tmp_path / "repository", "user/tiny")
    names = {"model.safetensors", "README.md", "recipe.yaml", "summary.json"}
    assert {path.name for path in (tmp_path / "repository").iterdir()} == names
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    card = ModelCard((tmp_path / "repository/README.md").read_text())
    (result,) = card.data.eval_results
    assert result.metric_value == round(summary["compressed"]["accuracy"], 2)
    assert f"{100 * summary['compressed']['params_kept']:.2f} %" in card.text
    assert "your_dense_net" in card.text  # the file can't build a net of the user's own


@pytest.mark.parametrize("source", ["empty", "no.safetensors"])
def test_what_is_no_run_and_no_model_file_is_refused(source, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "to").mkdir()
    with pytest.raises(ValueError, match="expected a"):
        write_repository(tmp_path / source, tmp_path / "to", "user/net")


def test_a_hub_that_cannot_be_reached_is_said_so(model, tmp_path):
    splore.save(model, tmp_path / "net.safetensors")
    code = "import splore\ntry:\n    splore.push_to_hub('net.safetensors', 'user/net', token='hf_x')\n"
    code += "except OSError as error:\n    print(error)"
    done = offline(code, tmp_path / "cache", tmp_path)
    assert done.returncode == 0 and "could not be put on the Hub" in done.stdout, done
    assert push_to_hub.__doc__


@pytest.mark.parametrize("path", ["model.safetensors", "runs/a/model.safetensors", "a/b/c", "a/b.splore", Path("a/b")])
def test_what_is_a_path_is_never_looked_for_on_the_hub(path):
    assert located(path) == Path(path)


def test_a_name_below_a_folder_that_is_there_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert located("runs/a") == Path("runs/a")


def test_push_wants_a_repository(tmp_path):
    run("push", "net.safetensors", "net", folder=tmp_path).refused("USER/NAME", code=2)
