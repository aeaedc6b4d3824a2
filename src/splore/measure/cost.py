"""What a network costs: parameters, multiply-adds and bytes, per layer and whole, dense beside compressed.

For a decomposed layer the dense cost is that of the layer it stands for; for any other layer both are the same.

- Parameters are `nn.Parameter`s. A decomposed layer has r (m + k) of them in A and B, its bias, and
  those of S: its non-zeros, or all entries of the blocks that have one.
- Multiply-adds (MACs) are counted for one image, see `splore.measure.macs`.
- Bytes are those of the tensors in the model file, with the positions of the non-zeros of S, without its header.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from splore.design.eight_bits import weights
from splore.design.layers import LowRankSparse
from splore.design.matrix import Scheme
from splore.measure.macs import Work, multiply_adds
from splore.modelfile.packed import pack
from splore.modelfile.values import Values, coded, values_of


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a layer or a network costs, beside the dense one that it stands for.

    Attributes:
        params, dense_params: parameters.
        macs, dense_macs: multiply-adds per image.
        bytes, dense_bytes: bytes of the tensors in the model file.
        bytes_least: the same if the positions of S took what any coding must: n H(share) bits for n random places.
    """

    params: int
    dense_params: int
    macs: int
    dense_macs: int
    bytes: int
    dense_bytes: int
    bytes_least: float

    @property
    def params_kept(self) -> float:
        """Parameters as a fraction of the dense ones."""
        return self.params / self.dense_params if self.dense_params else 1.0

    @property
    def macs_kept(self) -> float:
        """Multiply-adds as a fraction of the dense ones."""
        return self.macs / self.dense_macs if self.dense_macs else 1.0

    @property
    def bytes_kept(self) -> float:
        """Bytes as a fraction of the dense ones."""
        return self.bytes / self.dense_bytes if self.dense_bytes else 1.0


@dataclass(frozen=True, kw_only=True)
class LayerCost(Figures):
    """The cost of one module's own tensors and work.

    Attributes:
        name: where the module is in the model; empty for the model itself.
        kind: the class of the layer, of the dense one where it is decomposed.
        shape: the dense weight's shape, or None for what is neither a convolution nor a linear layer.
        scheme, rank: of a decomposed layer, otherwise None.
        nnz: non-zeros of S, or the entries of its blocks that are not all zero; None for a layer without a sparse part.
        density: nnz as a share of the entries of S, from 0 to 1, or None.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    scheme: Scheme | None = None
    rank: int | None = None
    nnz: int | None = None
    density: float | None = None


@dataclass(frozen=True, kw_only=True)
class Cost(Figures):
    """The cost of a network: the sums, and one entry per module that has tensors of its own, in the model's order.

    `str` gives the table of layers.
    """

    layers: tuple[LayerCost, ...]

    @classmethod
    def of(cls, layers: Iterable[LayerCost]) -> "Cost":
        """The cost of a network that has these layers."""
        layers = tuple(layers)
        sums = {field.name: sum(getattr(layer, field.name) for layer in layers) for field in fields(Figures)}
        return cls(layers=layers, **sums)

    def __str__(self) -> str:
        from splore.measure.tables import layer_table  # what draws tables takes a moment to import

        return str(layer_table(self))

    def as_dict(self) -> dict:
        """The sums and the layers in types that JSON has."""
        return {
            "dense": {"params": self.dense_params, "macs": self.dense_macs, "bytes": self.dense_bytes},
            "compressed": {
                "params": self.params,
                "macs": self.macs,
                "bytes": self.bytes,
                "bytes_least": round(self.bytes_least),
                "params_kept": self.params_kept,
                "macs_kept": self.macs_kept,
                "bytes_kept": self.bytes_kept,
            },
            "layers": [
                asdict(layer) | {"scheme": layer.scheme and layer.scheme.value, "shape": layer.shape and [*layer.shape]}
                for layer in self.layers
            ],
        }


@torch.no_grad()
def cost(model: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """Counts what `model` costs on one image of `input_shape`, usually (channels, height, width).

    The model runs once, in evaluation mode, on zeros; it is left as it was found. Shared tensors count once, where
    they come first.

    Raises:
        ValueError: the model doesn't run on such an input.
    """
    model = getattr(model, "_orig_mod", model)
    work = multiply_adds(model, input_shape)
    seen: set[int] = set()
    layers = []
    values = values_of(model)
    for name, module in model.named_modules():
        own = [t for t in _own_tensors(module) if id(t) not in seen]
        seen.update(id(t) for t in own)
        counted = isinstance(module, LowRankSparse | _ConvNd | nn.Linear)
        if own or counted:
            layers.append(_layer_cost(name, module, own, work.get(id(module), Work(0, 0)), values))
    return Cost.of(layers)


def _layer_cost(name: str, module: nn.Module, own: list[Tensor], work: Work, values: Values | None) -> LayerCost:
    params = sum(t.numel() for t in own if isinstance(t, nn.Parameter))
    size = sum(t.nbytes for t in own)
    stored = size - _saved(module, own, values)
    kind = module.kind.__name__ if isinstance(module, LowRankSparse) else type(module).__name__
    if not isinstance(module, LowRankSparse):
        weight = module.weight if isinstance(module, _ConvNd | nn.Linear) else None
        shape = None if weight is None else tuple(weight.shape)
        return LayerCost(
            name=name,
            kind=kind,
            shape=shape,
            params=params,
            dense_params=params,
            macs=work.macs,
            dense_macs=work.dense_macs,
            bytes=stored,
            bytes_least=stored,
            dense_bytes=size,
        )
    m, k = module.matrix_shape
    sparse = [t for t in own if t is module.S]
    factors = [t for t in own if any(t is part for part in module.factors)]
    rest = params - sum(t.numel() for t in (*sparse, *factors) if isinstance(t, nn.Parameter))
    rest_bytes = size - sum(t.nbytes for t in (*sparse, *factors))
    stored -= sum(t.nbytes for t in sparse)
    packed = pack(module, values)
    nnz = None if packed is None else packed.values.numel()
    return LayerCost(
        name=name,
        kind=kind,
        shape=module.weight_shape,
        scheme=module.scheme,
        rank=module.rank,
        nnz=nnz,
        density=None if nnz is None else nnz / (m * k),
        params=rest + sum(t.numel() for t in factors) + (nnz or 0),
        dense_params=rest + m * k,
        macs=work.macs,
        dense_macs=work.dense_macs,
        bytes=stored + (0 if packed is None else packed.nbytes),
        bytes_least=stored + (0 if packed is None else packed.bytes_at_least(module.blocks.count(m, k))),
        dense_bytes=rest_bytes + m * k * module.reference.element_size(),
    )


def _saved(module: nn.Module, own: list[Tensor], values: Values | None) -> int:
    """The bytes that a layer's own weights, but for S, take less in the file than in the network."""
    saved = 0
    for _, owner, part, rows in weights(module):
        weight = getattr(owner, part)
        if owner is module and part != "S" and any(weight is t for t in own):
            found = coded(weight, rows, values)
            if found is not None:
                saved += weight.nbytes - found.numbers.nbytes - (0 if found.scale is None else found.scale.nbytes)
    return saved


def _own_tensors(module: nn.Module) -> list[Tensor]:
    """The parameters and stored buffers of a module without those of its children, each once."""
    stored = {name: b for name, b in module._buffers.items() if name not in module._non_persistent_buffers_set}
    tensors = [t for t in (*module._parameters.values(), *stored.values()) if t is not None]
    return list({id(t): t for t in tensors}.values())
