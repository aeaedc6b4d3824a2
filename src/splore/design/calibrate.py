"""What the data needs of a trained weight: the moments of a layer's inputs, and W = A·B + S fitted to them.

The error of a layer's outputs is tr(D C D^T) for a change D of its matrix and C the mean of x x^T over its inputs x,
the columns of its convolution's patches. OATS (Zhang & Papyan, 2024) scales the columns of W by the root of C's
diagonal before W is split into L and S, so that what is kept is what the inputs reach. After the split, A and the kept
entries of S are fitted to the outputs with all of C: they make up for what was cut as far as inputs are alike.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from splore.design.attention import OpenAttention
from splore.design.layers import explicit_padding
from splore.design.low_rank_sparse import KINDS
from splore.design.matrix import Scheme
from splore.design.own_forward import has_own_forward, product_input
from splore.forward import evaluating, run, split

POSITIONS = 64
"""Places of each image at which patches are taken."""

RIDGE = 0.01
"""What is added to C's diagonal, as a share of its mean: the fit is not to rely on what few inputs tell."""

STEPS = 40
"""Steps of conjugate gradients."""

WIDEST = 8192
"""Inputs of a layer up to which all their products are kept, in k x k numbers; of a wider one the squares alone."""

TINY = 1e-30


@dataclass
class Moments:
    """The inputs x (k,) of a layer, as columns of its matrix: their number, sum, and sum of x x^T, in float64.

    Of a layer that is wider than `WIDEST`, `products` has the diagonal alone (k,), and so has C. `has_bias` says
    whether the layer has a bias.
    """

    count: int
    sum: Tensor
    products: Tensor
    has_bias: bool

    @property
    def C(self) -> Tensor:
        """The mean of x x^T, with a ridge; the covariance for a layer whose bias makes up for the mean."""
        C, whole = self.products / self.count, self.products.dim() == 2
        if self.has_bias:
            C = C - (torch.outer(self.sum, self.sum) if whole else self.sum.square()) / self.count**2
        ridge = RIDGE * (C.diagonal() if whole else C).mean() + TINY
        return C + (ridge * torch.eye(len(C), dtype=C.dtype, device=C.device) if whole else ridge)

    @property
    def squares(self) -> Tensor:
        """The diagonal of C (k,)."""
        return self.C.diagonal() if self.products.dim() == 2 else self.C

    def error(self, D: Tensor) -> float:
        """The mean squared change of the outputs by a change D (m, k) of the matrix: tr(D C D^T)."""
        C = self.C
        return ((D.double() @ C if C.dim() == 2 else D.double() * C) * D).sum().item()

    def shift(self, D: Tensor, outputs: int) -> Tensor:
        """What a change -D (m, k) of the matrix takes from the mean of each output."""
        return (D.double() @ self.sum / self.count).view(outputs, -1).sum(1).to(D)


def column_scale(W: Tensor, seen: Moments | None) -> Tensor:
    """Factors (1, k) of the columns of W (m, k) with which squared errors are shares of the energy of its outputs.

    By the roots of the second moments of the inputs, or equal ones where no inputs were seen.
    """
    if seen is None:
        return (1 / W.norm().clamp_min(TINY)).expand(1, W.shape[1])
    return (seen.squares / max(seen.error(W), TINY)).sqrt()[None].to(W)


@torch.no_grad()
def moments(
    model: nn.Module, layers: Mapping[str, nn.Linear | _ConvNd], scheme: Scheme, batches: Iterable
) -> dict[str, Moments]:
    """The moments of the inputs of layers, over batches of a loader; a layer that is never called is left out.

    Raises:
        ValueError: the loader gave no batch, or inputs that are not finite.
    """
    found: dict[str, Moments] = {}
    draw = torch.Generator().manual_seed(0)

    def see(name: str, x: Tensor) -> None:
        layer = layers[name]
        x = _columns(layer, x.detach(), scheme, draw)
        k = x.shape[1]
        # A mean over all groups is that of none, and no bias makes up for it.
        has_bias = layer.bias is not None and getattr(layer, "groups", 1) == 1
        sides = (k, k) if k <= WIDEST else (k,)
        total = found.setdefault(name, Moments(0, x.new_zeros(k).double(), x.new_zeros(sides).double(), has_bias))
        total.count += len(x)
        total.sum += x.sum(0)
        total.products += x.T @ x if k <= WIDEST else x.square().sum(0)

    handles = [
        layer.register_forward_pre_hook(lambda _, given, n=name: see(n, given[0])) for name, layer in layers.items()
    ]
    names = {layer: name for name, layer in layers.items()}

    def see_projections(attention: nn.Module, args: tuple, kwargs: dict) -> None:
        assert isinstance(attention, OpenAttention)
        for projection, inputs in attention.projected(args, kwargs):
            if projection in names:
                for x in {id(x): x for x in inputs}.values():
                    see(names[projection], x)

    attentions = [module for module in model.modules() if isinstance(module, OpenAttention)]
    handles += [each.register_forward_pre_hook(see_projections, with_kwargs=True) for each in attentions]
    seen = 0
    try:
        with evaluating(model), torch.compiler.set_stance("force_eager"):
            for batch in batches:
                run(model, split(batch)[0])
                seen += 1
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise ValueError("calibrate needs at least one batch, and the loader gave none")
    for name, each in found.items():
        if not each.products.isfinite().all():
            raise ValueError(f"expected finite inputs to calibrate by, found NaN or infinity in those of {name!r}")
    return found


def _columns(layer: nn.Linear | _ConvNd, x: Tensor, scheme: Scheme, draw: torch.Generator) -> Tensor:
    """The inputs (N, k) of a layer's matrix, of a convolution at some places of each image."""
    padding: Any = getattr(layer, "padding", 0)
    kind = next(kind for kind in KINDS if isinstance(layer, kind))
    if has_own_forward(layer, kind):
        x, padding = product_input(layer, x)
    x = x.float()
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    x = x if x.dim() == len(layer.weight.shape) else x[None]
    windows = _windows(layer, x, padding, scheme)
    sides = windows.shape[2 : x.dim()]
    places = torch.randperm(prod(sides), generator=draw)[:POSITIONS]
    at: Any = (slice(None), slice(None), *(each.to(x.device) for each in torch.unravel_index(places, sides)))
    return windows[at].transpose(1, 2).flatten(0, 1).flatten(1)


def _windows(layer: _ConvNd, x: Tensor, padding: Any, scheme: Scheme) -> Tensor:  # noqa: ANN401
    """What the kernel meets at each place, (N, c, ..., kh, kw), a view; each group is as if it were other images."""
    axes = range(2, x.dim())
    stride, mode = layer.stride, "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    if layer.transposed:  # a convolution of the input with zeros between, the kernel turned round
        spread = x.new_zeros(*x.shape[:2], *((x.shape[axis] - 1) * stride[axis - 2] + 1 for axis in axes))
        places = tuple(slice(None, None, step) for step in stride)
        spread[(slice(None), slice(None), *places)] = x
        x, stride = spread, (1,) * len(stride)
        reach = [d * (k - 1) - p for d, k, p in zip(layer.dilation, layer.kernel_size, padding, strict=True)]
        ends = [r + more for r, more in zip(reach, layer.output_padding, strict=True)]
        sides = [side for pair in zip(reversed(reach), reversed(ends), strict=True) for side in pair]
    else:
        sides = explicit_padding(padding, layer.kernel_size, layer.dilation)
    x = F.pad(x, sides, mode=mode).unflatten(1, (layer.groups, -1)).flatten(0, 1)
    for axis in axes:
        size, step, gap = layer.kernel_size[axis - 2], stride[axis - 2], layer.dilation[axis - 2]
        if scheme is Scheme.SPATIAL and len(axes) == 2 and axis == 3:
            continue  # a column is one of kh rows of a channel, and each of kw columns of the kernel sees all of them
        x = x.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
        x = x.flip(-1) if layer.transposed else x
    return x


def fitted(
    W: Tensor, A: Tensor, B: Tensor, mask: Tensor | None, seen: Moments | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A (m, r), B and S (m, k) that make least of tr(D C D^T) for D = W - A·B - S, with S zero outside the mask.

    By conjugate gradients on each row of A and S, preconditioned by the diagonal; B stays, but for its share of the
    norms. Where no inputs were seen, or no products of them, A stays too, and S is what is left of W. S is None where
    there is no mask.
    """
    exact, A, B = W.double(), A.double(), B.double()
    kept = torch.zeros_like(exact) if mask is None else mask.double()
    S = (exact - A @ B) * kept
    if seen is not None and seen.products.dim() == 2:
        A, S = _least_squares(exact, A, B, S, kept, seen.C)
    root = (B.norm(dim=1) / A.norm(dim=0).clamp_min(TINY)).sqrt().clamp_min(TINY)
    return (A * root).to(W), (B / root[:, None]).to(W), None if mask is None else S.to(W)


def _least_squares(W: Tensor, A: Tensor, B: Tensor, S: Tensor, kept: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    r = A.shape[1]
    weights = torch.cat([((B @ C) * B).sum(1), C.diagonal()]).clamp_min(TINY)

    def gradient(D: Tensor) -> Tensor:
        return torch.cat([D @ C @ B.T, (D @ C) * kept], 1)

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(1, keepdim=True).clamp_min(TINY)

    x = torch.cat([A, S], 1)
    rest = gradient(W - A @ B - S)
    ahead = rest / weights
    energy = dot(rest, ahead)
    for _ in range(STEPS):
        moved = gradient(ahead[:, :r] @ B + ahead[:, r:])
        step = energy / dot(ahead, moved)
        x, rest = x + step * ahead, rest - step * moved
        before, energy = energy, dot(rest, rest / weights)
        ahead = rest / weights + energy / before * ahead
    return x[:, :r], x[:, r:]
