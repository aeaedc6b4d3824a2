"""Stage (a), structure designing: the layers of a network are replaced by layers with W = A·B + S."""

from collections import Counter
from dataclasses import dataclass, field
from typing import get_args

from torch import Tensor, nn

from splore.design.layers import LowRankSparse, LowRankSparseConv2d, LowRankSparseLinear
from splore.design.matrix import Scheme, unfold
from splore.design.ranks import Budget, Rank, check_rank, choose_rank, largest_useful_rank, ranks_within
from splore.design.select import Pattern, replace, select
from splore.design.start import Start, from_scratch, from_trained


@dataclass(frozen=True)
class Design:
    """What to decompose and how.

    Attributes:
        rank: rank of L: a whole number; a fraction of min(m, k); `Energy` of the singular values; or `Budget` of the
            whole net's parameters. 0 means no low-rank part.
        sparse: whether layers get a sparse part S.
        scheme: the matricisation of convolution kernels.
        include: layers to decompose: names, globs, `re:` patterns, class names or classes.
        exclude: layers to leave dense, in the same terms.
        start: `trained` keeps the model's weights: A·B + S is what they are, or, without a sparse part, A·B their best
            approximation of its rank. To start afresh: `svd` takes them as a draw, L its best rank-r approximation and
            S the rest, and without a sparse part scales A·B to the draw's variance; `random` draws A, B and S apart.
        trained: `True` says that start is to be `trained`, the default.
        density: share of the entries of S, 0 to 1, that a trained start fills. Below 1 the weights are approximated.
            The mask stays open: training may fill the rest.
    """

    rank: Rank = 0.05
    sparse: bool = True
    scheme: Scheme = Scheme.CHANNEL
    include: tuple[Pattern, ...] = ("Conv2d", "Linear")
    exclude: tuple[Pattern, ...] = ()
    start: Start = "trained"
    trained: bool = False
    density: float = 1.0

    def __post_init__(self) -> None:
        check_rank(self.rank)
        if self.rank == 0 and not self.sparse:
            raise ValueError("a design of rank 0 without a sparse part leaves no weight: give a rank or keep S")
        if self.start not in get_args(Start):
            raise ValueError(f"a start is one of {', '.join(get_args(Start))}, found {self.start!r}")
        if self.trained and self.start != "trained":
            raise ValueError(f"start={self.start!r} starts afresh, trained=True does not: leave one of them out")
        if isinstance(self.include, str) or isinstance(self.exclude, str):
            raise ValueError("include and exclude are tuples of patterns: write ('fc',) in place of 'fc'")
        if not 0 <= self.density <= 1:
            raise ValueError(f"the density of S must lie between 0 and 1, found {self.density}")


@dataclass(frozen=True)
class Summary:
    """What `decompose` did.

    Attributes:
        ranks: the rank of each decomposed layer by name.
        dense: each selected layer that stays dense, with the reason.
        idle: patterns that meant no convolution or linear layer of the model.
    """

    ranks: dict[str, int]
    dense: dict[str, str] = field(default_factory=dict)
    idle: tuple[Pattern, ...] = ()

    def __str__(self) -> str:
        lines = [f"decomposed {len(self.ranks)} layers"]
        lines += [f"stays dense: {name}: {reason}" for name, reason in self.dense.items()]
        lines += [f"matched nothing: {pattern!r}" for pattern in self.idle]
        return "\n".join(lines)


def decompose(model: nn.Module, design: Design) -> Summary:
    """Replaces layers of `model` in place by layers with W = A·B + S, and says what became of each selected one.

    Takes any `nn.Module`, and keeps what it has learned; for a start from scratch see `Design.start`. What can't be
    decomposed (grouped and depthwise convolutions, subclasses with a forward of their own, parametrised or tied
    weights, layers that A and B would make larger) stays dense. Optimisers must be built afterwards: the parameters
    are new.

    Raises:
        ValueError: nothing is left to decompose, the model itself is the layer, or a budget can't be met, or a
            weight is not finite.
    """
    names, idle = select(model, (nn.Conv2d, nn.Linear), design.include, design.exclude)
    modules = dict(model.named_modules())
    owners = Counter(id(p) for module in modules.values() for p in module._parameters.values() if p is not None)
    dense: dict[str, str] = {}
    layers: dict[str, nn.Conv2d | nn.Linear] = {}
    for name in names:
        module = modules[name]
        if isinstance(module, nn.Conv2d | nn.Linear):
            reason = _obstacle(module, owners)
            if reason:
                dense[name] = reason
            else:
                layers[name] = module
    if "" in layers:
        raise ValueError("the model is itself the layer to replace: wrap it, as in nn.Sequential(layer)")
    matrices = {name: unfold(layer.weight.detach(), design.scheme) for name, layer in layers.items()}
    for name, matrix in matrices.items():
        if not matrix.isfinite().all():
            raise ValueError(f"expected finite numbers, found NaN or infinity in the weight of {name!r}")
    ranks = _ranks(model, design, matrices)
    for name, rank in list(ranks.items()):
        most = largest_useful_rank(matrices[name].shape)
        if rank > most:
            m, k = matrices[name].shape
            dense[name] = f"rank {rank} would make its {m} x {k} matrix larger (at most {most})"
            del ranks[name]
    if not ranks:
        found = "; ".join(f"{name}: {reason}" for name, reason in list(dense.items())[:3])
        raise ValueError(
            "nothing to decompose: "
            + (f"every selected layer stays dense ({found})" if dense else f"no layer matches {list(design.include)}")
        )
    replace(model, {layers[name]: _decomposed(layers[name], matrices[name], ranks[name], design) for name in ranks})
    return Summary(ranks, dense, tuple(idle))


def _obstacle(module: nn.Conv2d | nn.Linear, owners: Counter[int]) -> str:
    """Why a layer can't be decomposed; empty when it can."""
    kind = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
    own = [f for f in ("forward", "_conv_forward") if getattr(type(module), f, None) is not getattr(kind, f, None)]
    if own:
        return f"{type(module).__name__} has a forward of its own"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return f"a grouped convolution (groups={module.groups})"
    if module._parameters.get("weight") is None or "bias" not in module._parameters:
        return "its weight or bias is parametrised"
    if isinstance(module.weight, nn.UninitializedParameter):
        return "it is lazy: run the model once first"
    if not module.weight.is_floating_point():
        return f"its weight is {module.weight.dtype}"
    if owners[id(module.weight)] > 1:
        return "its weight is tied to another module's"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "it carries hooks"
    return ""


def _ranks(model: nn.Module, design: Design, matrices: dict[str, Tensor]) -> dict[str, int]:
    if not isinstance(design.rank, Budget):
        return {name: choose_rank(design.rank, matrix) for name, matrix in matrices.items()}
    params = sum(p.numel() for p in model.parameters())
    fixed = params - sum(matrix.numel() for matrix in matrices.values())
    return ranks_within(int(design.rank.budget * params) - fixed, matrices, least=0 if design.sparse else 1)


def _decomposed(layer: nn.Conv2d | nn.Linear, matrix: Tensor, rank: int, design: Design) -> LowRankSparse:
    new: LowRankSparse
    if isinstance(layer, nn.Conv2d):
        new = LowRankSparseConv2d(layer, rank, design.sparse, design.scheme)
    else:
        new = LowRankSparseLinear(layer, rank, design.sparse, design.scheme)
    if design.start == "trained":
        new.set_parts(*from_trained(matrix, rank, design.sparse, design.density))
    else:
        new.set_parts(*from_scratch(matrix, rank, design.sparse, design.start))
    return new


def materialise(model: nn.Module) -> nn.Module:
    """Folds every decomposed layer of `model` back to a dense one, in place, and returns the model.

    Returns the dense layer itself when the model is a single decomposed layer.
    """
    kinds = LowRankSparseConv2d | LowRankSparseLinear
    return replace(model, {layer: layer.to_dense() for layer in model.modules() if isinstance(layer, kinds)})
