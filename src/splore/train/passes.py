"""The passes of a training step: forward, the loss, backward; as they come, or replayed as a CUDA graph."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from splore.design.layers import decomposed_layers

WARMUP = 3
"""Passes before a capture, in which libraries set up what is no part of a graph."""


class Passes:
    """The forward pass, the loss and the backward pass of one step."""

    def __init__(
        self, model: nn.Module, loss: Callable[[Tensor, Tensor, Tensor], Tensor], accelerator: Accelerator
    ) -> None:
        self.model, self.loss, self.accelerator = model, loss, accelerator

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the outputs, in float32 and without gradients: these are with the parameters."""
        with self.accelerator.autocast():
            outputs = self.model(x)
        outputs = outputs.float()
        value = self.loss(outputs, y, x)
        self.accelerator.backward(value)
        return value.detach(), outputs.detach()


class Graphed:
    """Passes on a GPU that are replayed as one CUDA graph: one launch in place of thousands from Python.

    Args:
        passes: what is captured at the first batch, and again where ranks or masks have changed by a `renew`.
        batch: the number of samples of the batches to replay; others are taken as they come.
    """

    def __init__(self, passes: Passes, batch: int) -> None:
        self.passes, self.batch = passes, batch
        self._graph: torch.cuda.CUDAGraph | None = None
        self._captured: list[tuple[int, int]] = []

    def renew(self) -> None:
        """To be called where ranks or masks may have changed; drops the graph if they have."""
        if self._graph is not None and self._state() != self._captured:
            self._graph = None

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """As `Passes`, in tensors that the next call writes anew. ValueError where the passes can't be captured."""
        if len(x) != self.batch:
            return self.passes(x, y)
        if self._graph is None:
            self._graph = self._capture(x, y)
        self._x.copy_(x)
        self._y.copy_(y)
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        self._graph.replay()
        return self._results

    def _state(self) -> list[tuple[int, int]]:
        """What a graph has taken for given: the parameters that there are, and the masks."""
        model = self.passes.model
        masks = [layer.mask for layer in decomposed_layers(model).values() if layer.mask is not None]
        return [(id(p), 0) for p in model.parameters()] + [(id(mask), mask._version) for mask in masks]

    def _capture(self, x: Tensor, y: Tensor) -> torch.cuda.CUDAGraph:
        model, graph = self.passes.model, torch.cuda.CUDAGraph()
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        random = torch.cuda.get_rng_state(x.device)
        self._x, self._y = x.clone(), y.clone()
        try:
            side = torch.cuda.Stream(x.device)
            side.wait_stream(torch.cuda.current_stream(x.device))
            with torch.cuda.stream(side):
                for _ in range(WARMUP):
                    self.passes(self._x, self._y)
                    model.zero_grad(set_to_none=True)
            torch.cuda.current_stream(x.device).wait_stream(side)
            with torch.cuda.graph(graph):
                self._results = self.passes(self._x, self._y)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(
                "hardware.cuda_graphs: a step of this net can't be captured, as where it waits for a value to decide "
                f"by: set it to false ({str(error).splitlines()[0]})"
            ) from error
        self._gradients = [(p, p.grad) for p in model.parameters() if p.grad is not None]
        self._captured = self._state()
        torch.cuda.set_rng_state(random, x.device)
        with torch.no_grad():
            for buffer, before in buffers:  # which the passes before the capture have moved
                buffer.copy_(before)
        return graph
