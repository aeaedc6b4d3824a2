"""Stage (a), structure designing: the layers of a network are replaced by layers with W = A·B + S."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import get_args

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from splore.design.attention import OpenAttention, close_attentions, opened
from splore.design.blocks import Blocks
from splore.design.layers import LowRankSparse, layer_of
from splore.design.low_rank_sparse import KINDS
from splore.design.matrix import Scheme
from splore.design.obstacle import OTHERS, Uses, obstacle
from splore.design.ranks import Budget, Rank, check_params, check_rank, choose_rank, largest_useful_rank, ranks_within
from splore.design.select import Pattern, replace, select
from splore.design.start import Start, from_scratch
from splore.design.trained import Inputs, Layers, Parts, inputs_of, matrix_of, parts_to_budget, parts_to_density
from splore.design.wrappers import check_not_flat
from splore.forward import Epochs

DEFAULT_RANK = 0.05
"""Of min(m, k): the rank of a design that names none."""


@dataclass(frozen=True)
class Design:
    """What to decompose and how.

    Attributes:
        rank: rank of L: a whole number; a fraction of min(m, k); `Energy` of the singular values; or `Budget` of the
            whole net's parameters. 0 means no low-rank part. None is 0.05, or with `params` what that makes worth it.
        sparse: whether layers get a sparse part S.
        scheme: the matricisation of convolution kernels.
        include: layers to decompose: names, globs, `re:` patterns, class names or classes; all that can be by default.
        exclude: layers to leave dense, in the same terms.
        start: `trained` keeps the model's weights: A·B + S is what they are, or, without a sparse part, A·B their best
            approximation of its rank. To start afresh: `svd` takes them as a draw, L its best rank-r approximation and
            S the rest, and without a sparse part scales A·B to the draw's variance; `random` draws A, B and S apart.
        trained: `True` says that start is to be `trained`, the default.
        density: share of the entries of S, 0 to 1, that a trained start fills. Below 1 the weights are approximated.
            The mask stays open: training may fill the rest.
        params: parameters that the net may hold from the start, as a number or as a share (a float) of the dense net's:
            ranks and entries of S are chosen for it together, where they do most for each layer's share of its energy,
            and S is masked as a cut would mask it. A trained start only. `rank` is then the most that a layer gets.
        block: what of S is kept or cut together: so many neighbouring input channels of one output channel and one tap.
            1 is the S of the paper; 4 suits the engine in eight bits, and takes one position for four entries.
    """

    rank: Rank | None = None
    sparse: bool = True
    scheme: Scheme = Scheme.CHANNEL
    include: tuple[Pattern, ...] = ("*",)
    exclude: tuple[Pattern, ...] = ()
    start: Start = "trained"
    trained: bool = False
    density: float = 1.0
    params: int | float | None = None
    block: int = 1

    def __post_init__(self) -> None:
        if self.rank is not None:
            check_rank(self.rank)
        schemes = [scheme.value for scheme in Scheme]
        if self.scheme not in schemes:
            raise ValueError(f"a scheme is one of {', '.join(schemes)}, found {self.scheme!r}")
        object.__setattr__(self, "scheme", Scheme(self.scheme))  # "spatial" as well as Scheme.SPATIAL
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
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < 1:
            raise ValueError(f"a block of S is a whole number of input channels from 1 up, found {self.block!r}")
        if self.params is not None:
            check_params(self.params)
        if self.params is not None and not self.sparse:
            raise ValueError("params is shared by L and S: without a sparse part, give rank=Budget(share)")
        if self.params is not None and (self.start != "trained" or self.density != 1):
            raise ValueError("params chooses what a trained start keeps: leave start and density out, or params")


@dataclass(frozen=True)
class Summary:
    """What `decompose` did.

    Attributes:
        ranks: the rank of each decomposed layer by name.
        dense: each selected layer that stays dense, with the reason.
        idle: patterns that meant no convolution or linear layer of the model.
        kinds: how many layers of each of PyTorch's classes were decomposed.
    """

    ranks: dict[str, int]
    dense: dict[str, str] = field(default_factory=dict)
    idle: tuple[Pattern, ...] = ()
    kinds: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, layers: Mapping[str, LowRankSparse], dense: dict[str, str], idle: Iterable[Pattern] = ()) -> "Summary":
        """The summary of a model that has these decomposed layers, by name."""
        kinds = Counter(layer.kind.__name__ for layer in layers.values())
        return cls({name: layer.rank for name, layer in layers.items()}, dense, tuple(idle), dict(kinds))

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        lines = [f"decomposed {len(self.ranks)} layers{f': {kinds}' if kinds else ''}"]
        lines += [f"stays dense: {name}: {reason}" for name, reason in self.dense.items()]
        lines += [f"matched nothing: {pattern!r}" for pattern in self.idle]
        return "\n".join(lines)


def decompose(model: nn.Module, design: Design, calibrate: Iterable | Epochs | None = None) -> Summary:
    """Replaces layers of `model` in place by layers with W = A·B + S, and says what became of each selected one.

    Takes any `nn.Module`, and keeps what it has learned; for a start from scratch see `Design.start`. Decomposed are
    convolutions of any kind, linear layers and the projections of `nn.MultiheadAttention`, which becomes one that has
    them as layers; a subclass too whose own forward does no more than pad and cast, and keeps it. What can't be
    decomposed stays dense: depthwise convolutions, other forwards, recurrent layers and embeddings, parametrised or
    tied weights, layers with hooks or kept in lists, layers that A and B would make larger.
    Optimisers must be built afterwards: the parameters are new.

    Args:
        model: any network.
        design: what to decompose and how.
        calibrate: inputs by which to choose what a trained start keeps, and to fit it: some hundreds, in batches as
            `recalibrate` takes them, preprocessed and augmented as in training; all of them are used. Biases make up
            for the mean of what is left out. To be followed by `recalibrate` if the model has batch norm.

    Raises:
        ValueError: nothing is left to decompose, the model itself is the layer, or a budget can't be met, a weight or
            an input is not finite, or a start from scratch is to be calibrated.
    """
    if calibrate is not None and design.start != "trained":
        raise ValueError(f"start={design.start!r} starts afresh, and has nothing to calibrate: leave calibrate out")
    for module in model.modules():
        check_not_flat(module)
    with opened(model):
        return _decompose(model, design, calibrate)


def _decompose(model: nn.Module, design: Design, calibrate: Iterable | Epochs | None) -> Summary:
    names, idle = select(model, (*KINDS, *OTHERS), design.include, design.exclude)
    modules, uses = dict(model.named_modules()), Uses(model)
    reasons = {name: obstacle(modules[name], uses) for name in names if not isinstance(modules[name], OpenAttention)}
    dense = {name: reason for name, reason in reasons.items() if reason}
    layers: Layers = {name: modules[name] for name, reason in reasons.items() if not reason}  # type: ignore[misc]
    if "" in layers:
        raise ValueError("the model is itself the layer to replace: wrap it, as in nn.Sequential(layer)")
    matrices = {name: matrix_of(layer, design.scheme) for name, layer in layers.items()}
    for name, matrix in matrices.items():
        if not matrix.isfinite().all():
            raise ValueError(f"expected finite numbers, found NaN or infinity in the weight of {name!r}")
    ranks = _ranks(model, design, matrices)
    for name, rank in list(ranks.items()):
        most = largest_useful_rank(matrices[name].shape)
        if rank > most and design.params is not None:
            ranks[name] = most
        elif rank > most:
            m, k = matrices[name].shape
            dense[name] = f"rank {rank} would make its {m} x {k} matrix larger (at most {most})"
            del ranks[name]
    if not ranks:
        found = "; ".join(f"{name}: {reason}" for name, reason in list(dense.items())[:3])
        raise ValueError(
            "nothing to decompose: "
            + (f"every selected layer stays dense ({found})" if dense else f"no layer matches {list(design.include)}")
        )
    chosen = {name: layers[name] for name in ranks}
    inputs = None if calibrate is None else inputs_of(model, chosen, design.scheme, calibrate)
    parts = _parts(model, design, chosen, {name: matrices[name] for name in ranks}, ranks, inputs)
    new = {name: _decomposed(layer, parts[name], design) for name, layer in chosen.items()}
    for name, layer in new.items():
        if inputs is not None and name in inputs.seen and inputs.seen[name].has_bias and layer.bias is not None:
            lost = matrices[name] - layer.matrix.detach()
            layer.bias.detach().add_(inputs.seen[name].shift(lost, len(layer.bias)))
    replace(model, {chosen[name]: layer for name, layer in new.items()})
    return Summary.of(new, dense, idle)


def _decomposed(layer: nn.Linear | _ConvNd, parts: Parts, design: Design) -> LowRankSparse:
    A, B, S, mask = parts
    new = layer_of(layer, A.shape[1], design.sparse, design.scheme, design.block)
    new.set_parts(A, B, S, mask)
    return new


def _ranks(model: nn.Module, design: Design, matrices: dict[str, Tensor]) -> dict[str, int]:
    rank = design.rank
    if rank is None:
        if design.params is not None:
            return {name: min(matrix.shape) for name, matrix in matrices.items()}
        rank = DEFAULT_RANK
    if not isinstance(rank, Budget):
        return {name: choose_rank(rank, matrix) for name, matrix in matrices.items()}
    return ranks_within(_left(model, rank.budget, matrices), matrices, least=0 if design.sparse else 1)


def _left(model: nn.Module, params: int | float, matrices: dict[str, Tensor]) -> int:
    """What a budget, as a number or a share of the dense net's parameters, leaves to the layers with these matrices."""
    dense = sum(p.numel() for p in model.parameters())
    allowed = int(params * dense) if isinstance(params, float) else params
    return allowed - dense + sum(matrix.numel() for matrix in matrices.values())


def _parts(
    model: nn.Module,
    design: Design,
    layers: Layers,
    matrices: dict[str, Tensor],
    ranks: dict[str, int],
    inputs: Inputs | None,
) -> dict[str, Parts]:
    """The starting values of each layer."""
    if design.start != "trained":
        return {n: (*from_scratch(W, ranks[n], design.sparse, design.start), None) for n, W in matrices.items()}
    blocks = {
        name: Blocks.of(design.block, layer.weight.shape, isinstance(layer, _ConvTransposeNd))
        for name, layer in layers.items()
    }
    if design.params is None:
        return parts_to_density(matrices, ranks, blocks, design.sparse, design.density, inputs)
    left = _left(model, design.params, matrices)
    if left < 0:
        raise ValueError(
            f"the budget can't be met: what is not decomposed holds {-left:,} parameters more; raise params or "
            "decompose more layers"
        )
    return parts_to_budget(model, layers, matrices, blocks, design.scheme, left, ranks, inputs)


def materialise(model: nn.Module) -> nn.Module:
    """Folds every decomposed layer of `model` back to a dense one, in place, and returns the model.

    Returns the dense layer itself when the model is a single decomposed layer.
    """
    model = replace(model, {layer: layer.to_dense() for layer in model.modules() if isinstance(layer, LowRankSparse)})
    close_attentions(model)
    return model
