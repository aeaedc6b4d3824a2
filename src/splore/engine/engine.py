"""The engine: a compressed model, compiled to run on this machine's CPU.

    engine = compile(model, example_input)
    y = engine(x)                        # a NumPy array gives one, a torch tensor gives one
    engine.save("net.splore")
    engine = Engine.load("net.splore")   # needs no torch

This module imports no torch; only `splore.compile` and `Engine.as_module` do.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from splore.engine import memory, openmp, plan_table, program_file
from splore.engine.flow import Flow, only
from splore.engine.program import Floats, Program
from splore.engine.program_segment import ProgramSegment, median_ms
from splore.machine import usable_cores
from splore.task import Task

if TYPE_CHECKING:
    from torch import Tensor, nn


Images = TypeVar("Images", bound=Any)  # a NumPy array or a torch tensor


class SegmentInTorch(Protocol):
    """A part of a captured model that stays in torch; `reasons` says why it is no program, by operator."""

    @property
    def reasons(self) -> Mapping[str, str]: ...

    def digest(self, update: "Callable[[bytes], object]") -> None:
        """Tells all that decides what it gives."""
        ...

    def __call__(self, *values: "Tensor") -> "Sequence[Tensor]":
        """What this part gives for the values that it reads."""
        ...


class Engine:
    """Segments that run one after another: programs in native code, and parts of the model in torch.

    `input` and `output` are the shapes of one image: (C, H, W), or (C,). Where a model gives a tuple or a dict of
    tensors its engine gives the same, and `output` is a tuple or a dict of shapes. Any number of threads may call an
    engine at once; callers that come together share the threads. Parts in torch run with as many threads as torch is
    set to, or with one where `compile` finds that faster.

    An engine can be pickled and copied, plans included; `torch.load(..., weights_only=False)` reads what `torch.save`
    wrote. `save` and `load` need no torch and trust nothing.

    `deterministic` gives an image the same result to the bit, whatever the batch, the timing and the engine, on
    machines of one instruction set. It takes one kind of slice for every image, and is slower for it.

    `task` is what the model is for, its classes and the preprocessing of images, where it is known.
    """

    def __init__(
        self,
        segments: "tuple[Program | ProgramSegment | SegmentInTorch, ...]",
        input: tuple[int, ...],
        output: Any,  # noqa: ANN401
        threads: int | None = None,
        flow: Flow | None = None,
        deterministic: bool = False,
        task: Task | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"expected at least one thread, found {threads}")
        self.threads = threads or usable_cores()
        self.input, self.output, self.task = input, output, task
        in_torch = "\n".join(plan_table.of_torch(s.reasons) for s in segments if hasattr(s, "reasons"))
        if deterministic and in_torch:
            raise ValueError(f"a part of this model needs torch, which promises no result to the bit:\n{in_torch}")
        self._segments = [
            ProgramSegment(s, self.threads, deterministic) if isinstance(s, Program) else s for s in segments
        ]
        self._one_thread = False  # in torch, where that is faster beside the threads of the programs
        self._flow = flow or Flow.chain(len(segments))
        self._dense: tuple[nn.Module, str] | None = None  # the torch model where it wins, and what the timing said

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
        input, output = program.caller_shapes
        segment = ProgramSegment(program, threads or usable_cores(), deterministic, plans, replan)
        return cls((segment,), input, output, threads, deterministic=deterministic, task=program_file.load_task(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the engine and its plans to a file that runs without torch.

        Raises ValueError where a part of it needs torch.
        """
        if self._flow.structure is not only:
            raise ValueError("a file holds an engine of one result, found a model that gives several, or a dict")
        if len(self._segments) != 1 or not isinstance(self._segments[0], ProgramSegment):
            in_torch = "\n".join(plan_table.of_torch(s.reasons) for s in self._segments if hasattr(s, "reasons"))
            raise ValueError(f"a part of this model needs torch, so it can't be saved to run without:\n{in_torch}")
        segment = self._segments[0]
        program_file.save(segment.program, path, self.task, segment.save_plans())

    def __call__(self, x: Images) -> Images:
        """The result (N, ...) for a batch (N, ...) of float32, without gradients. ValueError for any other input."""
        torch: Any = sys.modules.get("torch")
        is_tensor = torch is not None and isinstance(x, torch.Tensor)
        is_array = isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray)
        if not is_array and (not is_tensor or x.is_nested):
            raise ValueError(
                f"expected a NumPy array or a torch tensor, found {type(x).__name__}{' that is nested' * is_tensor}"
            )
        is_float = x.dtype == (torch.float32 if is_tensor else np.float32)
        if not is_float or x.ndim != len(self.input) + 1 or tuple(x.shape[1:]) != self.input:
            expected = ", ".join(map(str, ("N", *self.input)))
            raise ValueError(f"expected float32 of shape ({expected}), found {x.dtype} of shape {tuple(x.shape)}")
        if is_tensor and (x.device.type != "cpu" or x.layout != torch.strided):
            raise ValueError(f"expected a dense tensor on the CPU, found one of {x.layout} on {x.device}")
        try:
            values = x.detach().resolve_neg().numpy() if is_tensor else np.asarray(x)
        except RuntimeError as error:  # of a fake tensor, or within a transform as vmap
            raise ValueError(
                f"expected a tensor with numbers in memory, found {type(x).__name__}: use `as_module()` in a graph"
            ) from error
        results = self._run(values)
        return self._flow.structure([torch.from_numpy(y) for y in results] if is_tensor else results)

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
            s.summary() if isinstance(s, ProgramSegment) else plan_table.of_torch(s.reasons) for s in self._segments
        ]
        parts += ["The parts in torch run on one thread, which is faster here."] if self._one_thread else []
        return "\n\n".join(parts)

    def steps(self) -> list[dict]:
        """The native steps for the batch that ran last: `name`, `kernel`, `ms`, `macs`, `gmacs_per_s`, `peak_share`."""
        return [step for segment in self._segments if isinstance(segment, ProgramSegment) for step in segment.steps()]

    def as_module(self) -> "nn.Module":
        """The engine as a module of one operator, `torch.ops.splore.engine`, for torch.compile and torch.export."""
        from splore.engine.torch_op import EngineModule

        if self._flow.structure is not only:
            raise ValueError("an operator gives one tensor, found a model that gives several, or a dict")
        return EngineModule(self)

    def prefer_faster(self, dense: "nn.Module", example_input: "Tensor") -> None:
        """Times the engine against a torch model that computes the same, and from now on runs the faster one."""
        x = example_input.detach().numpy()
        if not len(x) or not any(isinstance(segment, ProgramSegment) for segment in self._segments):
            return
        self._one_thread = False
        if not all(isinstance(segment, ProgramSegment) for segment in self._segments):
            many, one = median_ms(lambda: self._run(x), lambda: self._run(x, one_thread=True))
            self._one_thread = one < many
        ours, theirs = median_ms(lambda: self._run(x), lambda: run_torch(dense, [x]))
        if theirs < 0.95 * ours:
            verdict = f"Runs the dense network in torch, {theirs:.3g} ms for a batch of {len(x)}"
            self._dense = dense, f"{verdict}: the plan below takes {ours:.3g} ms."

    def _run(self, x: Floats, one_thread: bool = False) -> list:
        """The results, in order."""
        if self._dense is not None:
            return run_torch(self._dense[0], [x])
        alone = one_thread or self._one_thread

        def call(segment: "ProgramSegment | SegmentInTorch", values: list) -> Sequence:
            return [segment(*values)] if isinstance(segment, ProgramSegment) else run_torch(segment, values, alone)

        return self._flow.run(self._segments, x, call)


def run_torch(module: "nn.Module | SegmentInTorch", values: Sequence, alone: bool = False) -> list:
    """The tensors that a torch module gives for values as NumPy arrays, with the threads that torch is set to, or on
    the calling thread `alone`."""
    import torch
    from torch.utils._pytree import tree_leaves

    def to_torch(value: Any) -> Any:  # noqa: ANN401
        return torch.from_numpy(np.require(value, requirements=["C", "W"])) if isinstance(value, np.ndarray) else value

    def to_numpy(value: Any) -> Any:  # noqa: ANN401
        return value.numpy() if isinstance(value, torch.Tensor) else value

    with torch.no_grad(), openmp.one_thread() if alone or openmp.forked else nullcontext():
        found = module(*map(to_torch, values))
    if isinstance(module, torch.nn.Module):
        return [leaf.numpy() for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]
    return [to_numpy(value) for value in found]  # several that only torch reads, as of a split, stay as they are
