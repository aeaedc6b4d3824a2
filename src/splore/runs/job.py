"""What the stages of a run share: the recipe, the processes, the data, the display and the record."""

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast
from torch import Tensor, nn

from splore.measure.accuracy import Score, evaluate
from splore.runs.progress import Display
from splore.runs.recipe import DataRecipe, HardwareRecipe, Recipe
from splore.runs.record import Record
from splore.vision.data import Data, open_data


class Job:
    """A recipe on the machine that it runs on.

    Attributes:
        recipe: the recipe.
        out: the folder that everything is written to.
        accelerator: the device and the processes that share the work.
        main: whether this process is the one that writes and speaks.
        sharded: whether the processes share out the training's state, too.
        data: the images, this process's share of each batch.
        display: what people see.
        record: what has been done so far; set once the run has begun.
        stop_asked: whether Ctrl-C or SIGTERM has asked the run to stop.
    """

    record: Record

    def __init__(self, recipe: Recipe, out: Path) -> None:
        hardware = recipe.hardware
        if hardware.threads:
            torch.set_num_threads(hardware.threads)
        self.recipe, self.out = recipe, out
        self.accelerator = _accelerator(hardware, out)
        self.main = self.accelerator.is_main_process
        layout = torch.channels_last if hardware.channels_last else torch.contiguous_format
        self.data = open_split(recipe.data, recipe.seed, self.accelerator, layout)
        self.sharded = hardware.parallel == "fsdp" and self.accelerator.num_processes > 1
        self.display = Display(self.main)
        self.stop_asked = False

    def agree(self, model: nn.Module) -> None:
        """Averages the batch-norm statistics that each process has gathered on its share of the images."""
        if self.accelerator.num_processes > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.accelerator.reduce(buffer, "mean"))

    def evaluate(self, model: nn.Module) -> Score:
        """The score on the test images, on which all processes agree."""
        self.agree(model)

        def total(sums: Tensor) -> Tensor:
            return self.accelerator.reduce(sums)

        # What is compiled is the training step: a few batches are not worth the compilation of another mode.
        with torch.compiler.set_stance("force_eager"):
            return evaluate(model, self.data.test, total, self.accelerator.autocast)

    def agree_on(self, answer: bool) -> bool:
        """The first process's answer, on all."""
        return bool(broadcast(torch.tensor(int(answer), device=self.accelerator.device)))

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask the loop to stop at the end of its step, with a checkpoint; a second one kills."""
        if self.accelerator.num_processes > 1:  # the processes would stop at different steps; torchrun ends them all
            yield
            return

        def ask(number: int, frame: object) -> None:
            self.stop_asked = True
            signal.signal(number, signal.default_int_handler)

        with on_stop(ask):
            yield


@contextmanager
def on_stop(ask: Callable[[int, object], None]) -> Iterator[None]:
    """Within the block, Ctrl-C and SIGTERM call `ask`."""
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_split(wish: DataRecipe, seed: int, accelerator: Accelerator, layout: torch.memory_format) -> Data:
    """The images that a recipe's `data` names; what is to be fetched is fetched by one process of each machine."""
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
            memory_format=layout,
        )


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


def _accelerator(hardware: HardwareRecipe, out: Path) -> Accelerator:
    AcceleratorState._reset_state()  # a process may make several runs, each of its own precision
    accelerator = Accelerator(
        cpu=hardware.device == "cpu",
        mixed_precision={"fp32": "no"}.get(hardware.precision, hardware.precision),
        log_with=list(hardware.trackers) or None,
        project_dir=str(out),
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
