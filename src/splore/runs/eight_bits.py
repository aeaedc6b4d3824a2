"""A trained net in eight bits: ranges measured, fine-tuned as it will be rounded, and rounded."""

import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from splore.design.layers import decomposed_layers
from splore.engine.quantise import Ranges
from splore.measure.accuracy import Score
from splore.measure.sparsity import kept_share
from splore.postprocess.quantize import input_ranges, measured, quantize
from splore.runs.processes import average_statistics, common_score
from splore.runs.progress import Display
from splore.runs.recipe import Recipe
from splore.runs.stop import StopRequest
from splore.train.attach import attach
from splore.train.loop import Position, Stopped, check_not_diverged, fit, warm_cosine
from splore.train.losses import cross_entropy
from splore.train.penalties import parameter_groups
from splore.train.rounding import rounding
from splore.vision import Data


def to_eight_bits(
    model: nn.Module, recipe: Recipe, data: Data, accelerator: Accelerator, display: Display, stop: StopRequest
) -> Score:
    """Quantises a model in place as `recipe.quantize` says, and scores it as it is then rounded.

    The masks are held. All that it does is a function of the model, the recipe and the data.
    """
    ranges = _ranges(model, recipe, data, accelerator)
    inputs = input_ranges(model, _images(data), ranges)
    if recipe.quantize.epochs:
        _finetune(model, inputs, recipe, data, accelerator, display, stop)
        ranges = _ranges(model, recipe, data, accelerator)
    quantize(model, _images(data), ranges=ranges)
    with rounding(model, input_ranges(model, _images(data), ranges)):
        return common_score(model, data.test, accelerator)


def _images(data: Data) -> Iterator[Tensor]:
    """Training images, the same at each call."""
    return (x for x, _ in data.train.epoch(0))


def _ranges(model: nn.Module, recipe: Recipe, data: Data, accelerator: Accelerator) -> Ranges:
    """The first process's ranges, on all."""
    config = recipe.quantize
    found = [measured(model, _images(data), images=config.images, rule=config.ranges)]
    return broadcast_object_list(found)[0] if accelerator.num_processes > 1 else found[0]


def _finetune(
    model: nn.Module,
    inputs: Ranges,
    recipe: Recipe,
    data: Data,
    accelerator: Accelerator,
    display: Display,
    stop: StopRequest,
) -> None:
    config, train = recipe.quantize, recipe.train
    torch.manual_seed(recipe.seed)
    groups = parameter_groups(model, train.weight_decay, decay_sparse=True)
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=train.momentum, nesterov=train.momentum > 0)
    if decomposed_layers(model):
        attach(model, optimizer, frobenius=train.frobenius)
    several = accelerator.num_processes > 1
    net = accelerator.prepare(model) if several else model
    began = time.monotonic()

    def step(at: Position) -> None:
        if stop.asked:
            raise Stopped

    def end(at: Position) -> None:
        nonlocal began
        average_statistics(model, accelerator)
        check_not_diverged(model, at.sums)
        loss, correct, samples = accelerator.reduce(at.sums).tolist()
        speed = samples / max(time.monotonic() - began, 1e-9)
        display.epoch(at.epoch, loss / samples, 100 * correct / samples, None, kept_share(model), speed)
        began = time.monotonic()

    display.begin("quantize", config.epochs, len(data.train), 0)
    with rounding(model, inputs):
        fit(
            net,
            data.train,
            accelerator.prepare(optimizer),
            accelerator,
            epochs=config.epochs,
            learning_rate=lambda progress: warm_cosine(progress, config.lr, 0.0),
            loss=cross_entropy(train.label_smoothing),
            position=Position(),
            first_epoch=train.epochs + recipe.finetune.epochs,
            after_step=step,
            end_epoch=end,
        )
    if several:
        accelerator.unwrap_model(net, keep_fp32_wrapper=False)
        accelerator.free_memory()
