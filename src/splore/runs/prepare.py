"""What comes before a run: its device, data, net and structure, found possible before anything is written."""

import copy
import os
import shlex
import shutil
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from splore.design.decompose import Summary, decompose
from splore.design.layers import decomposed_layers
from splore.design.prices import check_within
from splore.forward import evaluating
from splore.runs.branch import branches
from splore.runs.recipe import DataRecipe, HardwareRecipe, Recipe, design_of
from splore.runs.recipe_budget import budget_of, currency_of
from splore.runs.recipe_check import check_recipe
from splore.task import Preprocessing
from splore.vision import Data, build, open_data, read_weights, start_from, trained_with


@dataclass(frozen=True)
class Prepared:
    """A recipe on the machine that it runs on, ready to be trained.

    Attributes:
        recipe: the recipe.
        accelerator: the device and the processes that share the work.
        data: the images, this process's share of each batch.
        model: the net, on the device; decomposed unless the method is dense.
        dense: its dense twin with the same starting values, where one is to be trained.
        given: the net as it was given, where it starts from trained weights.
        teacher: the net to learn from, where finetune.teacher has its weights.
        structure: what was decomposed; None where the method is dense.
        notes: what there is to say of the weights that it starts from.
    """

    recipe: Recipe
    accelerator: Accelerator
    data: Data
    model: nn.Module
    dense: nn.Module | None
    given: nn.Module | None
    teacher: nn.Module | None
    structure: Summary | None
    notes: list[str]

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.accelerator.is_main_process

    @property
    def sharded(self) -> bool:
        """Whether the processes share out the training's state, too."""
        return self.recipe.hardware.parallel == "fsdp" and self.accelerator.num_processes > 1


def prepare(recipe: Recipe, out: Path) -> Prepared:
    """Opens the data, builds the net and decomposes it; `out` is where trackers will write.

    Raises:
        ValueError: a value that no run can have, a net that doesn't fit the data, a budget that can't be met.
        FileNotFoundError: missing data, a missing compiler.
        ImportError: a tracker, or a library of nets or data, that isn't installed.
    """
    check_recipe(recipe)
    hardware = recipe.hardware
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    accelerator = accelerator_of(hardware, out)
    layout = torch.channels_last if hardware.channels_last else torch.contiguous_format
    trained = images_of(recipe.model, recipe.pretrained or recipe.weights is not None, recipe.data.normalisation)
    if recipe.cut.ms is not None and accelerator.num_processes > 1:
        raise ValueError("cut.ms is timed, and processes would time it differently: run it in one process")
    data = open_split(recipe.data, recipe.seed, accelerator, layout, trained)
    torch.manual_seed(recipe.seed)
    published = recipe.pretrained and recipe.weights is None
    model = build(recipe.model, data.num_classes, data.image_shape[0], published)
    notes: list[str] = []
    if recipe.weights is not None:
        notes = start_from(model, read_weights(recipe.weights), f"the weights in {recipe.weights}")
    model.task = data.task  # type: ignore[assignment]
    model = model.to(accelerator.device)
    if hardware.channels_last:
        model = model.to(memory_format=torch.channels_last)
    check_outputs(model, data)
    dense = copy.deepcopy(model) if recipe.baseline or recipe.method == "dense" else None
    given = copy.deepcopy(model) if recipe.trained else None
    teacher = _teacher(recipe, model)
    structure = decompose(model, design_of(recipe)) if recipe.method != "dense" else None
    _check_budget(recipe, model, data.image_shape)
    return Prepared(recipe, accelerator, data, model, dense, given, teacher, structure, notes)


def _teacher(recipe: Recipe, model: nn.Module) -> nn.Module | None:
    """A copy of the dense net with the weights of finetune.teacher, all of them."""
    path = recipe.finetune.teacher
    if path is None or recipe.method == "dense":
        return None
    teacher = copy.deepcopy(model)
    start_from(teacher, read_weights(path), f"the teacher's weights in {path}", whole=True)
    return teacher


def fetch(images: DataRecipe) -> None:
    """Fetches a data set that is to be downloaded, in advance of the processes that will read it."""
    if images.download:
        open_data(images.name, images.root, images.batch_size, 0, torch.device("cpu"), workers=0, download=True)


def images_of(model: str, started: bool, normalisation: str) -> Preprocessing | None:
    """The preprocessing that the net was trained with, where the recipe wants it and the library tells it.

    `started` says whether the net starts from trained weights, by `pretrained` or `weights`.
    """
    if normalisation == "data" or (normalisation == "auto" and not started):
        return None
    found = trained_with(model)
    if found is None and normalisation == "net":
        raise ValueError(
            "data.normalisation: net holds for nets whose training timm or torchvision describe, not for "
            f"{model}: choose data"
        )
    return found


def open_split(
    images: DataRecipe,
    seed: int,
    accelerator: Accelerator,
    layout: torch.memory_format,
    trained: Preprocessing | None = None,
) -> Data:
    """The images that a recipe's `data` names; what is to be fetched is fetched by one process of each machine.

    `trained` is how those were preprocessed that the net was trained with.
    """
    with accelerator.local_main_process_first() if images.download else nullcontext():
        return open_data(
            images.name,
            images.root,
            batch_size=images.batch_size,
            seed=seed,
            device=accelerator.device,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            workers=images.workers,
            download=images.download,
            augment=None if images.augment == "usual" else images.augment,
            memory_format=layout,
            size=images.size,
            validation=images.validation,
            trained=trained,
        )


def check_outputs(model: nn.Module, data: Data) -> None:
    """Raises ValueError when a model's output is not one number per class of the data."""
    parameter = next(model.parameters(), torch.zeros(()))  # a compiled program has none
    try:
        with torch.no_grad(), evaluating(model):
            shape = tuple(model(parameter.new_zeros(1, *data.image_shape)).shape)
    except RuntimeError as error:
        raise ValueError(f"the model can't take images of shape {tuple(data.image_shape)}: {error}") from error
    if shape != (1, data.num_classes):
        raise ValueError(
            f"{data.name} has {data.num_classes} classes, but the model gives outputs of shape {shape[1:]} per image: "
            "choose the data or the model so that they agree"
        )


def _check_budget(recipe: Recipe, model: nn.Module, image_shape: tuple[int, ...]) -> None:
    """Raises ValueError for a budget that the cut of S can't meet, before the hours that come before the cut.

    Milliseconds aren't asked for: what a net without S takes is a timing, and no bound.
    """
    cut, currency = recipe.cut, currency_of(recipe.cut)
    sparse = any(layer.S is not None for layer in decomposed_layers(model).values())
    if not sparse or currency in (None, "ms") or not isinstance(cut.ranks, str):
        return
    without_S = copy.deepcopy(model)
    for layer in decomposed_layers(without_S).values():
        if layer.S is not None:
            layer.set_parts(layer.A, layer.B, torch.zeros_like(layer.S))
    try:
        for each in (recipe, *branches(recipe).values()):
            budget = budget_of(each, image_shape)
            assert budget is not None
            check_within(without_S, budget.prices(without_S), budget.allowed(model), without_L=cut.ranks == "shared")
    except ValueError as error:
        raise ValueError(f"cut.{currency}: {error}") from error


def accelerator_of(hardware: HardwareRecipe, out: Path) -> Accelerator:
    """The device and the processes that `hardware` names. Raises as `prepare` does."""
    AcceleratorState._reset_state()  # a process may make several runs, each of its own precision
    accelerator = Accelerator(
        cpu=hardware.device == "cpu",
        mixed_precision={"fp32": "no"}.get(hardware.precision, hardware.precision),
        log_with=list(hardware.trackers) or None,
        project_dir=str(out / "trackers"),
    )
    for missing in set(hardware.trackers) - {str(tracker) for tracker in accelerator.log_with}:
        raise ImportError(f"the tracker {missing} is not installed: pip install {missing}")
    if hardware.compile and accelerator.device.type == "cpu":
        _check_compiler()
    return accelerator


def _check_compiler() -> None:
    """Raises FileNotFoundError where the C++ compiler that torch.compile uses on a CPU is missing."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(shlex.split(compiler)[0]) is None:
        raise FileNotFoundError(
            f"hardware.compile needs a C++ compiler on a CPU, and there is no {compiler}: install it (apt-get install "
            "g++), name another one in the environment variable CXX, or set hardware.compile: false"
        )
