"""What a model file says of the network beside its tensors: which layers are decomposed and how, as JSON."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from splore.design.matrix import Scheme, matrix_shape
from splore.files import numbers, typed
from splore.modelfile.sparse_index import Coding
from splore.modelfile.values import Values
from splore.task import Task

DIMENSIONS = {"Linear": 2, "Conv1d": 3, "Conv2d": 4, "Conv3d": 5}
DIMENSIONS |= {f"ConvTranspose{n}d": n + 2 for n in (1, 2, 3)}
"""The kinds of layers, and how many dimensions the weight of each has."""


class ModelFileError(ValueError):
    """A model file that can't be loaded, or not into this model; the message says why and what to do.

    What a message repeats of the file may be of any length: its middle is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= 500 else f"{message[:350]} ... {message[-120:]}")


@dataclass(frozen=True)
class IndexStructure:
    """A set of positions in the file: its coding, and how many positions there are."""

    coding: Coding
    count: int


@dataclass(frozen=True)
class SparseStructure:
    """The sparse part of a layer in the file, as `splore.modelfile.packed` describes it; `mask` is None where full.

    `block` is the size of the blocks that `support` and `mask` are sets of, and `entries` how many values they hold.
    """

    support: IndexStructure
    mask: IndexStructure | None
    negative_zeros: IndexStructure
    block: int
    entries: int


@dataclass(frozen=True)
class LayerStructure:
    """A decomposed layer in the file.

    Attributes:
        names: where it is in the model; more than one for a module that the model holds several times.
        kind: PyTorch's class of the dense layer.
        shape: the dense weight's.
        scheme: the matricisation.
        rank: r, the columns of A.
        sparse: the sparse part, or None.
    """

    names: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    scheme: Scheme
    rank: int
    sparse: SparseStructure | None

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution, with the input channels first."""
        return self.kind.startswith("ConvTranspose")

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of A·B + S."""
        return matrix_shape(self.shape, self.scheme, self.transposed)

    @property
    def nnz(self) -> int | None:
        """Non-zeros of S, or the entries of its blocks that have one; None without a sparse part."""
        return None if self.sparse is None else self.sparse.entries

    @property
    def density(self) -> float | None:
        """Non-zeros as a share of the entries of S, from 0 to 1; None without a sparse part."""
        m, k = self.matrix_shape
        return None if self.nnz is None else self.nnz / (m * k)


@dataclass(frozen=True)
class Structure:
    """The structure of a model file.

    Attributes:
        origin: where the net came from (`source`, `num_classes`, `in_channels`), or None.
        layers: the decomposed layers in the model's order.
        ties: names of the state that are the same tensor as another name, which is the one in the file.
        task: what the net is for, or None; a file without it has no such key.
        coded: the weights that are float32 in the network and something else in the file, by name.
        ranges: (low, high) of the activations of a network in eight bits, by name; None of any other.
    """

    origin: dict[str, Any] | None
    layers: tuple[LayerStructure, ...]
    ties: dict[str, str]
    task: Task | None = None
    coded: dict[str, Values] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] | None = None


def join(name: str, part: str) -> str:
    """The name of a part of the module `name`, as a network's state has it."""
    return f"{name}.{part}" if name else part


def to_json(structure: Structure) -> dict[str, Any]:
    """The structure in types that JSON has. What is said of blocks is left out where an entry is one."""
    optional = ("task", "coded", "ranges")
    text = {key: value for key, value in asdict(structure).items() if key not in optional or value}
    for layer in text["layers"]:
        if layer["sparse"] and layer["sparse"]["block"] == 1:
            del layer["sparse"]["block"], layer["sparse"]["entries"]
    return text


def from_json(value: Any) -> Structure:  # noqa: ANN401
    """The structure that `to_json` gave; every value is checked.

    Raises:
        ModelFileError: it is not such a structure.
    """
    try:
        return Structure(
            origin=None if value["origin"] is None else typed(value["origin"], dict),
            layers=tuple(_layer(layer) for layer in typed(value["layers"], list)),
            ties={typed(k, str): typed(v, str) for k, v in typed(value["ties"], dict).items()},
            task=Task.from_json(value["task"]) if "task" in value else None,
            coded={typed(k, str): Values(v) for k, v in typed(value.get("coded", {}), dict).items()},
            ranges=_ranges(value["ranges"]) if "ranges" in value else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"expected the structure of a compressed model, found one that can't be read ({error}): get the file anew"
        ) from error


def _ranges(value: object) -> dict[str, tuple[float, float]]:
    ranges = {}
    for name, pair in typed(value, dict).items():
        low, high = (float(each) for each in typed(pair, list))
        if not (math.isfinite(low) and math.isfinite(high) and low <= 0 <= high):
            raise ValueError(f"expected a finite range around zero, found {low} to {high} for {name!r:.80}")
        ranges[name] = (low, high)
    return ranges


def _layer(value: dict[str, Any]) -> LayerStructure:
    layer = LayerStructure(
        names=tuple(typed(name, str) for name in typed(value["names"], list)),
        kind=typed(value["kind"], str),
        shape=numbers(value["shape"], least=0),
        scheme=Scheme(value["scheme"]),
        rank=_count(value["rank"]),
        sparse=None if value["sparse"] is None else _sparse(value["sparse"]),
    )
    if not layer.names or DIMENSIONS.get(layer.kind) != len(layer.shape):
        raise ValueError(f"a layer {layer.kind!r} of shape {layer.shape} at {list(layer.names)}")
    channels = layer.shape[0 if layer.transposed else 1]
    if layer.sparse is not None and not 1 <= layer.sparse.block <= max(channels, 1):
        raise ValueError(f"blocks of {layer.sparse.block} for {channels} input channels")
    if layer.rank > min(layer.matrix_shape) or (layer.rank == 0 and layer.sparse is None):
        raise ValueError(f"rank {layer.rank} for a matrix {layer.matrix_shape}")
    return layer


def _sparse(value: dict[str, Any]) -> SparseStructure:
    support, mask = _index(value["support"]), value["mask"]
    return SparseStructure(
        support,
        None if mask is None else _index(mask),
        _index(value["negative_zeros"]),
        _count(value.get("block", 1)),
        _count(value.get("entries", support.count)),
    )


def _index(value: dict[str, Any]) -> IndexStructure:
    return IndexStructure(Coding(value["coding"]), _count(value["count"]))


def _count(value: object) -> int:
    return numbers([value], least=0)[0]
