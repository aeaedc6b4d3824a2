"""The exported names are a promise: this list changes only on purpose."""

import subprocess
import sys

import pytest

import splore
from splore import vision

NAMES = [
    "Budget",
    "Bytes",
    "Design",
    "Energy",
    "Engine",
    "FrobeniusDecay",
    "L1",
    "LowRankSparseConv2d",
    "LowRankSparseLinear",
    "MACs",
    "Milliseconds",
    "ModelFileError",
    "Params",
    "Preprocessing",
    "Scaling",
    "Scheme",
    "Summary",
    "Task",
    "attach",
    "build",
    "compile",
    "cost",
    "cubic",
    "cut_ranks",
    "decompose",
    "decomposed_layers",
    "energy_share",
    "evaluate",
    "export",
    "from_pruned",
    "hold_masks",
    "lamp",
    "load",
    "magnitude",
    "materialise",
    "parameter_groups",
    "prune",
    "push_to_hub",
    "quantize",
    "recalibrate",
    "relative",
    "save",
    "share_budget",
]


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_exported_names_are_these():
    assert splore.__all__ == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_exported_name_is_there_and_documented(name):
    assert name in dir(splore)
    value = getattr(splore, name)
    assert value.__name__ == name and value.__doc__


def test_an_unknown_name_is_an_attribute_error():
    for module in (splore, vision):
        with pytest.raises(AttributeError, match="no attribute 'compress'"):
            module.compress  # noqa: B018


def test_example_nets_and_data_sets_are_these_names_alone():
    names = ["NETS", "Augment", "Batches", "Data", "Origin", "build", "open_data", "read_weights", "rebuild"]
    names += ["start_from", "trained_with", "usual_image"]
    assert vision.__all__ == names and all(getattr(vision, name) is not None for name in names)
    assert vision.build is splore.build


def test_the_package_is_imported_without_torch_or_anything_else_heavy():
    found = run("import sys, splore; dir(splore); print(sorted({m.partition('.')[0] for m in sys.modules}))")
    assert found.returncode == 0, found.stderr
    heavy = {"torch", "numpy", "torchvision", "timm", "accelerate", "safetensors", "rich", "jsonargparse"}
    assert not heavy & set(eval(found.stdout))


def test_the_method_is_imported_without_the_run_around_it():
    code = "import sys; from splore import Design, L1, decompose, hold_masks, prune; print(sorted(sys.modules))"
    found = run(code)
    assert found.returncode == 0, found.stderr
    modules = set(eval(found.stdout))
    assert "torch" in modules
    assert not {"accelerate", "torchvision", "timm", "jsonargparse", "splore.runs.run", "splore.vision.data"} & modules


def test_all_names_come_with_a_star():
    names = {}
    exec("from splore import *", names)
    assert sorted(name for name in names if name[0] != "_") == NAMES
