"""One run of the method: the dense baseline, then stages a, b and c, from a recipe to a compressed file."""

import copy
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from splore.data import Data, open_data
from splore.deploy.file import load, save
from splore.design.cost import cost
from splore.design.decompose import decompose
from splore.design.layers import decomposed_layers
from splore.measure.evaluate import Score, evaluate
from splore.measure.journal import Journal
from splore.measure.progress import Display
from splore.measure.provenance import provenance
from splore.measure.report import stage_table
from splore.postprocess import prune as cuts
from splore.postprocess.recalibrate import recalibrate
from splore.recipe import DataRecipe, FinetuneRecipe, Recipe, TrainRecipe, check, design_of
from splore.train.checkpoint import Checkpoints, random_state, set_random_state
from splore.train.loop import Clock, Position, Stopped, check_finite, fit, warm_cosine
from splore.train.masks import MaskHold, hold_masks
from splore.train.regularise import L1, FrobeniusDecay, Scaling, parameter_groups
from splore.zoo import build

STAGES = ("dense", "train", "finetune")
FILES = {
    "dense": "dense.safetensors",
    "after training": "trained.safetensors",
    "after the cut": "cut.safetensors",
    "after fine-tuning": "model.safetensors",
}
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


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
            log_with=hardware.trackers or None,
            project_dir=str(out),
        )
        self.main = self.accelerator.is_main_process
        self.data = _open_data(recipe.data, recipe.seed, self.accelerator)
        self.checkpoints = Checkpoints(out / "checkpoints")
        self.state = self.checkpoints.load() if resume else None
        self.journal = Journal(out / "metrics.jsonl", self.state["journal"] if self.state else 0, write=self.main)
        self.rows: list[dict] = self.state["rows"] if self.state else []
        self.seconds: float = self.state["seconds"] if self.state else 0.0
        self.started = time.monotonic()
        self.display = Display(self.main)
        self.stop_asked = False

    def execute(self) -> dict:
        """Runs what is left of the run; returns the summary that is written to summary.json."""
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        model = build(recipe.model, self.data.num_classes, self.data.image_shape[0], recipe.pretrained)
        model = model.to(self.accelerator.device)
        if recipe.hardware.channels_last:
            model = model.to(memory_format=torch.channels_last)
        check_outputs(model, self.data)
        self.accelerator.init_trackers("splore", {"recipe": json.dumps(asdict(recipe), default=str)})
        with self.display, self._stoppable():
            teacher = None
            if recipe.baseline or recipe.method == "dense":
                teacher = self._dense(copy.deepcopy(model))
            if recipe.method != "dense":
                summary = decompose(model, design_of(recipe))
                self.display.say(summary)
                self._train(model)
                self._finetune(model, teacher)
            result = self._summary(model)
            self.display.say(stage_table(self.rows))
            self.display.say(
                f"files in {self.out}: {', '.join(FILES[row['stage']] for row in self.rows)}, summary.json"
            )
        self.accelerator.end_training()
        return result

    # The stages

    def _dense(self, model: nn.Module) -> nn.Module:
        path = self.out / FILES["dense"]
        if self._over("dense"):
            return load(path, model)
        epochs = self.recipe.train.epochs + (self.recipe.finetune.epochs if self.recipe.method != "dense" else 0)
        self._fit("dense", model, self.recipe.train, epochs, _cross_entropy(self.recipe.train.label_smoothing))
        self._row("dense", model)
        self._checkpoint("train", None, None, Position())
        return model

    def _train(self, model: nn.Module) -> None:
        if self._over("train"):
            return
        wish = self.recipe.train
        l1 = L1(model, wish.l1, Scaling(wish.l1_scaling))
        decay = FrobeniusDecay(model, wish.frobenius)
        entropy = _cross_entropy(wish.label_smoothing)

        def loss(outputs: Tensor, labels: Tensor, images: Tensor) -> Tensor:
            return entropy(outputs, labels, images) + l1.penalty()

        def hang_on(optimizer: torch.optim.Optimizer) -> None:
            optimizer.register_step_pre_hook(lambda *_: decay.add_gradients())
            if wish.proximal:
                optimizer.register_step_post_hook(lambda opt, *_: l1.shrink(opt.param_groups[0]["lr"]))

        self._fit("train", model, wish, wish.epochs, entropy if wish.proximal else loss, hang_on)
        self._row("after training", model)
        self._checkpoint("finetune", model, None, Position())

    def _finetune(self, model: nn.Module, teacher: nn.Module | None) -> None:
        wish, steps = self.recipe.finetune, self.recipe.cut.steps
        if self.state and self.state["stage"] == "finetune":
            model.load_state_dict(self.state["model"])
        else:
            self.state = None
        fresh = not self.state or (self.state["epoch"], self.state["step"]) == (0, 0)
        if fresh and self.recipe.cut.rank_energy is not None:
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

        loss = _cross_entropy(self.recipe.train.label_smoothing)
        if wish.distill and teacher is not None:
            loss = _distilled(loss, teacher.eval().requires_grad_(False), wish, self.accelerator)
        if wish.epochs == 0:
            cut(0)
        else:
            self._fit("finetune", model, wish, wish.epochs, loss, hang_on, cut, self.recipe.train.epochs)
        self._row("after fine-tuning", model)

    def _cut(self, model: nn.Module, progress: float) -> None:
        """The cut of S that is due at a progress from 0 to 1 of its schedule, and batch norm measured anew."""
        wish = self.recipe.cut
        if any(layer.S is not None for layer in decomposed_layers(model).values()):
            if wish.energy is not None:
                cuts.prune(model, energy=cuts.cubic(progress, 1.0, wish.energy))
            elif wish.params is not None:
                now = cost(model, self.data.image_shape).params_kept
                goal = cuts.cubic(progress, max(now, wish.params), wish.params)
                cuts.prune(model, params=goal, score=getattr(cuts, wish.score))
        if wish.recalibrate_batches:
            batches = (x for x, _ in islice(self.data.train.epoch(0), wish.recalibrate_batches))
            recalibrate(model, batches)

    # What every stage does

    def _over(self, stage: str) -> bool:
        return self.state is not None and STAGES.index(self.state["stage"]) > STAGES.index(stage)

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
        resumed = self.state if self.state and self.state["stage"] == stage else None
        position = Position()
        torch.manual_seed(self.recipe.seed + STAGES.index(stage))
        random.seed(self.recipe.seed + STAGES.index(stage))
        if resumed and resumed["model"] is not None:
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
                kept = self._kept(model)
                self.display.update(at.epoch, at.step, loss_sum / samples, 100 * correct / samples, kept, speed())
            if save_now.due() or self.stop_asked:
                self._checkpoint(stage, model, optimizer, at)
            if self.stop_asked:
                raise Stopped

        def end_epoch(at: Position) -> None:
            check_finite(model, at.sums)
            last = at.epoch + 1 == epochs
            tested = self._evaluate(model) if last or (at.epoch + 1) % self.recipe.evaluate_every == 0 else None
            loss_sum, correct, samples = self.accelerator.reduce(at.sums).tolist()
            figures = {"loss": loss_sum / samples, "accuracy": 100 * correct / samples, "kept": self._kept(model)}
            accuracy = tested.accuracy if tested else None
            test = {"test_accuracy": accuracy, "test_loss": tested.loss} if tested else {}
            self.display.epoch(at.epoch, figures["loss"], figures["accuracy"], accuracy, figures["kept"], speed())
            self.journal.add(stage=stage, epoch=at.epoch + 1, **figures, **test, images_per_second=round(speed(), 1))
            scalars = {f"{stage}/{name}": value for name, value in (figures | test).items()} | _layer_scalars(model)
            self.accelerator.log(scalars, step=first_epoch + at.epoch + 1)
            if not last:
                self._checkpoint(stage, model, optimizer, Position(at.epoch + 1))
            seen[:] = [time.monotonic(), 0]

        self.display.begin(stage, epochs, len(batches), position.epoch * len(batches) + position.step)
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
        if parallel is not model:
            self.accelerator.unwrap_model(parallel, keep_fp32_wrapper=False)

    def _evaluate(self, model: nn.Module) -> Score:
        def total(sums: Tensor) -> Tensor:
            return self.accelerator.reduce(sums)

        return evaluate(model, self.data.test, total, self.accelerator.autocast)

    def _kept(self, model: nn.Module) -> float:
        """The share of the dense net's parameters that are not zero; waits for the device."""
        layers = decomposed_layers(model).values()
        empty = sum(layer.S.numel() - int(layer.S.count_nonzero()) for layer in layers if layer.S is not None)
        dense, held = cuts.budget_entries(model, 1.0)
        sparse = sum(layer.S.numel() for layer in layers if layer.S is not None)
        return (held + sparse - empty) / dense

    def _row(self, name: str, model: nn.Module) -> None:
        """Measures the model, saves it, and adds a row to the table of stages."""
        path = self.out / FILES[name]
        score = self._evaluate(model)
        if self.main:
            save(model, path)
        self.accelerator.wait_for_everyone()
        price = cost(model, self.data.image_shape)
        row = {
            "stage": name,
            "accuracy": score.accuracy,
            "top5": score.top5,
            "loss": score.loss,
            "params": price.params,
            "macs": price.macs,
            "bytes": path.stat().st_size,
            "params_kept": price.params_kept,
            "macs_kept": price.macs_kept,
        }
        self.rows = [old for old in self.rows if old["stage"] != name] + [row]
        self.journal.add(row=row)
        self.display.say(
            f"{name}: {score.accuracy:.2f} % on {score.samples:,} test images, {price.params:,} parameters"
        )

    def _checkpoint(
        self, stage: str, model: nn.Module | None, optimizer: torch.optim.Optimizer | None, at: Position
    ) -> None:
        """Writes where the run is; never a state that is not finite."""
        if model is not None:
            check_finite(model, at.sums)
        if self.main:
            self.checkpoints.save(
                {
                    "stage": stage,
                    "epoch": at.epoch,
                    "step": at.step,
                    "sums": at.sums,
                    "model": model.state_dict() if model is not None else None,
                    "optimizer": optimizer.state_dict() if optimizer is not None else None,
                    "random": random_state(),
                    "journal": self.journal.size,
                    "rows": self.rows,
                    "seconds": self.seconds + time.monotonic() - self.started,
                }
            )
        if optimizer is None:
            self.state = None  # a stage has ended: the next one starts anew

    def _summary(self, model: nn.Module) -> dict:
        recipe, rows = self.recipe, {row["stage"]: row for row in self.rows}
        keys = ("accuracy", "top5", "params", "macs", "bytes")
        summary: dict = {"dense": _part(rows.get("dense"), keys)}
        if recipe.method != "dense":
            compressed = rows["after fine-tuning"]
            summary["compressed"] = _part(compressed, (*keys, "params_kept", "macs_kept"))
            if summary["dense"] is None:
                price = cost(model, self.data.image_shape)
                summary["dense"] = {"accuracy": None, "top5": None, "params": price.dense_params,
                                    "macs": price.dense_macs, "bytes": price.dense_bytes}  # fmt: skip
        summary |= {
            "stages": self.rows,
            "seed": recipe.seed,
            "seconds": self.seconds + time.monotonic() - self.started,
            "recipe": asdict(recipe),
            **provenance(),
        }
        if self.main:
            temporary = self.out / "summary.json.tmp"
            temporary.write_text(json.dumps(summary, indent=2, default=str) + "\n")
            os.replace(temporary, self.out / "summary.json")
        return summary

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


def check_outputs(model: nn.Module, data: Data) -> None:
    """Raises ValueError when a model's output is not one number per class of the data."""
    parameter = next(model.parameters())
    training = model.training
    try:
        with torch.no_grad():
            shape = tuple(model.eval()(parameter.new_zeros(1, *data.image_shape)).shape)
    except RuntimeError as error:
        raise ValueError(f"the model can't take images of shape {tuple(data.image_shape)}: {error}") from error
    model.train(training)
    if shape != (1, data.num_classes):
        raise ValueError(
            f"{data.name} has {data.num_classes} classes, but the model gives outputs of shape {shape[1:]} per image: "
            "choose the data or the model so that they agree"
        )


def evaluate_file(file: str, wish: DataRecipe, device: str) -> Score:
    """The score of a model file on the test images that a recipe's `data` names; device is auto or cpu."""
    accelerator = Accelerator(cpu=device == "cpu")
    model = load(file).to(accelerator.device)
    data = _open_data(wish, 0, accelerator)
    check_outputs(model, data)
    return evaluate(model, data.test)


def _open_data(wish: DataRecipe, seed: int, accelerator: Accelerator) -> Data:
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


def _cross_entropy(smoothing: float) -> Loss:
    return lambda outputs, labels, images: F.cross_entropy(outputs, labels, label_smoothing=smoothing)


def _distilled(loss: Loss, teacher: nn.Module, wish: FinetuneRecipe, accelerator: Accelerator) -> Loss:
    """The loss with a share of the teacher's softened outputs for target (Hinton et al., 2015)."""

    def distilled(outputs: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad(), accelerator.autocast():
            target = teacher(images)
        soft = F.kl_div(
            F.log_softmax(outputs / wish.temperature, 1),
            F.log_softmax(target.float() / wish.temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - wish.distill) * loss(outputs, labels, images) + wish.distill * wish.temperature**2 * soft

    return distilled


def _layer_scalars(model: nn.Module) -> dict[str, float]:
    """Density of S, its energy and the rank of L, by layer."""
    scalars: dict[str, float] = {}
    for name, layer in decomposed_layers(model).items():
        scalars[f"rank/{name}"] = layer.rank
        if layer.S is not None:
            S = layer.S.detach()
            scalars[f"density/{name}"] = float(S.count_nonzero()) / S.numel()
            scalars[f"energy/{name}"] = float(S.square().sum())
    return scalars


def _part(row: dict | None, keys: tuple[str, ...]) -> dict | None:
    return None if row is None else {key: row[key] for key in keys}
