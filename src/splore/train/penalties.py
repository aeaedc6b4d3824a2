"""What the training of W = A·B + S adds to that of a dense net: the l1 on S, and weight decay in its place.

In a loop of your own:

    l1 = L1(model, strength=1e-3)
    decay = FrobeniusDecay(model, strength=5e-4)
    groups = parameter_groups(model, weight_decay=5e-4, nuclear=1e-3)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    ...
    (criterion(model(x), y) + decay.penalty()).backward()
    optimizer.step()
    l1.shrink(lr / (1 - 0.9))      # or add l1.penalty() to the loss instead: the paper's way

`splore.attach` does all of this in one line before the loop.
"""

import math
from collections.abc import Sequence
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splore.design.blocks import Blocks
from splore.design.layers import decomposed_layers
from splore.train.group_norm import group_norm, shrunk, subgradient
from splore.train.rate import Rate
from splore.train.shards import local, shard_like, total, whole


class Scaling(str, Enum):
    """How the strength of the l1 differs between layers whose matrix is m x k.

    `PCA` multiplies it by 1/sqrt(max(m, k)), the weight of the sparse part in robust PCA (Candès et al., 2011), which
    falls with the layer's width as the size of its entries does. `NONE` gives every layer the same.
    """

    NONE = "none"
    PCA = "pca"


class L1:
    """The l1 penalty on the sparse parts of a model, as a term of the loss or as a proximal step.

    The term is strength * sum over layers of scale * sum |S|. Its subgradient (the paper's way) draws entries towards
    zero but never onto it; the proximal step, after the optimiser's, makes exact zeros. Use one of the two. Where S is
    kept in blocks the group norm of `splore.train.group_norm` takes the place of sum |S|, and whole blocks become zero.

    Build it after `decompose`, and again if layers are replaced. Frozen layers are left alone.

    Attributes:
        parts: the sparse parts that it penalises.
        strength: it may be changed on the way.
        generator: of the random numbers by which parts in half precision are rounded, the same in every process.
    """

    def __init__(self, model: nn.Module, strength: float, scaling: Scaling = Scaling.PCA) -> None:
        _check_strength("l1", strength)
        sparse = [layer for layer in decomposed_layers(model).values() if layer.S is not None]
        self.parts: list[Tensor] = [layer.S for layer in sparse if layer.S.requires_grad]
        self.blocks = [layer.blocks for layer in sparse if layer.S.requires_grad]
        self.strength = strength
        self.scales = [max(S.shape) ** -0.5 if scaling is Scaling.PCA else 1.0 for S in self.parts]
        self.generator: torch.Generator | None = None
        self._weights: Tensor | None = None

    @property
    def strengths(self) -> list[float]:
        """The strength for each of the parts."""
        return [self.strength * scale for scale in self.scales]

    def penalty(self) -> Tensor:
        """strength * sum of scale * sum |S|, a differentiable scalar; of sharded parameters it has no gradient."""
        if not self.parts:
            return torch.zeros(())
        parts = [(_wide(local(S)), blocks) for S, blocks in zip(self.parts, self.blocks, strict=True)]
        entries = [S for S, blocks in parts if blocks.size == 1]
        sums = iter(torch._foreach_norm(entries, 1) if entries else ())
        norms = torch.stack([next(sums) if blocks.size == 1 else group_norm(S, blocks) for S, blocks in parts])
        if self._weights is None or self._weights.device != norms.device:
            self._weights = torch.tensor(self.scales, device=norms.device)
        return self.strength * total(norms.float() @ self._weights, self.parts[0])

    @torch.no_grad()
    def add_gradients(self, scale: float = 1.0) -> None:
        """Adds the subgradient of `penalty`, times `scale`, to S.grad; call before the step. Cheaper than a term."""
        wanted = [
            (S, blocks, scale * strength)
            for S, blocks, strength in zip(self.parts, self.blocks, self.strengths, strict=True)
            if S.grad is not None
        ]
        if not any(strength for _, _, strength in wanted):
            return
        steps = [local(S).sign() if blocks.size == 1 else subgradient(local(S), blocks) for S, blocks, _ in wanted]
        torch._foreach_mul_(steps, [strength for _, _, strength in wanted])
        torch._foreach_add_([local(S.grad) for S, _, _ in wanted], steps)

    @torch.no_grad()
    def shrink(self, lr: float | Sequence[Rate]) -> None:
        """The proximal step after an optimiser's step of this learning rate: the soft threshold by lr * strength.

        With SGD and a momentum m, give lr / (1 - m): a steady gradient is amplified by that much, and so a strength
        then means the same here as in `penalty`. For adaptive optimisers give a rate for each of `parts`, a number or a
        tensor of numbers for its entries: see `splore.train.rate`.

        Parts in half precision, whose steps are coarser than most thresholds, are rounded up or down at random so that
        the expectation is right, and zeros stay zeros.
        """
        rates = [lr] * len(self.parts) if isinstance(lr, int | float) else lr
        wanted = [
            (local(S), blocks, rate * strength)
            for S, blocks, rate, strength in zip(self.parts, self.blocks, rates, self.strengths, strict=True)
            if strength and (isinstance(rate, Tensor) or rate)
        ]
        plain = [
            (S, t)
            for S, blocks, t in wanted
            if not (isinstance(t, Tensor) or S.is_cpu or S.itemsize < 4) and blocks.size == 1
        ]
        if plain:  # S - clamp(S, -t, t) is the soft threshold too, and exactly zero wherever |S| <= t
            parts, thresholds = [S for S, _ in plain], [t for _, t in plain]
            core = torch._foreach_clamp_min(parts, [-t for t in thresholds])
            torch._foreach_clamp_max_(core, thresholds)
            torch._foreach_sub_(parts, list(core))
        for S, blocks, threshold in wanted:
            if S.itemsize < 4:
                S.copy_(self._rounded(_soft(S.float(), blocks, threshold), S.dtype))
            elif isinstance(threshold, Tensor) or blocks.size > 1:
                S.copy_(_soft(S, blocks, threshold))
            elif S.is_cpu:  # where a foreach operation is a loop, and its temporaries cost the most
                F.softshrink(S, threshold, out=S)  # type: ignore[call-arg]

    def _rounded(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Float32 values rounded to 16 bits, to one of the two neighbours with the odds that keep the expectation."""
        if self.generator is None or self.generator.device != values.device:
            self.generator = torch.Generator(values.device).manual_seed(0)
        size = values.abs()
        near = size.to(dtype)
        below = near.view(torch.int16) - (near > size).to(torch.int16)  # the bits of a float count its magnitudes
        low, high = below.view(dtype).float(), (below + 1).view(dtype).float()
        up = torch.rand(size.shape, device=size.device, generator=self.generator) < (size - low) / (high - low)
        return torch.copysign((below + up.to(torch.int16)).view(dtype), values)


def _soft(values: Tensor, blocks: Blocks, threshold: Rate) -> Tensor:
    if blocks.size > 1:
        return shrunk(values, blocks, threshold)
    if not isinstance(threshold, Tensor):
        return F.softshrink(values, threshold)
    return values - values.clamp(-threshold, threshold)


def _wide(tensor: Tensor) -> Tensor:
    """A tensor in float32, if it is of fewer bits: sums over many entries leave float16, and lose in bfloat16."""
    return tensor.float() if tensor.itemsize < 4 else tensor


class FrobeniusDecay:
    """Weight decay on the product: strength / 2 * sum over layers of ||A·B||_F^2 (Khodak et al., arXiv 2105.01029).

    Decaying A and B apart penalises the nuclear norm of their product, another and much stronger thing at low rank.
    """

    def __init__(self, model: nn.Module, strength: float) -> None:
        _check_strength("decay", strength)
        self.strength = strength
        self.layers = list(decomposed_layers(model).values())

    @property
    def factors(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """A and B of each layer that has them now: the ranks may have been cut."""
        return [(layer.A, layer.B) for layer in self.layers if layer.rank]

    def penalty(self) -> Tensor:
        """strength / 2 * sum ||A·B||_F^2, a differentiable scalar, by the r x r Gram matrices of A and B."""
        factors = self.factors
        if not self.strength or not factors:
            return torch.zeros(())
        squares = [((A.T @ A) * (B @ B.T)).sum() for A, B in ((_wide(A), _wide(B)) for A, B in factors)]
        return 0.5 * self.strength * torch.stack(squares).sum()

    @torch.no_grad()
    def add_gradients(self, scale: float = 1.0) -> None:
        """Adds the gradient of `penalty`, times `scale`, to A.grad and B.grad; call before the step.

        Cheaper than a loss term.
        """
        strength = scale * self.strength
        if not strength:
            return
        alike: dict[tuple, list[tuple[nn.Parameter, nn.Parameter]]] = {}
        for A, B in self.factors:
            if A.grad is not None and B.grad is not None:
                alike.setdefault((A.shape, B.shape, A.dtype, A.device), []).append((A, B))
        for pairs in alike.values():  # one product for all: a GPU would wait for the host to launch so many small ones
            As, Bs = zip(*pairs, strict=True)
            P, Q = torch.stack([whole(A) for A in As]), torch.stack([whole(B) for B in Bs])
            parts, added = (*As, *Bs), (*(P @ (Q @ Q.mT)), *((P.mT @ P) @ Q))
            torch._foreach_add_(
                [local(part.grad) for part in parts],
                [local(shard_like(each, part)) for each, part in zip(added, parts, strict=True)],
                alpha=strength,
            )


class NuclearDecay:
    """The nuclear norm of L: strength * sum of ||A·B||_*, by decaying A and B apart in layers that have an S.

    For the least of (||A||_F^2 + ||B||_F^2) / 2 over all factors of L is its nuclear norm (Srebro et al., 2005). Beside
    an `L1` of equal strength, scaled by `Scaling.PCA`, that is the objective of robust PCA.
    """

    def __init__(self, model: nn.Module, strength: float) -> None:
        _check_strength("decay", strength)
        self.strength = strength
        self.layers = [layer for layer in decomposed_layers(model).values() if layer.S is not None]

    @torch.no_grad()
    def add_gradients(self, scale: float = 1.0) -> None:
        """Adds the gradient of strength / 2 * (||A||_F^2 + ||B||_F^2), times `scale`; call before the step."""
        held = [p for layer in self.layers for p in layer.factors if p.grad is not None]
        if held and self.strength:
            parts = [local(p) for p in held]
            torch._foreach_add_([local(p.grad) for p in held], parts, alpha=scale * self.strength)


def parameter_groups(
    model: nn.Module, weight_decay: float, nuclear: float = 0.0, *, decay_sparse: bool = False
) -> list[dict]:
    """Groups for an optimiser: the dense weights, with weight decay; all the rest, without; A and B, if penalised.

    The rest is biases and normalisation, A and B (see `FrobeniusDecay`), and S, which is the l1's affair. Where there
    is no l1, as in fine-tuning, let S decay as the dense weights do: `decay_sparse`. With `nuclear` A and B have a
    group of their own, which decays each by that strength: this penalises strength * ||A·B||_*, the sum of the singular
    values, for the least of (||A||_F^2 + ||B||_F^2) / 2 over all factors of L is its nuclear norm (Srebro et al.,
    2005). Beside an `L1` of equal strength, scaled by `Scaling.PCA`, that is the objective of robust PCA, which leaves
    to L only what entries of S would cost more for; so layers that are low-rank only are spared.
    """
    layers = decomposed_layers(model).values()
    factors = {id(p) for layer in layers if layer.S is not None for p in layer.factors} if nuclear else set()
    special = {id(p) for layer in layers for p in (layer.factors if decay_sparse else (*layer.factors, layer.S))}
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        plain = parameter.dim() > 1 and id(parameter) not in special
        if id(parameter) not in factors:
            (decayed if plain else spared).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
        {"params": [p for p in model.parameters() if id(p) in factors], "weight_decay": nuclear},
    ]
    return [group for group in groups if group["params"]]


def _check_strength(what: str, strength: float) -> None:
    if not 0 <= strength < math.inf:
        raise ValueError(f"the strength of the {what} must be finite and can't be negative, found {strength}")
