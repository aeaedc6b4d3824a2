"""What a network gives with other weights in some of its layers, which are put in and taken out again."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from splore.design.calibrate import TINY, Moments
from splore.design.matrix import Scheme, fold
from splore.forward import evaluating, run, split

Layers = Mapping[str, nn.Linear | _ConvNd]
Parts = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""A (m, r), B (r, k), S (m, k) or None, and a mask (m, k) or None for an open one."""


class Trial:
    """A network whose layers take A·B + S in place of their weights, and biases to make up for the mean of the rest.

    Args:
        model: the network; it is left as it was.
        layers, matrices: its dense layers, and the matrix (m, k) of each.
        scheme: of the matrices.
        seen: the moments of the layers' inputs; a layer that has none is left alone.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        matrices: Mapping[str, Tensor],
        scheme: Scheme,
        seen: Mapping[str, Moments],
    ) -> None:
        self.model, self.layers, self.matrices, self.scheme, self.seen = model, layers, matrices, scheme, seen

    @torch.no_grad()
    def weights(self, parts: Mapping[str, Parts], batches: Sequence) -> dict[str, float]:
        """How much an error of each layer, as a share of its outputs' energy, moves the outputs of the network."""
        found: dict[str, float] = {}
        exact = self._outputs(batches)
        energy = sum((y - y.mean(0)).square().sum().item() for y in exact)
        for name, seen in self.seen.items():
            error = seen.error(self._lost(name, parts)) / max(seen.error(self.matrices[name]), TINY)
            with self._holding({name: parts[name]}):
                moved = self._outputs(batches)
            change = sum((y - x).square().sum().item() for x, y in zip(exact, moved, strict=True)) / max(energy, TINY)
            if error > 1e-9 and change > 0:  # of a layer that lost nothing, nothing is learned
                found[name] = change / error
        usual = sorted(found.values())[len(found) // 2] if found else 1.0
        return {name: found.get(name, usual) for name in self.layers}

    @torch.no_grad()
    def divergence(self, parts: Mapping[str, Parts], batches: Sequence) -> Tensor:
        """How far from its own the outputs of the network are with these parts, for each sample (N,).

        Of outputs (N, classes), taken for logits, the divergence of their distributions in nats (KL); of others the
        squared error as a share of the mean energy. Batch norm is measured on each batch.
        """
        exact = self._outputs(batches)
        with self._holding(parts), _batch_statistics(self.model) as norms:
            moved = self._outputs(batches, norms)
        return torch.cat([_distances(x, y) for x, y in zip(exact, moved, strict=True)])

    def _lost(self, name: str, parts: Mapping[str, Parts]) -> Tensor:
        A, B, S, _ = parts[name]
        return self.matrices[name] - (A @ B if S is None else A @ B + S)

    @contextmanager
    def _holding(self, parts: Mapping[str, Parts]) -> Iterator[None]:
        before = [(p, p.clone()) for name in parts for p in self.layers[name].parameters()]
        try:
            for name in self.seen.keys() & parts.keys():
                layer, lost = self.layers[name], self._lost(name, parts)
                transposed = isinstance(layer, _ConvTransposeNd)
                layer.weight.copy_(fold(self.matrices[name] - lost, layer.weight.shape, self.scheme, transposed))
                if layer.bias is not None and self.seen[name].has_bias:
                    layer.bias.add_(self.seen[name].shift(lost, len(layer.bias)))
            yield
        finally:
            for parameter, value in before:
                parameter.copy_(value)

    def _outputs(self, batches: Sequence, norms: Sequence[_BatchNorm] = ()) -> list[Tensor]:
        """What the network returns for the batches; `norms` normalise each by its own statistics."""
        with evaluating(self.model), torch.compiler.set_stance("force_eager"):
            for norm in norms:
                norm.training = True
            found = [y for batch in batches for y in _tensors(run(self.model, split(batch)[0]))]
        if not found:
            raise ValueError("expected a model that returns floating-point tensors, found none to calibrate by")
        return found


def _distances(exact: Tensor, moved: Tensor) -> Tensor:
    if exact.dim() == 2 and exact.shape[1] > 1:
        exact, moved = F.log_softmax(exact, 1), F.log_softmax(moved, 1)
        return F.kl_div(moved, exact, reduction="none", log_target=True).sum(1)
    energy = (exact - exact.mean(0)).square().sum() / len(exact)
    return (exact - moved).square().reshape(len(exact), -1).sum(1) / energy.clamp_min(TINY)


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[list[_BatchNorm]]:
    """The batch norms of a model, which may see batches in training mode within, without a trace afterwards."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    before = [(norm, norm.momentum, [buffer.clone() for buffer in norm.buffers()]) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield norms
    finally:
        for norm, momentum, values in before:
            norm.momentum = momentum
            for buffer, value in zip(norm.buffers(), values, strict=True):
                buffer.copy_(value)


def _tensors(outputs: object) -> list[Tensor]:
    """The floating-point tensors among what a model returned."""
    if isinstance(outputs, Tensor):
        return [outputs.float()] if outputs.is_floating_point() else []
    values = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, tuple | list) else []
    return [y for value in values for y in _tensors(value)]
