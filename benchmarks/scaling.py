"""The tables of docs/scaling.md: what training ResNet-50 on ImageNet moves, computes and costs, by the number of GPUs.

    python benchmarks/scaling.py

Computed from recipes/imagenet-resnet50.yaml, from what was measured here (the cost of a step in
benchmarks/results/training.json, reading images in input.json), and from the speed of the dense net as NVIDIA gives it:
github.com/NVIDIA/DeepLearningExamples, ResNet-50 v1.5 for PyTorch, DGX A100, mixed precision.
"""

import json
from pathlib import Path

import torch

import splore
from splore.runs.recipe import Recipe, design_of
from splore.runs.recipe_file import load_recipe

ROOT = Path(__file__).parents[1]
IMAGES = 1_281_167
BATCH = 256  # images of one GPU in a step
DENSE_SPEED = {1: 2470, 8: 16621, 64: 8 * 16621}  # images/s; of 64 GPUs, as if eight nodes were eight times one
LINK = {1: 300e9, 8: 300e9, 64: 25e9}  # bytes/s from one GPU: NVLink 3 within a node, a 200 Gb/s adapter between nodes
NODE = 8  # GPUs


def main() -> None:
    recipe = load_recipe(ROOT / "recipes" / "imagenet-resnet50.yaml")
    steps = [row for row in results("training") if row["net"] == "resnet50" and row["dtype"] == "float32"]
    ratio = next(row["step_ratio"] for row in steps if row["mode"] == "eager")
    reading = max(
        (row for row in results("input") if row["data"] == "folder"), key=lambda row: row["images_per_second"]
    )
    params = print_step(recipe)
    print_devices(recipe, params, ratio, reading["images_per_second"] / reading["hardware"]["cores"])


def results(name: str) -> list[dict]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def print_step(recipe: Recipe) -> int:
    """What one step takes on one device; returns the parameters that are learned."""
    torch.manual_seed(0)
    model = splore.build(recipe.model, 1000)
    dense = sum(p.numel() for p in model.parameters())
    forward = splore.cost(model, (3, 224, 224)).macs
    splore.decompose(model, design_of(recipe))
    ours = sum(p.numel() for p in model.parameters())
    layers = splore.decomposed_layers(model).values()
    compose = sum(layer.A.numel() * layer.B.shape[1] for layer in layers)
    masks = sum(layer.mask.numel() for layer in layers)
    mib = 2**20
    print(f"| one step of {BATCH} images on one device | dense | ours |\n| --- | --- | --- |")
    print(f"| parameters learned | {dense / 1e6:.2f} M | {ours / 1e6:.2f} M |")
    print(f"| multiply-adds, forward and backward | {3 * BATCH * forward / 1e12:.2f} T | the same |")
    print(f"| multiply-adds to compose A·B + S, and back | none | {3 * compose / 1e9:.1f} G |")
    print(
        f"| parameters, gradients, momenta, masks | {12 * dense / mib:.0f} MiB | {(12 * ours + masks) / mib:.0f} MiB |"
    )
    print(f"| gradients to sum over the devices | {4 * dense / mib:.0f} MiB | {4 * ours / mib:.0f} MiB |")
    print(f"\ncomposing adds {compose / (BATCH * forward):.3%} to the multiply-adds\n")
    return ours


def print_devices(recipe: Recipe, params: int, ratio: float, images_per_core: float) -> None:
    """Speed, time and what feeds the devices, by their number; `ratio` is our step's time over the dense one's."""
    epochs = recipe.train.epochs + recipe.finetune.epochs
    print(f"step {ratio}x the dense one, {images_per_core:.0f} images/s decoded by a core, {epochs} epochs\n")
    print("| GPUs | images/s, dense | images/s, ours | step | sum of gradients | cores a node | hours | GPU hours |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for gpus, dense in DENSE_SPEED.items():
        speed = dense / ratio
        ring = 2 * (gpus - 1) / gpus * 4 * params / LINK[gpus]
        cores = speed / images_per_core / max(1, gpus / NODE)
        hours = epochs * IMAGES / speed / 3600
        print(
            f"| {gpus} | {dense:,} | {speed:,.0f} | {1e3 * BATCH * gpus / speed:.0f} ms | {1e3 * ring:.1f} ms "
            f"| {cores:.0f} | {hours:.2f} | {hours * gpus:.1f} |"
        )


if __name__ == "__main__":
    main()
