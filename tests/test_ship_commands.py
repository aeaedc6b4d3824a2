"""splore compile, inspect, bench and export, one after another, on a net of a file."""

import json

import pytest
import torch
from command import splore as run

import splore
from splore.design.layers import decomposed_layers

TASK = splore.Task(tuple("0123456789"), splore.Preprocessing((8, 8), (0.0,), (16 / 255,)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped")
    torch.manual_seed(0)
    model = splore.build("digits_cnn", 10, 1)
    splore.decompose(model, splore.Design(rank=1))
    splore.prune(model, params=0.2)
    splore.save(model, folder / "digits.safetensors", task=TASK)
    return folder


@pytest.fixture(scope="module")
def program(folder):
    done = run("compile", "digits.safetensors", "--threads=1", "-o", "net.splore", folder=folder, env=FAST)
    assert done.code == 0 and "net.splore: " in done.out, done
    return folder / "net.splore"


FAST = {"SPLORE_PLAN": "fast", "OMP_NUM_THREADS": "1"}


def test_a_compiled_file_computes_what_the_net_does_and_knows_its_task(program, folder):
    model = splore.load(folder / "digits.safetensors").eval()
    engine = splore.Engine.load(program, threads=1)
    assert engine.task == TASK and engine.input == (1, 8, 8)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(engine(x), model(x), rtol=1e-4, atol=1e-4)


def test_inspect_shows_the_operations_of_a_program(program, folder):
    done = run("inspect", program, folder=folder)
    assert done.code == 0 and "conv 3x3" in done.out and "10 classes: 0, 1" in done.out and "8 x 8 pixels" in done.out
    found = json.loads(run("inspect", program, "--json", folder=folder).out)
    assert found["bytes"] == program.stat().st_size and found["macs"] > 0
    assert splore.Task.from_json(found["task"]) == TASK
    layers = decomposed_layers(splore.load(folder / "digits.safetensors"))
    assert sum(op["op"] == "conv" for op in found["ops"]) >= len(layers)


def test_bench_times_a_program_alone(program, folder):
    done = run(
        "bench", program, "--batch", "1", "3", "--threads=1", "--seconds=0.05", "--json", folder=folder, env=FAST
    )
    found = json.loads(done.out)
    assert [(row["runtime"], row["batch"]) for row in found["figures"]] == [("engine", 1), ("engine", 3)]
    for row in found["figures"]:
        latency = row["latency"]
        assert 0 < latency["median_ms"] <= latency["p95_ms"] and latency["calls"] >= 10
        assert row["batch"] * 1e3 / latency["images_per_second"] == pytest.approx(latency["median_ms"], rel=20)
        assert row["peak_mib"] > 10
    assert found["steps"] and found["threads"] == 1


@pytest.mark.slow
def test_bench_times_other_runtimes_of_a_model_file(folder):
    done = run("bench", "digits.safetensors", "--threads=1", "--seconds=0.05", "--layers", folder=folder, env=FAST)
    assert done.code == 0 and "engine" in done.out and "PyTorch" in done.out and "GMAC/s" in done.out, done


def test_export_writes_the_dense_net_by_the_name_of_the_file(folder):
    done = run("export", "digits.safetensors", "--to=dense", folder=folder)
    assert done.code == 0 and "digits-dense.safetensors" in done.out, done
    original = splore.build("digits_cnn", 10, 1)
    splore.vision.start_from(original, splore.vision.read_weights(folder / "digits-dense.safetensors"), "the export")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["export", "digits.safetensors", "--to=tflite"], ["tflite", "onnx"]),
        (["compile", "digits.safetensors", "--batch", "0"], ["--batch"]),
        (["compile", "digits.safetensors", "--image=3,8"], ["--image"]),
        (["bench", "digits.safetensors", "--seconds=0"], ["--seconds"]),
    ],
)
def test_mistakes_are_told_in_a_line(words, parts, folder):
    run(*words, folder=folder).refused(*parts, code=2)


def accuracy(done):
    assert done.code == 0 and "accuracy" in done.out, done
    return float(done.out.partition("accuracy ")[2].partition(" %")[0])


def test_evaluate_takes_programs_and_normalises_and_orders_as_the_file_says(program, folder):
    """The same net that expects other numbers, and other places of the classes, is right as often."""
    words = ["--data.name=digits", "--device=cpu"]
    usual = accuracy(run("evaluate", "digits.safetensors", *words, folder=folder))
    assert accuracy(run("evaluate", program, *words, folder=folder, env=FAST)) == usual
    model = splore.load(folder / "digits.safetensors")
    first = next(module for module in model.modules() if hasattr(module, "in_channels"))
    with torch.no_grad():  # twice the contrast: the first layer takes half of everything
        first.set_parts(first.A / 2, first.B, first.S / 2, first.mask)
    steps = splore.Preprocessing((8, 8), (0.0,), (8 / 255,))
    splore.save(model, folder / "contrast.safetensors", task=splore.Task(TASK.classes, steps))
    assert accuracy(run("evaluate", "contrast.safetensors", *words, folder=folder)) == usual
    other = splore.Task(("ten", *TASK.classes[1:]), TASK.preprocessing)
    splore.save(model, folder / "other.safetensors", task=other)
    run("evaluate", "other.safetensors", *words, folder=folder).refused("no class '0'", code=1)


def test_a_program_of_any_size_takes_other_images_than_it_was_compiled_for(folder, tmp_path):
    done = run(
        "compile", "digits.safetensors", "--threads=1", "--any_size", f"--out={tmp_path}/net.splore", folder=folder,
        env=FAST,
    )  # fmt: skip
    assert done.code == 0, done
    engine = splore.Engine.load(tmp_path / "net.splore", 1)
    _, height, width = engine.input
    assert engine(torch.zeros(2, 1, height + 3, width + 5)).shape == (2, *engine.output)
