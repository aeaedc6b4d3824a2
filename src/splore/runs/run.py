"""One run of the method: the dense baseline, then stages a, b and c, from a recipe to a compressed file."""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from splore.design.decompose import decompose
from splore.design.layers import decomposed_layers
from splore.measure.accuracy import Score, evaluate
from splore.measure.cost import cost
from splore.measure.report import stage_table
from splore.modelfile.file import dense_bytes, load, save
from splore.postprocess import prune as cuts
from splore.postprocess import rank_cut as ranks
from splore.postprocess.recalibrate import recalibrate
from splore.runs.job import Job, check_outputs, open_split
from splore.runs.recipe import DataRecipe, Recipe, check, design_of
from splore.runs.record import FILES, Record
from splore.runs.stage import Stage
from splore.train.loop import Position
from splore.train.losses import Loss, cross_entropy, distilled
from splore.train.masks import MaskHold, hold_masks
from splore.train.penalties import L1, FrobeniusDecay, Scaling
from splore.vision.nets import build


class Run:
    """A recipe on its way through the stages; everything it writes lies in the folder `out`, claimed before."""

    def __init__(self, recipe: Recipe, out: Path, resume: bool) -> None:
        check(recipe)
        self.recipe, self.out, self.resume = recipe, out, resume
        self.job = Job(recipe, out)
        self._entropy = cross_entropy(recipe.train.label_smoothing)

    def execute(self, begin: Callable[[], None] = lambda: None) -> dict:
        """Runs what is left of the run; returns the summary that is written to summary.json.

        `begin` is called before anything is written, once data, model and budgets have been found to be possible.
        """
        recipe, job = self.recipe, self.job
        image_shape = job.data.image_shape
        torch.manual_seed(recipe.seed)
        model = build(recipe.model, job.data.num_classes, image_shape[0], recipe.pretrained)
        model = model.to(job.accelerator.device)
        if recipe.hardware.channels_last:
            model = model.to(memory_format=torch.channels_last)
        check_outputs(model, job.data)
        dense = copy.deepcopy(model) if recipe.baseline or recipe.method == "dense" else None
        structure = decompose(model, design_of(recipe)) if recipe.method != "dense" else None
        self._check_budget(model)
        begin()
        job.record = Record(self.out, self.resume, job.main)
        job.accelerator.init_trackers("splore", {"recipe": str(asdict(recipe))})
        with job.display, job.stoppable():
            if self.resume:
                job.display.say(job.record.origin())
            teacher = None if dense is None else self._dense(dense)
            if structure is not None:
                job.display.say(str(structure))
                self._train(model)
                self._finetune(model, teacher)
            job.display.say(stage_table(job.record.table()))
            files = ", ".join(FILES[row["stage"]] for row in job.record.rows)
            job.display.say(f"files in {self.out}: {files}, summary.json")
        job.accelerator.end_training()
        return job.record.summarise(recipe, cost(model, image_shape), dense_bytes(model))

    def _check_budget(self, model: nn.Module) -> None:
        """Raises ValueError for a budget that the cut of S can't meet, before the hours that come before the cut."""
        cut = self.recipe.cut
        sparse = any(layer.S is not None for layer in decomposed_layers(model).values())
        if not sparse or cut.params is None or not isinstance(cut.ranks, str):
            return
        try:
            cuts.entries_within(model, cut.params, without_L=cut.ranks == "shared")
        except ValueError as error:
            raise ValueError(f"cut.params: {error}") from error

    # The stages

    def _dense(self, model: nn.Module) -> nn.Module:
        path = self.out / FILES["dense"]
        if self.job.record.is_over("dense"):
            return load(path, model)
        wish = self.recipe.train
        epochs = wish.epochs + (self.recipe.finetune.epochs if self.recipe.method != "dense" else 0)
        Stage(self.job, "dense", model, wish, epochs).train(lambda net, optimizer: self._entropy)
        self._row("dense", model)
        self.job.record.checkpoint("train", None, None, Position())
        return model

    def _train(self, model: nn.Module) -> None:
        if self.job.record.is_over("train"):
            return
        wish = self.recipe.train

        def prepare(net: nn.Module, optimizer: torch.optim.Optimizer) -> Loss:
            l1, decay = L1(net, wish.l1, Scaling(wish.l1_scaling)), FrobeniusDecay(net, wish.frobenius)
            optimizer.register_step_pre_hook(lambda *_: decay.add_gradients())
            if wish.proximal:
                optimizer.register_step_post_hook(lambda opt, *_: l1.shrink(_reach(opt)))
                return self._entropy
            # Its gradient apart from that of the loss, for that is taken of whole parameters, and S may be in shards.
            optimizer.register_step_pre_hook(lambda *_: l1.add_gradients())
            return lambda outputs, labels, images: self._entropy(outputs, labels, images) + l1.penalty().detach()

        Stage(self.job, "train", model, wish, wish.epochs, final_lr=wish.final_lr).train(prepare)
        self._row("after training", model)
        self.job.record.checkpoint("finetune", model, None, Position())

    def _finetune(self, model: nn.Module, teacher: nn.Module | None) -> None:
        record, wish, steps = self.job.record, self.recipe.finetune, self.recipe.cut.steps
        resumed = record.within("finetune") or record.within("done")
        if resumed:
            model.load_state_dict(resumed["model"])
        if record.is_over("finetune"):
            return
        if not resumed or resumed["optimizer"] is None:
            self._cut_ranks(model)
        held: list[MaskHold] = []

        def prepare(net: nn.Module, optimizer: torch.optim.Optimizer) -> Loss:
            decay = FrobeniusDecay(net, self.recipe.train.frobenius)
            optimizer.register_step_pre_hook(lambda *_: decay.add_gradients())
            held.append(hold_masks(net, optimizer))
            if wish.distill and teacher is not None:
                return distilled(self._entropy, teacher, wish.distill, wish.temperature, self.job.accelerator.autocast)
            return self._entropy

        def cut(epoch: int) -> None:
            if epoch < steps:
                self._cut(model, (epoch + 1) / steps)
                for hold in held:
                    hold.refresh()
                if epoch == steps - 1:
                    self._row("after the cut", model)

        if wish.epochs == 0:
            cut(0)
        else:
            stage = Stage(self.job, "finetune", model, wish, wish.epochs, self.recipe.train.epochs)
            stage.train(prepare, begin_epoch=cut)
        self._row("after fine-tuning", model)
        record.checkpoint("done", model, None, Position())

    def _cut_ranks(self, model: nn.Module) -> None:
        wish = self.recipe.cut
        if not isinstance(wish.ranks, str):
            found = ranks.cut_ranks(model, wish.ranks)
        elif wish.ranks == "shared" and wish.params is not None and self.recipe.method == "low-rank+sparse":
            found = ranks.share_budget(model, wish.params, getattr(cuts, wish.score))
        else:
            return
        counts = sorted(Counter(found.values()).items(), reverse=True)
        said = ", ".join(f"{rank} in {count} layer{'s' * (count > 1)}" for rank, count in counts)
        self.job.display.say(f"ranks of L from here on: {said}")

    def _cut(self, model: nn.Module, progress: float) -> None:
        """The cut of S that is due at a progress from 0 to 1 of its schedule, and batch norm measured anew."""
        wish = self.recipe.cut
        if any(layer.S is not None for layer in decomposed_layers(model).values()):
            if wish.energy is not None:
                cuts.prune(model, energy=cuts.cubic(progress, 1.0, wish.energy))
            elif wish.params is not None:
                trained = self.job.record.row("after training") or {"params_kept": 1.0}
                goal = cuts.cubic(progress, min(max(trained["params_kept"], wish.params), 1.0), wish.params)
                cuts.prune(model, params=goal, score=getattr(cuts, wish.score))
        if wish.recalibrate_batches:
            batches = (x for x, _ in islice(self.job.data.train.epoch(0), wish.recalibrate_batches))
            recalibrate(model, batches)
            self.job.agree(model)

    def _row(self, name: str, model: nn.Module) -> None:
        """Measures the model, saves it, and adds a row to the table of stages."""
        job = self.job
        score = job.evaluate(model)
        if job.main:
            save(model, self.out / FILES[name])
        job.accelerator.wait_for_everyone()
        price = cost(model, job.data.image_shape)
        job.record.add_row(name, score, price)
        job.display.say(f"{name}: {score.accuracy:.2f} % on {score.samples:,} test images, {price.params:,} parameters")


def evaluate_on(model: nn.Module, wish: DataRecipe, device: str) -> Score:
    """The score of a model on the test images that a recipe's `data` names; device is auto or cpu."""
    accelerator = Accelerator(cpu=device == "cpu")
    model.to(accelerator.device)
    data = open_split(wish, 0, accelerator, torch.channels_last)
    check_outputs(model, data)
    return evaluate(model, data.test)


def _reach(optimizer: torch.optim.Optimizer) -> float:
    """How far a steady unit gradient moves a parameter in one step of SGD: lr / (1 - momentum)."""
    group = optimizer.param_groups[0]
    return group["lr"] / max(1 - group["momentum"], 1e-3)
