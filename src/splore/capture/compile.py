"""From a PyTorch model to an engine: captured, lowered, fused, and timed against the model itself."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splore.capture.any_size import any_size as sizes_of
from splore.capture.export import Captured, capture
from splore.capture.torch_segment import TorchSegment
from splore.design.wrappers import network_within
from splore.engine.any_size import AnySize, resized
from splore.engine.engine import Engine
from splore.engine.flow import Packed
from splore.engine.program import Floats, Program, Shape
from splore.engine.program_segment import median_ms
from splore.engine.quantise import Ranges, quantise
from splore.task import task_of


def compile(
    model: nn.Module,
    example_input: Tensor | Sequence[Tensor],
    threads: int | None = None,
    batches: Iterable[int] = (),
    deterministic: bool = False,
    any_size: bool = False,
) -> Engine:
    """Compiles a model in eval mode for inputs like the example (N, C, H, W) or (N, C), of any batch size.

    Of one within `torch.compile`, DataParallel, DDP, `AveragedModel` or timm's averages, the network within is taken.
    The model may hold decomposed layers, dense ones, or both; what the engine does not know runs in torch, or in
    ONNX Runtime where that is installed and faster. Every choice is timed on this machine, with `threads` threads
    (default: every core that this process may use) and with the batch size of the example, and those of `batches`:
    other sizes run by the plans of these. Where the dense network is faster there, it runs there, and the summary says
    so. `deterministic` gives an image the same result to the bit, whatever the batch and the engine, and never runs in
    torch. The engine is a snapshot: it stays what it is when the model is trained further. A model with
    `activation_ranges` (see `splore.quantize`) runs in eight bits, or in float32 where that is faster.

    A model of several inputs takes a tuple of examples, and its engine as many arguments.

    Images of another height or width are captured and planned anew when they come, for which the engine keeps a copy of
    the model; one that was loaded from a file or a pickle has none. With `any_size` the network is captured at a few
    sizes at once, and the engine is one for all of them: so is the file that `save` writes.

    Raises ValueError where the model is not in eval mode, not on the CPU, not in float32, or can't be exported, where
    a part of it needs torch but the result shall be deterministic, and where it can't be of `any_size`.
    """
    model = network_within(model)
    examples = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    recompile = None if any_size else Recompile(copy.deepcopy(model), threads, deterministic)
    return _compiled(model, examples, threads, batches, deterministic, any_size, recompile)


@dataclass(frozen=True)
class Recompile:
    """Makes the engine of a model for a batch of images of another size. The model is a copy, and nobody changes it."""

    model: nn.Module
    threads: int | None
    deterministic: bool

    def __call__(self, inputs: Sequence[Floats]) -> Engine:
        try:
            return _compiled(self.model, [torch.from_numpy(x) for x in inputs], self.threads, (), self.deterministic)
        except ValueError as error:
            size = ", ".join(" x ".join(map(str, x.shape[2:])) for x in inputs)
            raise ValueError(f"the model takes no images of {size}: {error}") from error


def _compiled(
    model: nn.Module,
    examples: Sequence[Tensor],
    threads: int | None,
    batches: Iterable[int],
    deterministic: bool,
    any_size: bool = False,
    recompile: Recompile | None = None,
) -> Engine:
    """The engine; `recompile` is how it makes those of other sizes."""
    captured = capture(model, examples)
    batch, ranges = len(examples[0]), getattr(model, "activation_ranges", None)
    sizes = [each for each in (batch, *batches) if each]

    def planned(ranges: Ranges | None) -> Engine:
        segments, rules = tuple(in_bytes(segment, ranges) for segment in captured.segments), None
        if any_size:
            program, rules = _of_any_size(model, captured, examples, ranges)
            segments = (program,)
        engine = Engine(
            segments, captured.input, captured.output, threads, captured.flow, deterministic, task_of(model), rules,
            recompile, captured.packed,
        )  # fmt: skip
        for each in sizes:
            engine.plan(each)
        return engine

    engine = planned(ranges)
    if deterministic:
        return engine
    x = [example.detach() for example in examples]
    if ranges and batch:
        floats = planned(None)
        ours, theirs = median_ms(lambda: engine(*x), lambda: floats(*x))
        engine = engine if ours <= theirs else floats
    engine.prefer_faster(TorchSegment.whole(captured.dense, len(x)), x)
    return engine


def in_bytes(segment: Program | TorchSegment, ranges: Ranges | None) -> Program | TorchSegment:
    """A segment in eight bits, where there are ranges and it is a program."""
    return quantise(segment, ranges) if ranges and isinstance(segment, Program) else segment


def _of_any_size(
    model: nn.Module, captured: Captured, examples: Sequence[Tensor], ranges: Ranges | None
) -> tuple[Program, AnySize]:
    """The program of a model for images like the example, and its rules for other sizes."""
    several = isinstance(captured.flow.structure, Packed) and len(captured.flow.structure.shapes) > 1
    if len(examples) > 1 or several or len(captured.input) != 3:
        raise ValueError("expected a model of images (C, H, W) that gives one tensor, for engines of any size")

    def program(image: Shape) -> Program:
        (segment, *more) = capture(model, examples[0].new_zeros(1, *image)).segments
        if more or not isinstance(segment, Program):
            raise ValueError("a part of this model needs torch, so its engine is of one size")
        return quantise(segment, ranges) if ranges else segment

    c, height, width = captured.input
    found, rules = sizes_of(program, (c, height, width))
    return resized(found, rules, (c, height, width)), rules
