"""One run of the method: the dense baseline, then stages a, b and c, from a recipe to a compressed file."""

import copy
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from splore.design.layers import decomposed_layers
from splore.design.prices import Priced, said
from splore.measure.accuracy import Score
from splore.measure.cost import cost
from splore.measure.tables import stage_table
from splore.modelfile.file import dense_bytes, load, save
from splore.postprocess import prune as cuts
from splore.postprocess import rank_cut as ranks
from splore.postprocess import scores
from splore.postprocess.recalibrate import recalibrate
from splore.runs.eight_bits import to_eight_bits
from splore.runs.prepare import Prepared
from splore.runs.processes import average_statistics, common_score
from splore.runs.progress import Display
from splore.runs.recipe_budget import as_it_is, budget_of, currency_of
from splore.runs.record import FILES, Record
from splore.runs.stage import Schedule, Stage
from splore.runs.stop import StopRequest
from splore.train.attach import attach
from splore.train.loop import Position
from splore.train.losses import Loss, cross_entropy, distilled
from splore.train.penalties import Scaling


class Run:
    """A prepared recipe on its way through the stages; everything it writes lies in the folder `out`, claimed before.

    With `resume` it goes on from the newest whole checkpoint that the folder holds.
    """

    def __init__(self, prepared: Prepared, out: Path, resume: bool = False) -> None:
        self.prepared, self.recipe, self.out = prepared, prepared.recipe, out
        self.record = Record(out, resume, prepared.main)
        self.display = Display(prepared.main, "test" if prepared.data.validation is None else "validation")
        self.stop = StopRequest()
        self._resumed = resume
        self._budget = budget_of(self.recipe, prepared.data.image_shape)
        self._path: Priced | None = None  # to the budget, where S is cut in several steps
        self._entropy = cross_entropy(self.recipe.train.label_smoothing)

    def execute(self) -> dict:
        """Runs what is left of the run; returns the summary that is written to summary.json."""
        prepared, display, accelerator = self.prepared, self.display, self.prepared.accelerator
        model = prepared.model
        accelerator.init_trackers("splore", {"recipe": str(asdict(self.recipe))})
        # Several processes would stop at different steps; torchrun ends them all.
        alone = accelerator.num_processes == 1
        with display, self.stop.listening() if alone else nullcontext():
            if self._resumed:
                display.say(self.record.origin())
            for note in prepared.notes:
                display.say(note)
            if prepared.given is not None and self.record.row("as given") is None:
                self._row("as given", prepared.given)
                if prepared.structure is not None:
                    self._row("as decomposed", model)
            if prepared.teacher is not None and not self._resumed:
                score = common_score(prepared.teacher, prepared.data.test, accelerator)
                display.say(f"teacher: {score.accuracy:.2f} % on {score.samples:,} test images")
            baseline = None if prepared.dense is None else self._dense(prepared.dense)
            if prepared.structure is not None:
                display.say(str(prepared.structure))
                self._train(model)
                self._finetune(model, prepared.teacher or baseline)
                self._quantize(model)
            display.say(stage_table(self.record.table()))
            if any(row["params_kept"] > 1 for row in self.record.rows):
                display.say("until S is cut, A·B comes on top of it: more than 100 % may be kept")
            layers = decomposed_layers(model).values()
            if self.recipe.method == "low-rank+sparse" and layers and not any(layer.rank for layer in layers):
                display.say("no layer kept a low-rank part: the result is sparse only, W = S")
            files = ", ".join(FILES[row["stage"]] for row in self.record.rows)
            display.say(f"files in {self.out}: {files}, summary.json")
        accelerator.end_training()
        summary = self.record.summarise(self.recipe, cost(model, prepared.data.image_shape), dense_bytes(model))
        if prepared.main and self.recipe.hardware.keep_checkpoints:
            self.record.checkpoints.tidy()
        elif prepared.main:
            self.record.checkpoints.remove()
        return summary

    # The stages

    def _stage(self, name: str, model: nn.Module, schedule: Schedule) -> Stage:
        return Stage(name, model, schedule, self.prepared, self.record, self.display, self.stop)

    def _dense(self, model: nn.Module) -> nn.Module:
        path = self.out / FILES["dense"]
        if self.record.is_over("dense"):
            return load(path, model)
        train = self.recipe.train
        epochs = train.epochs + (self.recipe.finetune.epochs if self.recipe.method != "dense" else 0)
        schedule = Schedule(epochs, train.lr, train.warmup_epochs)
        self._stage("dense", model, schedule).train(lambda net, optimizer: self._entropy)
        self._row("dense", model)
        self.record.checkpoint("train", None, None, Position())
        return model

    def _train(self, model: nn.Module) -> None:
        if self.record.is_over("train"):
            return
        train = self.recipe.train

        def objective(net: nn.Module, optimizer: torch.optim.Optimizer) -> Loss:
            scaling = Scaling(train.l1_scaling)
            l1 = attach(
                net,
                optimizer,
                l1=train.l1,
                frobenius=train.frobenius,
                scaling=scaling,
                proximal=train.proximal,
                density=train.density,
                steps=train.epochs * len(self.prepared.data.train),
            ).l1
            if train.proximal:
                return self._entropy
            # The loss shows the l1, whose gradient is added to S by itself, for S may be in shards.
            return lambda outputs, labels, images: self._entropy(outputs, labels, images) + l1.penalty().detach()

        schedule = Schedule(train.epochs, train.lr, train.warmup_epochs, train.final_lr)
        self._stage("train", model, schedule).train(objective)
        self._row("after training", model)
        self.record.checkpoint("finetune", model, None, Position())

    def _finetune(self, model: nn.Module, teacher: nn.Module | None) -> None:
        record, tune, steps = self.record, self.recipe.finetune, self.recipe.cut.steps
        resumed = record.within("finetune") or record.within("done")
        if resumed:
            model.load_state_dict(resumed["model"])
        if record.is_over("finetune"):
            return
        if not resumed or resumed["optimizer"] is None:
            self._cut_ranks(model)

        def objective(net: nn.Module, optimizer: torch.optim.Optimizer) -> Loss:
            attach(net, optimizer, frobenius=self.recipe.train.frobenius)
            if tune.distill and teacher is not None:
                autocast = self.prepared.accelerator.autocast
                return distilled(self._entropy, teacher, tune.distill, tune.temperature, autocast)
            return self._entropy

        def cut(epoch: int) -> None:
            if epoch < steps:
                self._cut(model, (epoch + 1) / steps)
                if epoch == steps - 1:
                    self._row("after the cut", model)

        if tune.epochs == 0:
            cut(0)
        else:
            schedule = Schedule(tune.epochs, tune.lr, tune.warmup_epochs, first_epoch=self.recipe.train.epochs)
            self._stage("finetune", model, schedule).train(objective, begin_epoch=cut)
        self._row("after fine-tuning", model)
        record.checkpoint("done", model, None, Position())

    def _cut_ranks(self, model: nn.Module) -> None:
        config = self.recipe.cut
        if not isinstance(config.ranks, str):
            found = ranks.cut_ranks(model, config.ranks)
        elif config.ranks == "shared" and self._budget is not None and self.recipe.method == "low-rank+sparse":
            found = ranks.share_budget(model, budget=self._budget, score=getattr(scores, config.score))
        else:
            return
        counts = sorted(Counter(found.values()).items(), reverse=True)
        said = ", ".join(f"{rank} in {count} layer{'s' * (count > 1)}" for rank, count in counts)
        self.display.say(f"ranks of L from here on: {said}")

    def _cut(self, model: nn.Module, progress: float) -> None:
        """The cut of S that is due at a progress from 0 to 1 of its schedule, and batch norm measured anew."""
        config = self.recipe.cut
        if any(layer.S is not None for layer in decomposed_layers(model).values()):
            if config.energy is not None:
                cuts.prune(model, energy=cuts.cubic(progress, 1.0, config.energy))
            else:
                self._cut_to_budget(model, progress)
        if config.recalibrate_batches:
            batches = (x for x, _ in islice(self.prepared.data.train.epoch(0), config.recalibrate_batches))
            recalibrate(model, batches)
            average_statistics(model, self.prepared.accelerator)

    def _cut_to_budget(self, model: nn.Module, progress: float) -> None:
        """Cuts S on the way to the budget, by the prices that hold there, and in the end to it."""
        budget, score = self._budget, getattr(scores, self.recipe.cut.score)
        if budget is None:
            return
        if progress < 1:
            if self._path is None:
                self._path = cuts.settled(model, budget, score)
            first = (self.record.row("after training") or {}).get("cost") or self._path.account.of(model)
            goal = cuts.cubic(progress, max(first, self._path.amount), self._path.amount)
            budget = Priced(self._path.account, goal)
        with warnings.catch_warnings(record=True) as missed:
            warnings.simplefilter("always", cuts.BudgetWarning)
            cuts.prune(model, budget=budget, score=score)
        if progress == 1:
            for each in missed:
                if issubclass(each.category, cuts.BudgetWarning):
                    self.display.say(f"cut.{currency_of(self.recipe.cut)}: {each.message}")

    def _quantize(self, model: nn.Module) -> None:
        """Eight bits, beside the net in float32. A run that is interrupted here begins it again."""
        if self.recipe.quantize.images and self.record.row("in eight bits") is None:
            net = copy.deepcopy(model)
            data, accelerator = self.prepared.data, self.prepared.accelerator
            score = to_eight_bits(net, self.recipe, data, accelerator, self.display, self.stop)
            self._row("in eight bits", net, score)

    def _row(self, name: str, model: nn.Module, score: Score | None = None) -> None:
        """Measures the model, unless its score is known, saves it, and adds a row to the table of stages."""
        prepared = self.prepared
        score = score or common_score(model, prepared.data.test, prepared.accelerator)
        if prepared.main:
            save(model, self.out / FILES[name])
        prepared.accelerator.wait_for_everyone()
        found = cost(model, prepared.data.image_shape)
        paid, said_paid = {}, ""
        if self._budget is not None and decomposed_layers(model):
            currency, now = currency_of(self.recipe.cut), as_it_is(self._budget)
            budget = now if name == "in eight bits" else self._budget
            amount = budget.measure(model)
            paid = {"currency": currency, "cost": amount}
            if currency != "params":
                said_paid = f", {said(amount)} {currency}{'' if budget == now else ' in eight bits'}"
        self.record.add_row(name, score, found, paid)
        self.display.say(
            f"{name}: {score.accuracy:.2f} % on {score.samples:,} test images, {found.params:,} parameters{said_paid}"
        )
