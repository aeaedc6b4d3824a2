"""Whether a recipe is one that a run can have, before any work is done."""

import math

from splore.runs.recipe import Recipe, design_of
from splore.runs.recipe_budget import check_budgets
from splore.runs.recipe_data import check_data


def check_recipe(recipe: Recipe) -> None:
    """Raises ValueError for values that no run can have, before any work is done."""
    train, cut, tune = recipe.train, recipe.cut, recipe.finetune
    at_least = [
        ("train.epochs", train.epochs, 1),
        ("finetune.epochs", tune.epochs, 0),
        ("evaluate_every", recipe.evaluate_every, 1),
        ("quantize.images", recipe.quantize.images, 0),
        ("quantize.epochs", recipe.quantize.epochs, 0),
        ("cut.steps", cut.steps, 1),
        ("cut.recalibrate_batches", cut.recalibrate_batches, 0),
        ("train.l1", train.l1, 0),
        ("train.frobenius", train.frobenius, 0),
        ("train.nuclear", train.nuclear, 0),
        ("train.weight_decay", train.weight_decay, 0),
        ("train.warmup_epochs", train.warmup_epochs, 0),
        ("finetune.warmup_epochs", tune.warmup_epochs, 0),
        ("seed", recipe.seed, 0),
        ("hardware.threads", recipe.hardware.threads or 1, 1),
        ("cut.batch", cut.batch, 1),
        ("cut.threads", cut.threads or 1, 1),
        ("hardware.checkpoint_minutes", recipe.hardware.checkpoint_minutes, 0),
    ]
    for name, value, least in at_least:
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, found {value}")
    shares = [(f"cut.{name}", getattr(cut, name)) for name in ("params", "bytes", "macs", "energy", "ranks")]
    for name, share in (*shares, ("train.density", train.density)):
        if isinstance(share, float | int) and not 0 < share <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, found {share}")
    rates = [("train.lr", train.lr), ("finetune.lr", tune.lr), ("finetune.temperature", tune.temperature)]
    for name, rate in (*rates, ("quantize.lr", recipe.quantize.lr)):
        if not 0 < rate < math.inf:
            raise ValueError(f"{name} must be above 0, found {rate}")
    if not 0 <= train.final_lr <= train.lr:
        raise ValueError(f"train.final_lr must lie between 0 and train.lr ({train.lr}), found {train.final_lr}")
    parts = [("train.momentum", train.momentum), ("train.label_smoothing", train.label_smoothing)]
    for name, part in (*parts, ("finetune.distill", tune.distill)):
        if not 0 <= part <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, found {part}")
    if tune.distill and not recipe.baseline and tune.teacher is None:
        raise ValueError(
            "finetune.distill needs a dense net to learn from: set baseline: true, or finetune.teacher to its weights"
        )
    if tune.teacher is not None and not tune.distill:
        raise ValueError("finetune.teacher has no weight in the loss: set finetune.distill above 0, 0.5 for instance")
    if cut.steps > max(tune.epochs, 1):
        raise ValueError(f"cut.steps ({cut.steps}) can't exceed finetune.epochs ({tune.epochs})")
    if recipe.quantize.epochs and not recipe.quantize.images:
        raise ValueError("quantize.epochs needs ranges to round by: set quantize.images, 256 for instance")
    if recipe.hardware.parallel == "fsdp" and recipe.quantize.epochs:
        raise ValueError("hardware.parallel: fsdp doesn't go with quantize.epochs: use ddp, or splore quantize after")
    if recipe.hardware.parallel == "fsdp" and recipe.hardware.compile:
        raise ValueError("hardware.parallel: fsdp doesn't go with hardware.compile: true, set one of them otherwise")
    if recipe.hardware.parallel == "fsdp" and recipe.hardware.precision == "fp16":
        raise ValueError("hardware.parallel: fsdp doesn't go with hardware.precision: fp16, use bf16 or fp32")
    check_budgets(cut, recipe.method)
    check_data(recipe.data)
    design_of(recipe)
