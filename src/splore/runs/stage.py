"""The training of one stage, from its start or from a checkpoint within it, with all that is shown and written."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from splore.measure.sparsity import kept_share, layer_scalars
from splore.runs.prepare import Prepared
from splore.runs.processes import average_statistics, common_score, first_says
from splore.runs.progress import Display
from splore.runs.record import STAGES, Record
from splore.runs.stop import StopRequest
from splore.train.checkpoint import set_random_state
from splore.train.loop import Clock, Diverged, Position, Stopped, check_not_diverged, fit, warm_cosine
from splore.train.losses import Loss
from splore.train.penalties import parameter_groups
from splore.train.shards import Shards, set_optimizer_state

Objective = Callable[[nn.Module, torch.optim.Optimizer], Loss]
"""Hangs what a stage adds to the steps of an optimiser on it, and returns the stage's loss."""

ASK = 50
"""Steps between the questions whether shards are to be written in a checkpoint."""


@dataclass(frozen=True)
class Schedule:
    """How long a stage trains, and how fast.

    Attributes:
        epochs: passes over the training images.
        lr: peak learning rate.
        warmup_epochs: epochs of linear warm-up before the cosine.
        final_lr: what the learning rate falls to.
        first_epoch: number of the stage's first epoch in the order of the data and in the trackers' steps.
    """

    epochs: int
    lr: float
    warmup_epochs: float
    final_lr: float = 0.0
    first_epoch: int = 0

    def rate(self, progress: float) -> float:
        """The learning rate at a progress from 0 to 1."""
        return warm_cosine(progress, self.lr, self.warmup_epochs / self.epochs, self.final_lr)


class Stage:
    """The training of `model` through the stage `name` of a run.

    Args:
        prepared: what is trained where.
        record: where the stage goes on from, and what it adds to.
        display: where its epochs are shown.
        stop: asked after each step.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        schedule: Schedule,
        prepared: Prepared,
        record: Record,
        display: Display,
        stop: StopRequest,
    ) -> None:
        self.name, self.model, self.schedule = name, model, schedule
        self.prepared, self.record, self.display, self.stop = prepared, record, display, stop
        self.shards: Shards | None = None
        self.shown, self.saved = Clock(1.0), Clock(60 * prepared.recipe.hardware.checkpoint_minutes)

    def train(self, objective: Objective, begin_epoch: Callable[[int], None] = lambda epoch: None) -> None:
        """Takes the steps that are left; `begin_epoch` is called before an epoch's first."""
        model, accelerator, data = self.model, self.prepared.accelerator, self.prepared.data
        recipe = self.prepared.recipe
        resumed = self.record.within(self.name)
        if resumed and resumed["optimizer"] is None:  # the checkpoint of its very start
            resumed = None
        torch.manual_seed(recipe.seed + STAGES.index(self.name))
        random.seed(recipe.seed + STAGES.index(self.name))
        if resumed:
            model.load_state_dict(resumed["model"])
        if self.prepared.sharded:
            self.shards = Shards(model, accelerator.device)
        net = self.shards.net if self.shards else model
        self.optimizer = self._new_optimizer(net)
        position = self._go_on(resumed) if resumed else Position()
        loss = objective(net, self.optimizer)
        if recipe.hardware.compile:
            torch.compiler.reset()  # what was compiled for the stage before counts against the limit of recompilations
            model.compile(dynamic=False)
        replicated = accelerator.num_processes > 1 and not self.prepared.sharded
        trained = accelerator.prepare(model) if replicated else net
        batch = min(recipe.data.batch_size, data.train.samples) // accelerator.num_processes
        alone_on_gpu = accelerator.device.type == "cuda" and accelerator.num_processes == 1

        def begin(epoch: int) -> None:
            begin_epoch(epoch)
            if self.shards:
                self.shards.scatter()

        steps = len(data.train)
        self.display.begin(self.name, self.schedule.epochs, steps, position.epoch * steps + position.step)
        self._start_timing()
        try:
            fit(
                trained,
                data.train,
                accelerator.prepare(self.optimizer),
                accelerator,
                epochs=self.schedule.epochs,
                learning_rate=self.schedule.rate,
                loss=loss,
                position=position,
                first_epoch=self.schedule.first_epoch,
                compiled_batch=batch,
                graphs=recipe.hardware.cuda_graphs and alone_on_gpu,
                begin_epoch=begin,
                after_step=self._after_step,
                end_epoch=self._end_epoch,
            )
        except Diverged as error:
            raise Diverged(f"stage {self.name}, epoch {position.epoch + 1}: {error}") from error
        if replicated:
            accelerator.unwrap_model(trained, keep_fp32_wrapper=False)
            del trained
        if accelerator.num_processes > 1:
            accelerator.free_memory()  # the next stage wraps the model anew

    def _new_optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        train = self.prepared.recipe.train
        nuclear = train.l1 * train.nuclear if self.name == "train" else 0.0
        with_l1 = self.name == "train" and train.l1 > 0
        groups = parameter_groups(net, train.weight_decay, nuclear, decay_sparse=not with_l1)
        if train.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.schedule.lr, betas=(train.momentum, 0.999))
        fused = self.shards is None and self.prepared.accelerator.device.type == "cuda"
        return torch.optim.SGD(
            groups, lr=self.schedule.lr, momentum=train.momentum, nesterov=train.momentum > 0, fused=fused or None
        )

    def _go_on(self, checkpoint: dict) -> Position:
        """Puts the optimiser and the generators back to where a checkpoint found them."""
        try:
            set_optimizer_state(self.optimizer, checkpoint["optimizer"])
        except ValueError as error:
            raise ValueError(
                "the checkpoint is of a version of splore that grouped the parameters otherwise: finish this run with "
                "that version, or begin it anew in another folder"
            ) from error
        set_random_state(checkpoint["random"])
        sums = checkpoint["sums"]  # those of all processes
        return Position(checkpoint["epoch"], checkpoint["step"], sums if self.prepared.main else torch.zeros_like(sums))

    def _after_step(self, at: Position) -> None:
        accelerator = self.prepared.accelerator
        self._steps += 1
        if self.shown.due() and self.display.live:
            loss_sum, correct, samples = at.sums.tolist()
            kept = self._shown_share(kept_share(self.model))
            self.display.update(at.epoch, at.step, loss_sum / samples, 100 * correct / samples, kept, self._speed())
        if self._save_is_due(at) or self.stop.asked:
            self._gather()
            # Without shards no process waits for another here, and the first one's share stands for all.
            sums = accelerator.reduce(at.sums) if self.shards else at.sums * accelerator.num_processes
            self.record.checkpoint(self.name, self.model, self.optimizer, Position(at.epoch, at.step, sums))
        if self.stop.asked:
            raise Stopped

    def _end_epoch(self, at: Position) -> None:
        prepared, model = self.prepared, self.model
        self._gather()
        check_not_diverged(model, at.sums)
        number, last = at.epoch + 1, at.epoch + 1 == self.schedule.epochs
        due = last or number % prepared.recipe.evaluate_every == 0
        tested = common_score(model, prepared.data.watched, prepared.accelerator) if due else None
        loss_sum, correct, samples = prepared.accelerator.reduce(at.sums).tolist()
        figures = {"loss": loss_sum / samples, "accuracy": 100 * correct / samples, "kept": kept_share(model)}
        accuracy = tested.accuracy if tested else None
        test = {"test_accuracy": accuracy, "test_loss": tested.loss} if tested else {}
        kept = self._shown_share(figures["kept"])
        self.display.epoch(at.epoch, figures["loss"], figures["accuracy"], accuracy, kept, self._speed())
        self.record.journal.add(
            stage=self.name, epoch=number, **figures, **test, images_per_second=round(self._speed(), 1)
        )
        scalars = {f"{self.name}/{name}": value for name, value in (figures | test).items()} | layer_scalars(model)
        prepared.accelerator.log(scalars, step=self.schedule.first_epoch + number)
        if not last:
            self.record.checkpoint(self.name, model, self.optimizer, Position(number))
        self._start_timing()

    def _shown_share(self, kept: float) -> float | None:
        """The share of the parameters kept as people see it: of a dense net there is none."""
        return None if self.name == "dense" else kept

    def _gather(self) -> None:
        """Brings the model up to date with its shards, and the statistics of all processes together."""
        if self.shards:
            self.shards.gather()
            average_statistics(self.model, self.prepared.accelerator)

    def _save_is_due(self, at: Position) -> bool:
        if not self.shards:
            return self.saved.due()
        # The processes must gather together. Asking takes a wait for the device: not at every step.
        asked = at.step % ASK == 0 or not self.saved.seconds
        return asked and first_says(self.saved.due(), self.prepared.accelerator)

    def _start_timing(self) -> None:
        self._began, self._steps = time.monotonic(), 0

    def _speed(self) -> float:
        """Images per second since the epoch began, or was gone on with."""
        return self._steps * self.prepared.recipe.data.batch_size / max(time.monotonic() - self._began, 1e-9)
