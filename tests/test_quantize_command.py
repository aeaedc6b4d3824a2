"""Eight bits from the command line: of a run, and of a model file."""

import json

import pytest
from command import TINY, splore
from tests_support import tiny

from splore.modelfile.file import load, read_structure

OWN, IMAGE = ["--model=tests_support:tiny"], ["--image=1,8,8"]
EIGHT = ["--quantize.images=32", "--quantize.epochs=1", "--design.block=4"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eight")
    done = splore("run", *TINY, *EIGHT, "--out", "out", folder=folder)
    assert done.code == 0, done
    return folder / "out", done


def test_a_run_ends_with_a_net_in_eight_bits_beside_the_one_in_float32(finished):
    out, done = finished
    summary = json.loads((out / "summary.json").read_text())
    rows = {row["stage"]: row for row in summary["stages"]}
    last, before = rows["in eight bits"], rows["after fine-tuning"]
    assert list(rows)[-1] == "in eight bits" and "in eight bits" in done.out and "quantize epoch 1/1" in done.out
    assert last["bytes"] == (out / "quantized.safetensors").stat().st_size
    assert last["params"] <= before["params"] and abs(last["accuracy"] - before["accuracy"]) < 15
    assert read_structure(out / "quantized.safetensors").coded and not read_structure(out / "model.safetensors").coded
    net, plain = (load(out / f"{name}.safetensors", tiny(4)) for name in ("quantized", "model"))
    assert net.activation_ranges and not hasattr(plain, "activation_ranges")
    assert summary["compressed"]["bytes"] == (out / "model.safetensors").stat().st_size


def test_a_file_is_quantised_and_inspected_and_evaluated(finished):
    out, _ = finished
    data = [word for word in TINY if word.startswith("--data")]
    done = splore("quantize", out / "model.safetensors", *data, "--quantize.images=32", *OWN, folder=out)
    assert done.code == 0, done
    assert "model-int8.safetensors: " in done.out and " before; accuracy " in done.out
    assert splore("evaluate", out / "model-int8.safetensors", *data, *OWN, folder=out).code == 0
    compiled = splore("compile", out / "model-int8.safetensors", *OWN, *IMAGE, folder=out)
    assert compiled.code == 0 and "splore evaluate says what it loses" in compiled.out
    shown = splore("inspect", out / "model-int8.safetensors", *OWN, *IMAGE, folder=out)
    assert shown.code == 0 and "at least" in shown.out
    found = json.loads(splore("inspect", out / "model-int8.safetensors", "--json", *OWN, *IMAGE, folder=out).out)
    assert found["compressed"]["bytes_least"] <= found["compressed"]["bytes"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--quantize.images=0"], "images"),
        (["--quantize.images=-1"], "at least 0"),
        (["--quantize.lr=0"], "above 0"),
        (["--quantize.ranges=some"], "ranges"),
    ],
)
def test_what_can_not_be_asked_for_is_refused(finished, words, said):
    out, _ = finished
    done = splore("quantize", out / "model.safetensors", *OWN, *words, folder=out)
    done.refused(said)
