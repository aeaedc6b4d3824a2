"""The engine: a compressed model, compiled to run on this machine's CPU.

    engine = compile(model, example_input)
    y = engine(x)                        # a NumPy array gives one, a torch tensor gives one
    engine.save("net.splore")
    engine = Engine.load("net.splore")   # needs no torch

This module imports no torch; only `splore.compile` and `Engine.as_module` do.
"""

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from splore.engine import memory, plan_table, program_file
from splore.engine.any_size import AnySize, resized
from splore.engine.flow import Flow, Packed, only
from splore.engine.in_torch import SegmentInTorch, as_tensors, run_torch
from splore.engine.interface import Interface, load_interface, load_task
from splore.engine.program import Floats, Program
from splore.engine.program_segment import ProgramSegment, median_ms
from splore.engine.sizes import Sizes
from splore.machine import usable_cores
from splore.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn


Images = TypeVar("Images", bound=Any)  # a NumPy array or a torch tensor


class Engine:
    """Segments that run one after another: programs in native code, and parts of the model in torch.

    `input` and `output` are the shapes of one image: (C, H, W), or (C,). Where a model gives a tuple or a dict of
    tensors its engine gives the same, and `output` is a tuple or a dict of shapes; the engine of a model of several
    inputs takes as many, and `input` is a tuple of their shapes. Any number of threads may call an engine at once;
    callers that come together share the threads. Parts in torch run with as many threads as torch is set to, or with
    one where `compile` finds that faster.

    Images of another height and width are planned when the first of them comes, which takes as long as compiling, and
    the last few sizes are kept: by the rules `any_size` of a program, or by `recompile`, which makes the engine of a
    batch. ValueError where the network takes no such images.

    An engine can be pickled and copied, plans included, for images of its own size and those that `any_size` has;
    `torch.load(..., weights_only=False)` reads what `torch.save` wrote. `save` and `load` need no torch and trust
    nothing.

    `deterministic` gives an image the same result to the bit, whatever the batch, the timing and the engine, on
    machines of one instruction set. It takes one kind of slice for every image, and is slower for it.

    `task` is what the model is for, its classes and the preprocessing of images, where it is known.
    """

    def __init__(
        self,
        segments: "tuple[Program | ProgramSegment | SegmentInTorch, ...]",
        input: tuple[Any, ...],
        output: Any,  # noqa: ANN401
        threads: int | None = None,
        flow: Flow | None = None,
        deterministic: bool = False,
        task: Task | None = None,
        any_size: AnySize | None = None,
        recompile: "Callable[[Sequence[Floats]], Engine] | None" = None,
        packed: bool = False,
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"expected at least one thread, found {threads}")
        self.threads = threads or usable_cores()
        self.input, self.output, self.task = input, output, task
        in_torch = "\n".join(plan_table.of_torch(s) for s in segments if not isinstance(s, Program | ProgramSegment))
        if deterministic and in_torch:
            raise ValueError(f"a part of this model needs torch, which promises no result to the bit:\n{in_torch}")
        self._segments = [
            ProgramSegment(s, self.threads, deterministic) if isinstance(s, Program) else s for s in segments
        ]
        self._costs: dict[int, Mapping[str, float]] = {}  # milliseconds of the operators in torch, by segment
        self._one_thread = False  # in torch, where that is faster beside the threads of the programs
        self._flow = flow or Flow.chain(len(segments))
        self._packed = packed  # several inputs, which the program takes one after another
        self._deterministic, self._any_size = deterministic, any_size
        self._image_bytes = memory.IMAGE_BYTES
        make = recompile if any_size is None else self._resized
        self._sizes = None if make is None else Sizes(make)
        self._dense: tuple[SegmentInTorch, str] | None = None  # where it wins, and what the timing said

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        threads: int | None = None,
        image_bytes: int = memory.IMAGE_BYTES,
        deterministic: bool = False,
        replan: bool = True,
    ) -> "Engine":
        """Reads an engine that `save` wrote; needs no torch.

        Plans that the file holds are taken over in milliseconds. Where they were made on a machine of another kind, by
        another version or number of threads, their batch sizes are planned anew, as `plan` does, unless `replan` is
        false; `summary` says so.

        Raises ValueError where the file is not valid, or an image would take more than `image_bytes` of memory to run.
        """
        program, plans = program_file.load_with_plans(path, image_bytes)
        found = load_interface(path, program)
        input, output = program.caller_shapes
        if found.results is not None:
            output = found.results.structure(list(found.results.shapes))
        segment = ProgramSegment(program, threads or usable_cores(), deterministic, plans, replan)
        engine = cls(
            (segment,), found.inputs or input, output, threads, Flow.chain(1, found.results or only), deterministic,
            load_task(path), found.any_size, packed=bool(found.inputs),
        )  # fmt: skip
        engine._image_bytes = image_bytes
        return engine

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the engine and its plans to a file that runs without torch.

        Raises ValueError where a part of it needs torch, or it gives something else than tuples, lists and dicts.
        """
        if len(self._segments) != 1 or not isinstance(self._segments[0], ProgramSegment):
            in_torch = "\n".join(plan_table.of_torch(s) for s in self._segments if not isinstance(s, ProgramSegment))
            raise ValueError(f"a part of this model needs torch, so it can't be saved to run without:\n{in_torch}")
        segment = self._segments[0]
        structure = self._flow.structure
        results = structure if isinstance(structure, Packed) else None
        if results is None and structure is not only:  # one tensor, in a dict perhaps
            results = Packed((segment.program.caller_shapes[1],), structure)
        interface = Interface(self.input if self._packed else (), results, self._any_size)
        program_file.save(
            segment.program, path, self.task, segment.save_plans(), None if interface == Interface() else interface
        )

    def __call__(self, *inputs: Images) -> Images:
        """The result (N, ...) for a batch (N, ...) of float32, without gradients. ValueError for any other input."""
        shapes: tuple[Any, ...] = self.input if self._flow.inputs > 1 or self._packed else (self.input,)
        if len(inputs) != len(shapes):
            raise ValueError(f"expected {len(shapes)} inputs, found {len(inputs)}")
        values = [self._values(x, shape) for x, shape in zip(inputs, shapes, strict=True)]
        if len({len(x) for x in values}) != 1:
            raise ValueError(f"expected inputs of one batch, found {[len(x) for x in values]}")
        own = all(x.shape[1:] == shape for x, shape in zip(values, shapes, strict=True))
        engine = self if own or self._sizes is None else self._sizes.engine(values)
        results = engine._run(values)
        torch: Any = sys.modules.get("torch")
        is_tensor = torch is not None and isinstance(inputs[0], torch.Tensor)
        structure = engine._flow.structure
        if engine._dense is not None and isinstance(structure, Packed):  # torch gives them one by one
            structure = structure.structure
        return structure([torch.from_numpy(y) for y in results] if is_tensor else results)

    def _values(self, x: Images, shape: tuple[int, ...]) -> Floats:
        """A batch as NumPy has it, of this shape, or of another height and width where there is a way to run these."""
        torch: Any = sys.modules.get("torch")
        is_tensor = torch is not None and isinstance(x, torch.Tensor)
        is_array = isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray)
        if not is_array and (not is_tensor or x.is_nested):
            raise ValueError(
                f"expected a NumPy array or a torch tensor, found {type(x).__name__}{' that is nested' * is_tensor}"
            )
        is_float = x.dtype == (torch.float32 if is_tensor else np.float32)
        fixed = shape[:1] if self._sizes is not None and len(shape) > 1 else shape
        if not is_float or x.ndim != len(shape) + 1 or tuple(x.shape[1 : len(fixed) + 1]) != fixed:
            expected = ", ".join(map(str, ("N", *shape)))
            raise ValueError(f"expected float32 of shape ({expected}), found {x.dtype} of shape {tuple(x.shape)}")
        if is_tensor and (x.device.type != "cpu" or x.layout != torch.strided):
            raise ValueError(f"expected a dense tensor on the CPU, found one of {x.layout} on {x.device}")
        try:
            return x.detach().resolve_neg().numpy() if is_tensor else np.asarray(x)
        except RuntimeError as error:  # of a fake tensor, or within a transform as vmap
            raise ValueError(
                f"expected a tensor with numbers in memory, found {type(x).__name__}: use `as_module()` in a graph"
            ) from error

    def _resized(self, inputs: Sequence[Floats]) -> "Engine":
        """The engine by the rules of `any_size` for images like those of a batch."""
        (segment,), (x,) = self._segments, inputs
        assert isinstance(segment, ProgramSegment) and self._any_size is not None
        c, height, width = x.shape[1:]
        program = resized(segment.program, self._any_size, (c, height, width))
        memory.check(program, self._image_bytes)
        structure, (input, output) = self._flow.structure, program.caller_shapes
        if isinstance(structure, Packed):
            structure = replace(structure, shapes=(output,))
        engine = Engine(
            (program,), input, output, self.threads, Flow.chain(1, structure), self._deterministic, self.task
        )
        if len(x):
            engine.plan(len(x))
        return engine

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sizes": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._sizes = None if self._any_size is None else Sizes(self._resized)

    def plan(self, batch: int) -> None:
        """Chooses the kernels for a batch size by timing them: moments for a small network, seconds for a large one.

        A size without a plan of its own runs at once, by what the plans of others have chosen, or untimed where there
        are none. A planned size is left as it is. ValueError for a batch below 1.
        """
        if batch < 1:
            raise ValueError(f"expected a batch of at least 1, found {batch}")
        for segment in self._segments:
            if isinstance(segment, ProgramSegment):
                segment.plan(batch)

    def summary(self) -> str:
        """What runs where, and how fast: the plan for the batch that ran last, as a table."""
        parts = [] if self._dense is None else [self._dense[1]]
        parts += [
            s.summary() if isinstance(s, ProgramSegment) else plan_table.of_torch(s, self._costs.get(number))
            for number, s in enumerate(self._segments)
        ]
        parts += ["The parts in torch run on one thread, which is faster here."] if self._one_thread else []
        return "\n\n".join(parts)

    def steps(self) -> list[dict]:
        """The native steps for the batch that ran last: `name`, `kernel`, `ms`, `macs`, `gmacs_per_s`, `peak_share`.

        A step is that of `images` at a time, by so many `threads`: a larger batch takes it several times.
        """
        return [step for segment in self._segments if isinstance(segment, ProgramSegment) for step in segment.steps()]

    def as_module(self) -> "nn.Module":
        """The engine as a module of one operator, `torch.ops.splore.engine`, for torch.compile and torch.export."""
        from splore.engine.torch_op import EngineModule

        if self._flow.structure is not only:
            raise ValueError("an operator gives one tensor, found a model that gives several, or a dict")
        return EngineModule(self)

    def prefer_faster(self, dense: SegmentInTorch, example_inputs: "Sequence[Tensor]") -> None:
        """Times the engine against the dense model, and from now on runs the faster one."""
        x = [each.detach().numpy() for each in example_inputs]
        if not len(x[0]) or not any(isinstance(segment, ProgramSegment) for segment in self._segments):
            return
        self._one_thread = False
        mixed = not all(isinstance(segment, ProgramSegment) for segment in self._segments)
        if mixed:
            self._run(x, look=self._choose_runtime)
            many, one = median_ms(lambda: self._run(x), lambda: self._run(x, one_thread=True))
            self._one_thread = one < many
            self._run(x, look=self._note_costs)
        ours, theirs = median_ms(lambda: self._run(x), lambda: run_torch(dense, x))
        if mixed or theirs < 0.95 * ours:
            dense = dense.faster(self.threads, *as_tensors(x))
            ours, theirs = median_ms(lambda: self._run(x), lambda: run_torch(dense, x))
        if theirs < 0.95 * ours:
            verdict = f"Runs the dense network in {dense.runtime}, {theirs:.3g} ms for a batch of {len(x[0])}"
            self._dense = dense, f"{verdict}: the plan below takes {ours:.3g} ms."

    def _choose_runtime(self, segment: SegmentInTorch, values: Sequence) -> None:
        self._segments[self._segments.index(segment)] = segment.faster(self.threads, *as_tensors(values))

    def _note_costs(self, segment: SegmentInTorch, values: Sequence) -> None:
        self._costs[self._segments.index(segment)] = segment.costs(*as_tensors(values))

    def _run(
        self,
        inputs: Sequence[Floats],
        one_thread: bool = False,
        look: Callable[[SegmentInTorch, Sequence], None] | None = None,
    ) -> list:
        """The results, in order; `look` sees what each part in torch reads."""
        if self._dense is not None:
            return run_torch(self._dense[0], inputs)
        if self._packed:
            inputs = [np.concatenate([x.reshape(len(x), math.prod(x.shape[1:])) for x in inputs], axis=1)]
        alone = one_thread or self._one_thread

        def call(segment: "ProgramSegment | SegmentInTorch", values: list) -> Sequence:
            if isinstance(segment, ProgramSegment):
                return [segment(*values)]
            if look is not None:
                look(segment, values)
            return run_torch(segment, values, alone)

        return self._flow.run(self._segments, inputs, call)
