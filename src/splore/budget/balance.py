"""What L and S are to each other in every layer: their energies, their prices, and how far the one undoes the other."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splore.budget.bytes import Bytes
from splore.design.layers import LowRankSparse, decomposed_layers
from splore.forward import Epochs, batches_of, evaluating, run, split
from splore.measure.tables import Column, Report, percent


@dataclass(frozen=True)
class Balance:
    """L and S of one layer.

    Attributes:
        name: where the layer is in the model.
        rank, entries: of L, and of S.
        low_rank, sparse: the energies of L and S, over that of W = L + S. They add up to more than 1 where L and S are
            of opposite signs, and to less where they agree.
        direction, entry: bytes of a rank of L, and of an entry of S with its position.
        cancellation: over all outputs, the sum of min(|L x|, |S x|) where L x and S x have opposite signs, over that of
            min(|L x|, |S x|) (CHTsL, ICLR 2026): 0 where they never work against each other, 1 where they always do.
            None for a layer without L or S, or one that was not called.
    """

    name: str
    rank: int
    entries: int
    low_rank: float
    sparse: float
    direction: float
    entry: float
    cancellation: float | None


@torch.no_grad()
def balance(model: nn.Module, loader: Iterable | Epochs) -> list[Balance]:
    """How L and S stand to each other in the layers that have an S, by the inputs that a loader gives.

    Args:
        model: a decomposed network; it is left as it is.
        loader: batches of inputs, as `splore.recalibrate` takes them; all of them are used.
    """
    layers = {name: layer for name, layer in decomposed_layers(model).items() if layer.S is not None}
    prices = Bytes(1.0).prices(model)
    against = _cancellation(model, layers, loader)
    found = []
    for name, layer in layers.items():
        whole = float(layer.matrix.double().square().sum()) or 1.0
        found.append(
            Balance(
                name,
                layer.rank,
                int(layer.nnz),
                float(layer.low_rank.double().square().sum()) / whole,
                float(layer.S.double().square().sum()) / whole,
                prices.direction[name],
                prices.entry[name],
                against[name],
            )
        )
    return found


def balance_table(rows: Iterable[Balance]) -> Report:
    """The table of the layers' balances."""
    columns = (
        Column("layer", words=True), Column("rank", 2), Column("entries", 3), Column("energy of L"),
        Column("energy of S"), Column("bytes a rank", 4), Column("bytes an entry", 5), Column("cancellation", 1),
    )  # fmt: skip
    said = (
        (
            row.name,
            str(row.rank),
            f"{row.entries:,}",
            percent(row.low_rank),
            percent(row.sparse),
            f"{row.direction:,.0f}",
            f"{row.entry:.2f}",
            "" if row.cancellation is None else percent(row.cancellation),
        )
        for row in rows
    )
    return Report(columns, tuple(said))


def _cancellation(
    model: nn.Module, layers: dict[str, LowRankSparse], loader: Iterable | Epochs
) -> dict[str, float | None]:
    parts = {name: _apart(layer) for name, layer in layers.items() if layer.rank and layer.S.any()}
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in layers}

    def hook(name: str):  # noqa: ANN202
        def count(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            L, S = (part(*args, **kwargs) for part in parts[name])
            if isinstance(L, Tensor) and isinstance(S, Tensor):
                least = torch.minimum(L.abs(), S.abs()).double()
                sums[name] += torch.stack([least[L * S < 0].sum(), least.sum()]).cpu()

        return count

    handles = [layers[name].register_forward_hook(hook(name), with_kwargs=True) for name in parts]
    try:
        with evaluating(model), torch.compiler.set_stance("force_eager"):
            for batch in batches_of(loader) if parts else ():
                run(model, split(batch)[0])
    finally:
        for handle in handles:
            handle.remove()
    return {name: float(opposed / whole) if whole else None for name, (opposed, whole) in sums.items()}


def _apart(layer: LowRankSparse) -> tuple[LowRankSparse, LowRankSparse]:
    """The layer with L alone, and with S alone, without a bias."""
    L, S = copy.deepcopy(layer), copy.deepcopy(layer)
    L.bias = S.bias = None
    L.S.zero_()
    S.set_parts(None, None)
    return L, S
