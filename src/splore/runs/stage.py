"""The training of one stage, from its start or from a checkpoint within it, with all that is shown and written."""

import random
import time
from collections.abc import Callable

import torch
from torch import nn

from splore.measure.sparsity import kept_share, layer_scalars
from splore.runs.job import Job
from splore.runs.recipe import FinetuneRecipe, TrainRecipe
from splore.runs.record import STAGES
from splore.train.checkpoint import set_random_state
from splore.train.loop import Clock, Diverged, Position, Stopped, check_finite, fit, warm_cosine
from splore.train.losses import Loss
from splore.train.penalties import parameter_groups
from splore.train.shards import Shards, set_optimizer_state

Prepare = Callable[[nn.Module, torch.optim.Optimizer], Loss]
"""Hangs what a stage adds to the steps of an optimiser on it, and returns the stage's loss."""

ASK = 50
"""Steps between the questions whether shards are to be written in a checkpoint."""


class Stage:
    """The training of `model` through the stage `name` of a job.

    Args:
        wish: the learning rate and its warm-up.
        epochs: passes over the training images.
        first_epoch: number of the stage's first epoch in the order of the data and in the trackers' steps.
        final_lr: what the learning rate falls to.
    """

    def __init__(
        self,
        job: Job,
        name: str,
        model: nn.Module,
        wish: TrainRecipe | FinetuneRecipe,
        epochs: int,
        first_epoch: int = 0,
        final_lr: float = 0.0,
    ) -> None:
        self.job, self.name, self.model, self.wish = job, name, model, wish
        self.epochs, self.first_epoch, self.final_lr = epochs, first_epoch, final_lr
        self.shards: Shards | None = None
        self.shown, self.saved = Clock(1.0), Clock(60 * job.recipe.hardware.checkpoint_minutes)

    def train(self, prepare: Prepare, begin_epoch: Callable[[int], None] = lambda epoch: None) -> None:
        """Takes the steps that are left; `begin_epoch` is called before an epoch's first."""
        job, recipe, wish, model = self.job, self.job.recipe, self.wish, self.model
        resumed = job.record.within(self.name)
        if resumed and resumed["optimizer"] is None:  # the checkpoint of its very start
            resumed = None
        torch.manual_seed(recipe.seed + STAGES.index(self.name))
        random.seed(recipe.seed + STAGES.index(self.name))
        if resumed:
            model.load_state_dict(resumed["model"])
        if job.sharded:
            self.shards = Shards(model, job.accelerator.device)
        net = self.shards.net if self.shards else model
        nuclear = recipe.train.l1 * recipe.train.nuclear if self.name == "train" else 0.0
        self.optimizer = torch.optim.SGD(
            parameter_groups(net, recipe.train.weight_decay, nuclear),
            lr=wish.lr,
            momentum=recipe.train.momentum,
            nesterov=recipe.train.momentum > 0,
        )
        position = Position()
        if resumed:
            set_optimizer_state(self.optimizer, resumed["optimizer"])
            sums = resumed["sums"] if job.main else torch.zeros_like(resumed["sums"])  # they are those of all processes
            position = Position(resumed["epoch"], resumed["step"], sums)
            set_random_state(resumed["random"])
        loss = prepare(net, self.optimizer)
        if recipe.hardware.compile:
            torch.compiler.reset()  # what was compiled for the stage before counts against the limit of recompilations
            model.compile(dynamic=False)
        replicated = job.accelerator.num_processes > 1 and not job.sharded
        trained = job.accelerator.prepare(model) if replicated else net

        def begin(epoch: int) -> None:
            begin_epoch(epoch)
            if self.shards:
                self.shards.scatter()

        steps = len(job.data.train)
        job.display.begin(self.name, self.epochs, steps, position.epoch * steps + position.step)
        self._start_timing()
        try:
            fit(
                trained,
                job.data.train,
                job.accelerator.prepare(self.optimizer),
                job.accelerator,
                epochs=self.epochs,
                learning_rate=lambda progress: warm_cosine(
                    progress, wish.lr, wish.warmup_epochs / self.epochs, self.final_lr
                ),
                loss=loss,
                position=position,
                first_epoch=self.first_epoch,
                compiled_batch=min(recipe.data.batch_size, job.data.train.samples) // job.accelerator.num_processes,
                begin_epoch=begin,
                after_step=self._after_step,
                end_epoch=self._end_epoch,
            )
        except Diverged as error:
            raise Diverged(f"stage {self.name}, epoch {position.epoch + 1}: {error}") from error
        if replicated:
            job.accelerator.unwrap_model(trained, keep_fp32_wrapper=False)
            del trained
        if job.accelerator.num_processes > 1:
            job.accelerator.free_memory()  # the next stage wraps the model anew

    def _after_step(self, at: Position) -> None:
        job = self.job
        self._steps += 1
        if self.shown.due() and job.display.live:
            loss_sum, correct, samples = at.sums.tolist()
            kept = kept_share(self.model)
            job.display.update(at.epoch, at.step, loss_sum / samples, 100 * correct / samples, kept, self._speed())
        if self._save_is_due(at) or job.stop_asked:
            self._gather()
            # Without shards no process waits for another here, and the first one's share stands for all.
            sums = job.accelerator.reduce(at.sums) if self.shards else at.sums * job.accelerator.num_processes
            job.record.checkpoint(self.name, self.model, self.optimizer, Position(at.epoch, at.step, sums))
        if job.stop_asked:
            raise Stopped

    def _end_epoch(self, at: Position) -> None:
        job, model = self.job, self.model
        self._gather()
        check_finite(model, at.sums)
        number, last = at.epoch + 1, at.epoch + 1 == self.epochs
        tested = job.evaluate(model) if last or number % job.recipe.evaluate_every == 0 else None
        loss_sum, correct, samples = job.accelerator.reduce(at.sums).tolist()
        figures = {"loss": loss_sum / samples, "accuracy": 100 * correct / samples, "kept": kept_share(model)}
        accuracy = tested.accuracy if tested else None
        test = {"test_accuracy": accuracy, "test_loss": tested.loss} if tested else {}
        job.display.epoch(at.epoch, figures["loss"], figures["accuracy"], accuracy, figures["kept"], self._speed())
        job.record.journal.add(
            stage=self.name, epoch=number, **figures, **test, images_per_second=round(self._speed(), 1)
        )
        scalars = {f"{self.name}/{name}": value for name, value in (figures | test).items()} | layer_scalars(model)
        job.accelerator.log(scalars, step=self.first_epoch + number)
        if not last:
            job.record.checkpoint(self.name, model, self.optimizer, Position(number))
        self._start_timing()

    def _gather(self) -> None:
        """Brings the model up to date with its shards, and the statistics of all processes together."""
        if self.shards:
            self.shards.gather()
            self.job.agree(self.model)

    def _save_is_due(self, at: Position) -> bool:
        if not self.shards:
            return self.saved.due()
        # The processes must gather together. Asking takes a wait for the device: not at every step.
        return (at.step % ASK == 0 or not self.saved.seconds) and self.job.agree_on(self.saved.due())

    def _start_timing(self) -> None:
        self._began, self._steps = time.monotonic(), 0

    def _speed(self) -> float:
        """Images per second since the epoch began, or was gone on with."""
        return self._steps * self.job.recipe.data.batch_size / max(time.monotonic() - self._began, 1e-9)
