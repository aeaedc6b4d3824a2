"""One run of the method: the dense baseline, then stages a, b and c, from a recipe to a compressed file."""

import copy
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from splore.data import Data, open_data
from splore.deploy.file import dense_bytes, load, save
from splore.design.cost import cost
from splore.design.decompose import decompose
from splore.design.layers import decomposed_layers
from splore.measure.evaluate import Score, check_outputs, evaluate
from splore.measure.progress import Display
from splore.measure.report import stage_table
from splore.measure.structure import kept_share, layer_scalars
from splore.postprocess import prune as cuts
from splore.postprocess.recalibrate import recalibrate
from splore.recipe import DataRecipe, FinetuneRecipe, Recipe, TrainRecipe, check, design_of
from splore.record import FILES, STAGES, Record
from splore.train.checkpoint import set_random_state
from splore.train.loop import Clock, Diverged, Position, Stopped, check_finite, fit, warm_cosine
from splore.train.losses import Loss, cross_entropy, distilled
from splore.train.masks import MaskHold, hold_masks
from splore.train.regularise import L1, FrobeniusDecay, Scaling, parameter_groups
from splore.zoo import build


class Run:
    """A recipe on its way through the stages; everything it writes lies in the folder `out`, claimed before."""

    def __init__(self, recipe: Recipe, out: Path, resume: bool) -> None:
        check(recipe)
        self.recipe, self.out = recipe, out
        hardware = recipe.hardware
        if hardware.threads:
            torch.set_num_threads(hardware.threads)
        AcceleratorState._reset_state()  # a process may make several runs, each of its own precision
        self.accelerator = Accelerator(
            cpu=hardware.device == "cpu",
            mixed_precision={"fp32": "no"}.get(hardware.precision, hardware.precision),
            log_with=list(hardware.trackers) or None,
            project_dir=str(out),
        )
        for missing in set(hardware.trackers) - {str(tracker) for tracker in self.accelerator.log_with}:
            raise ImportError(f"the tracker {missing} is not installed: pip install {missing}")
        self.resume, self.main = resume, self.accelerator.is_main_process
        self.data = _open_data(recipe.data, recipe.seed, self.accelerator)
        self.display = Display(self.main)
        self.stop_asked = False

    def execute(self, begin: Callable[[], None] = lambda: None) -> dict:
        """Runs what is left of the run; returns the summary that is written to summary.json.

        `begin` is called before anything is written, once data, model and budgets have been found to be possible.
        """
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        model = build(recipe.model, self.data.num_classes, self.data.image_shape[0], recipe.pretrained)
        model = model.to(self.accelerator.device)
        if recipe.hardware.channels_last:
            model = model.to(memory_format=torch.channels_last)
        check_outputs(model, self.data)
        dense = copy.deepcopy(model) if recipe.baseline or recipe.method == "dense" else None
        structure = decompose(model, design_of(recipe)) if recipe.method != "dense" else None
        self._check_budget(model)
        begin()
        self.record = Record(self.out, self.resume, self.main)
        self.accelerator.init_trackers("splore", {"recipe": str(asdict(recipe))})
        with self.display, self._stoppable():
            if self.resume:
                self.display.say(self.record.origin())
            teacher = None if dense is None else self._dense(dense)
            if structure is not None:
                self.display.say(str(structure))
                self._train(model)
                self._finetune(model, teacher)
            self.display.say(stage_table(self.record.table()))
            files = ", ".join(FILES[row["stage"]] for row in self.record.rows)
            self.display.say(f"files in {self.out}: {files}, summary.json")
        self.accelerator.end_training()
        return self.record.summarise(recipe, cost(model, self.data.image_shape), dense_bytes(model))

    def _check_budget(self, model: nn.Module) -> None:
        """Raises ValueError for a budget that the cut of S can't meet, before the hours that come before the cut."""
        cut = self.recipe.cut
        sparse = any(layer.S is not None for layer in decomposed_layers(model).values())
        if not sparse or cut.params is None or cut.rank_energy is not None:
            return
        allowed, held = cuts.budget_entries(model, cut.params)
        if allowed < held:
            raise ValueError(
                f"cut.params: {cut.params} allows {allowed:,} parameters, but without any S the net still holds "
                f"{held:,}: raise it, lower design.rank, or decompose more layers"
            )

    # The stages

    def _dense(self, model: nn.Module) -> nn.Module:
        path = self.out / FILES["dense"]
        if self.record.is_over("dense"):
            return load(path, model)
        epochs = self.recipe.train.epochs + (self.recipe.finetune.epochs if self.recipe.method != "dense" else 0)
        self._fit("dense", model, self.recipe.train, epochs, cross_entropy(self.recipe.train.label_smoothing))
        self._row("dense", model)
        self.record.checkpoint("train", None, None, Position())
        return model

    def _train(self, model: nn.Module) -> None:
        if self.record.is_over("train"):
            return
        wish = self.recipe.train
        l1 = L1(model, wish.l1, Scaling(wish.l1_scaling))
        decay = FrobeniusDecay(model, wish.frobenius)
        entropy = cross_entropy(wish.label_smoothing)

        def loss(outputs: Tensor, labels: Tensor, images: Tensor) -> Tensor:
            return entropy(outputs, labels, images) + l1.penalty()

        def hang_on(optimizer: torch.optim.Optimizer) -> None:
            optimizer.register_step_pre_hook(lambda *_: decay.add_gradients())
            if wish.proximal:
                optimizer.register_step_post_hook(lambda opt, *_: l1.shrink(_reach(opt)))

        self._fit("train", model, wish, wish.epochs, entropy if wish.proximal else loss, hang_on)
        self._row("after training", model)
        self.record.checkpoint("finetune", model, None, Position())

    def _finetune(self, model: nn.Module, teacher: nn.Module | None) -> None:
        wish, steps = self.recipe.finetune, self.recipe.cut.steps
        resumed = self.record.within("finetune") or self.record.within("done")
        if resumed:
            model.load_state_dict(resumed["model"])
        if self.record.is_over("finetune"):
            return
        if (not resumed or resumed["optimizer"] is None) and self.recipe.cut.rank_energy is not None:
            cuts.cut_ranks(model, self.recipe.cut.rank_energy)
        held: list[MaskHold] = []
        decay = FrobeniusDecay(model, self.recipe.train.frobenius)

        def hang_on(optimizer: torch.optim.Optimizer) -> None:
            optimizer.register_step_pre_hook(lambda *_: decay.add_gradients())
            held.append(hold_masks(model, optimizer))

        def cut(epoch: int) -> None:
            if epoch < steps:
                self._cut(model, (epoch + 1) / steps)
                for hold in held:
                    hold.refresh()
                if epoch == steps - 1:
                    self._row("after the cut", model)

        loss = cross_entropy(self.recipe.train.label_smoothing)
        if wish.distill and teacher is not None:
            loss = distilled(loss, teacher, wish.distill, wish.temperature, self.accelerator.autocast)
        if wish.epochs == 0:
            cut(0)
        else:
            self._fit("finetune", model, wish, wish.epochs, loss, hang_on, cut, self.recipe.train.epochs)
        self._row("after fine-tuning", model)
        self.record.checkpoint("done", model, None, Position())

    def _cut(self, model: nn.Module, progress: float) -> None:
        """The cut of S that is due at a progress from 0 to 1 of its schedule, and batch norm measured anew."""
        wish = self.recipe.cut
        if any(layer.S is not None for layer in decomposed_layers(model).values()):
            if wish.energy is not None:
                cuts.prune(model, energy=cuts.cubic(progress, 1.0, wish.energy))
            elif wish.params is not None:
                trained = self.record.row("after training") or {"params_kept": 1.0}
                goal = cuts.cubic(progress, min(max(trained["params_kept"], wish.params), 1.0), wish.params)
                cuts.prune(model, params=goal, score=getattr(cuts, wish.score))
        if wish.recalibrate_batches:
            batches = (x for x, _ in islice(self.data.train.epoch(0), wish.recalibrate_batches))
            recalibrate(model, batches)
            self._agree(model)

    # What every stage does

    def _fit(
        self,
        stage: str,
        model: nn.Module,
        wish: TrainRecipe | FinetuneRecipe,
        epochs: int,
        loss: Loss,
        hang_on: Callable[[torch.optim.Optimizer], None] = lambda optimizer: None,
        begin_epoch: Callable[[int], None] = lambda epoch: None,
        first_epoch: int = 0,
    ) -> None:
        """Trains `model` through a stage, from its start or from the checkpoint within it."""
        train, batches = self.recipe.train, self.data.train
        resumed = self.record.within(stage)
        position = Position()
        torch.manual_seed(self.recipe.seed + STAGES.index(stage))
        random.seed(self.recipe.seed + STAGES.index(stage))
        if resumed and resumed["optimizer"] is not None:
            model.load_state_dict(resumed["model"])
        optimizer = torch.optim.SGD(
            parameter_groups(model, train.weight_decay),
            lr=wish.lr,
            momentum=train.momentum,
            nesterov=train.momentum > 0,
        )
        if resumed and resumed["optimizer"] is not None:
            optimizer.load_state_dict(resumed["optimizer"])
            position = Position(resumed["epoch"], resumed["step"], resumed["sums"])
            set_random_state(resumed["random"])
        hang_on(optimizer)
        if self.recipe.hardware.compile:
            torch.compiler.reset()  # what was compiled for the stage before counts against the limit of recompilations
            model.compile()
        parallel = self.accelerator.prepare(model) if self.accelerator.num_processes > 1 else model
        report, save_now = Clock(1.0), Clock(60 * self.recipe.hardware.checkpoint_minutes)
        seen = [time.monotonic(), 0]

        def speed() -> float:
            return seen[1] * self.recipe.data.batch_size / max(time.monotonic() - seen[0], 1e-9)

        def after_step(at: Position) -> None:
            seen[1] += 1
            if report.due() and self.display.live:
                loss_sum, correct, samples = at.sums.tolist()
                kept = kept_share(model)
                self.display.update(at.epoch, at.step, loss_sum / samples, 100 * correct / samples, kept, speed())
            if save_now.due() or self.stop_asked:
                self.record.checkpoint(stage, model, optimizer, at)
            if self.stop_asked:
                raise Stopped

        def end_epoch(at: Position) -> None:
            check_finite(model, at.sums)
            last = at.epoch + 1 == epochs
            tested = self._evaluate(model) if last or (at.epoch + 1) % self.recipe.evaluate_every == 0 else None
            loss_sum, correct, samples = self.accelerator.reduce(at.sums).tolist()
            figures = {"loss": loss_sum / samples, "accuracy": 100 * correct / samples, "kept": kept_share(model)}
            accuracy = tested.accuracy if tested else None
            test = {"test_accuracy": accuracy, "test_loss": tested.loss} if tested else {}
            self.display.epoch(at.epoch, figures["loss"], figures["accuracy"], accuracy, figures["kept"], speed())
            self.record.journal.add(
                stage=stage, epoch=at.epoch + 1, **figures, **test, images_per_second=round(speed(), 1)
            )
            scalars = {f"{stage}/{name}": value for name, value in (figures | test).items()} | layer_scalars(model)
            self.accelerator.log(scalars, step=first_epoch + at.epoch + 1)
            if not last:
                self.record.checkpoint(stage, model, optimizer, Position(at.epoch + 1))
            seen[:] = [time.monotonic(), 0]

        self.display.begin(stage, epochs, len(batches), position.epoch * len(batches) + position.step)
        try:
            fit(
                parallel,
                batches,
                self.accelerator.prepare(optimizer),
                self.accelerator,
                epochs=epochs,
                learning_rate=lambda progress: warm_cosine(progress, wish.lr, wish.warmup_epochs / epochs),
                loss=loss,
                position=position,
                first_epoch=first_epoch,
                begin_epoch=begin_epoch,
                after_step=after_step,
                end_epoch=end_epoch,
            )
        except Diverged as error:
            raise Diverged(f"stage {stage}, epoch {position.epoch + 1}: {error}") from error
        if parallel is not model:
            self.accelerator.unwrap_model(parallel, keep_fp32_wrapper=False)
            del parallel
            self.accelerator.free_memory()  # the next stage wraps the model anew

    def _agree(self, model: nn.Module) -> None:
        """Averages the batch-norm statistics that each process has gathered on its share of the images."""
        if self.accelerator.num_processes > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.accelerator.reduce(buffer, "mean"))

    def _evaluate(self, model: nn.Module) -> Score:
        self._agree(model)

        def total(sums: Tensor) -> Tensor:
            return self.accelerator.reduce(sums)

        return evaluate(model, self.data.test, total, self.accelerator.autocast)

    def _row(self, name: str, model: nn.Module) -> None:
        """Measures the model, saves it, and adds a row to the table of stages."""
        path = self.out / FILES[name]
        score = self._evaluate(model)
        if self.main:
            save(model, path)
        self.accelerator.wait_for_everyone()
        price = cost(model, self.data.image_shape)
        self.record.add_row(name, score, price)
        self.display.say(
            f"{name}: {score.accuracy:.2f} % on {score.samples:,} test images, {price.params:,} parameters"
        )

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask the loop to stop at the end of its step, with a checkpoint; a second one kills."""
        if self.accelerator.num_processes > 1:  # the processes would stop at different steps; torchrun ends them all
            yield
            return

        def ask(number: int, frame: object) -> None:
            self.stop_asked = True
            signal.signal(number, signal.default_int_handler)

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def evaluate_on(model: nn.Module, wish: DataRecipe, device: str) -> Score:
    """The score of a model on the test images that a recipe's `data` names; device is auto or cpu."""
    accelerator = Accelerator(cpu=device == "cpu")
    model.to(accelerator.device)
    data = _open_data(wish, 0, accelerator)
    check_outputs(model, data)
    return evaluate(model, data.test)


def _open_data(wish: DataRecipe, seed: int, accelerator: Accelerator) -> Data:
    # What is to be fetched is fetched by one process of each machine.
    with accelerator.local_main_process_first() if wish.download else nullcontext():
        return open_data(
            wish.name,
            wish.root,
            batch_size=wish.batch_size,
            seed=seed,
            device=accelerator.device,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            workers=wish.workers,
            download=wish.download,
        )


def _reach(optimizer: torch.optim.Optimizer) -> float:
    """How far a steady unit gradient moves a parameter in one step of SGD: lr / (1 - momentum)."""
    group = optimizer.param_groups[0]
    return group["lr"] / max(1 - group["momentum"], 1e-3)
