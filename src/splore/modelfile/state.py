"""The state of a network as the tensors of a model file, and back.

A tensor has the name that it has in the network's state. In place of the S and the mask of a decomposed layer stand its
non-zeros `S.values` and, each as bytes, `S.support`, `S.mask` and `S.negative_zeros`; one that would be empty is left
out. A tensor that the network holds under several names is stored once.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from splore.design.attention import opened
from splore.design.blocks import Blocks
from splore.design.layers import LowRankSparse, layer_of
from splore.design.low_rank_sparse import KINDS
from splore.design.select import replace
from splore.modelfile.coded import COMPILED, WRITTEN, code
from splore.modelfile.packed import Index, PackedSparse, pack, unpack
from splore.modelfile.structure import IndexStructure, LayerStructure, ModelFileError, SparseStructure, Structure, join
from splore.modelfile.values import Values, decoded
from splore.tensors import load_tensors


def to_tensors(model: nn.Module, values: Values | None = None) -> tuple[Structure, dict[str, Tensor]]:
    """A network taken apart: its structure, without an origin, and contiguous tensors on the CPU.

    `values` is how weights of convolutions and linear layers are written where they can be: by default as they are.

    Raises:
        ValueError: the state holds something that is not a plain, whole tensor.
    """
    layers: dict[LowRankSparse, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LowRankSparse):
            layers.setdefault(module, []).append(path.replace(COMPILED, ""))
    sparse = {join(name, part) for names in layers.values() for name in names for part in ("S", "mask")}
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[int, str] = {}
    for key, value in model.state_dict(keep_vars=True).items():
        name = key.replace(COMPILED, "")
        if hasattr(value, "placements"):
            raise ValueError(
                f"expected whole tensors in the model's state, found a shard at {name!r}: load the state that "
                "get_model_state_dict gives, with full_state_dict=True, into a model that is not sharded, and save that"
            )
        if name in sparse:
            continue
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise ValueError(f"expected plain tensors in the model's state, found {type(value).__name__} at {name!r}")
        if id(value) in first:
            ties[name] = first[id(value)]
        else:
            first[id(value)] = name
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    structures = []
    for layer, names in layers.items():
        if not layer.rank:  # the file has an empty A and B then
            m, k = layer.mask.shape
            for part, shape in {"A": (m, 0), "B": (0, k)}.items():
                tensors[join(names[0], part)] = torch.empty(shape, dtype=layer.S.dtype)
        packed = pack(layer, values)
        structures.append(_structure(layer, tuple(names), packed))
        if packed is not None:
            tensors |= _packed_tensors(packed, names[0])
    kinds = code(model, tensors, values) | {
        join(layer.names[0], "S.values"): values
        for layer in structures
        if values is not None and layer.sparse and tensors[join(layer.names[0], "S.values")].dtype in WRITTEN
    }
    return Structure(None, tuple(structures), ties, coded=kinds), tensors


def check_network(model: nn.Module, structure: Structure, tensors: Mapping[str, Tensor]) -> None:
    """Whether a network, dense and perhaps without storage, is the one that the file is of.

    Raises:
        ModelFileError: modules, names, shapes or kinds of numbers differ, or the network is decomposed already.
    """
    with _opened(model, structure):
        _check_open(model, structure, tensors)


def _opened(model: nn.Module, structure: Structure) -> AbstractContextManager[None]:
    """The attentions of which the file has a projection decomposed hold it as a layer within."""
    return opened(model, {name for layer in structure.layers for name in layer.names}.__contains__)


def _check_open(model: nn.Module, structure: Structure, tensors: Mapping[str, Tensor]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    expected, found = _signatures(tensors), _signatures(model.state_dict())
    for name, module in modules.items():
        if isinstance(module, LowRankSparse):
            raise ModelFileError(
                f"expected a fresh dense model to load into, found {name!r} decomposed already: build the model anew"
            )
    for layer in structure.layers:
        for part in ("A", "B"):
            if join(layer.names[0], part) not in expected:
                raise ModelFileError(f"the file lacks the {part} of {layer.names[0]!r}: get the file anew")
        for part in _sparse_parts(layer.sparse):
            expected.pop(join(layer.names[0], part), None)
    for name, stored in structure.ties.items():
        if stored not in expected:
            raise ModelFileError(f"the file lacks {stored!r}, the tensor of {name!r}: get the file anew")
        expected[name] = expected[stored]
    for layer in structure.layers:
        _check_layer(layer, modules, found)
    if expected != found:
        name = min(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise _other_network(expected.get(name, "nothing"), found.get(name, "nothing"), name)


def restore(model: nn.Module, structure: Structure, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Makes a dense network into the one in the file, in place; the network is untouched if that can't be.

    Returns the model, or the new layer where the model is itself the layer to replace.

    Raises:
        ModelFileError: the file is of another network, or what it says of its sparse parts is not so.
    """
    check_network(model, structure, tensors)
    if any(t.is_meta for t in model.state_dict().values()):
        raise ModelFileError("expected a model with storage to load into, found one on 'meta': build it on the CPU")
    state = dict(tensors)
    for layer in structure.layers:
        if layer.sparse is not None:
            S, mask = _unpacked(layer, layer.sparse, tensors, join(layer.names[0], "S.values") in structure.coded)
            for part in _sparse_parts(layer.sparse):
                state.pop(join(layer.names[0], part), None)
            for name in layer.names:
                state[join(name, "S")], state[join(name, "mask")] = S, mask
    state |= {name: tensors[stored] for name, stored in structure.ties.items()}
    with _opened(model, structure):
        model = replace(model, dict(_decomposed(model, layer) for layer in structure.layers))
    for name, t in model.state_dict(keep_vars=True).items():
        if t.dtype != state[name].dtype:
            t.data = t.data.to(state[name].dtype)
    load_tensors(model, state)
    for name, stored in structure.ties.items():
        _tie(model, name, stored)
    return model


def _structure(layer: LowRankSparse, names: tuple[str, ...], packed: PackedSparse | None) -> LayerStructure:
    sparse = None
    if packed is not None:
        support, zeros = _described(packed.support), _described(packed.negative_zeros)
        mask = None if packed.mask is None else _described(packed.mask)
        sparse = SparseStructure(support, mask, zeros, layer.blocks.size, packed.values.numel())
    return LayerStructure(names, layer.kind.__name__, layer.weight_shape, layer.scheme, layer.rank, sparse)


def _described(index: Index) -> IndexStructure:
    return IndexStructure(index.coding, index.count)


def _packed_tensors(packed: PackedSparse, name: str) -> dict[str, Tensor]:
    tensors = {join(name, "S.values"): packed.values}
    if packed.scale is not None:
        tensors[join(name, "S.scale")] = packed.scale
    for part in _sparse_parts(packed)[2:]:
        index = getattr(packed, part.removeprefix("S."))
        if len(index.code):
            tensors[join(name, part)] = torch.from_numpy(index.code)
    return tensors


def _sparse_parts(sparse: SparseStructure | PackedSparse | None) -> list[str]:
    """The names of the tensors that a sparse part may have in the file, the values and their scales first."""
    if sparse is None:
        return []
    return ["S.values", "S.scale", "S.support", *(["S.mask"] if sparse.mask else []), "S.negative_zeros"]


def _unpacked(
    layer: LayerStructure, sparse: SparseStructure, tensors: Mapping[str, Tensor], is_coded: bool
) -> tuple[Tensor, Tensor]:
    def index(part: str, described: IndexStructure) -> Index:
        code = tensors.get(join(layer.names[0], part), torch.empty(0, dtype=torch.uint8))
        if code.dtype != torch.uint8 or code.dim() != 1:
            raise ValueError(f"expected bytes in {part}, found {code.dtype} of shape {tuple(code.shape)}")
        return Index(described.coding, described.count, code.numpy())

    try:
        values = tensors.get(join(layer.names[0], "S.values"))
        like = tensors[join(layer.names[0], "A")].dtype
        if values is None or (values.dtype not in WRITTEN if is_coded else values.dtype != like):
            raise ValueError(f"expected values of the type of A, found {values if values is None else values.dtype}")
        if values.shape != (sparse.entries,):
            raise ValueError(f"expected {sparse.entries} values, found a tensor {tuple(values.shape)}")
        scale = tensors.get(join(layer.names[0], "S.scale"))
        blocks = Blocks.of(sparse.block, layer.shape, layer.transposed)
        packed = PackedSparse(
            values,
            scale,
            index("S.support", sparse.support),
            None if sparse.mask is None else index("S.mask", sparse.mask),
            index("S.negative_zeros", sparse.negative_zeros),
        )
        S, mask = unpack(packed, *layer.matrix_shape, blocks)
        return decoded(S, scale) if is_coded else S, mask
    except ValueError as error:
        raise ModelFileError(
            f"the sparse part of {layer.names[0]!r} is not as the file describes it ({error}): get the file anew"
        ) from error


Signature = tuple[tuple[int, ...], str]


def _signatures(state: Mapping[str, object]) -> dict[str, Signature]:
    """Shape and kind of numbers of each tensor of a state."""
    return {name: _signature(t) for name, t in state.items()}


def _signature(t: object) -> Signature:
    if not isinstance(t, Tensor):
        return (), type(t).__name__
    return tuple(t.shape), "floating-point" if t.is_floating_point() else "integer"


def _check_layer(layer: LayerStructure, modules: Mapping[str, nn.Module], found: dict[str, Signature]) -> None:
    """Whether the dense layer is there; in `found`, A and B then stand in place of its weight."""
    kind = next(kind for kind in KINDS if kind.__name__ == layer.kind)
    for name in layer.names:
        module = modules.get(name)
        if not isinstance(module, kind):
            raise _other_network(f"a {layer.kind}", "nothing" if module is None else f"{module}", name)
        if module is not modules[layer.names[0]]:
            raise _other_network(f"the same layer as at {layer.names[0]!r}", "another", name)
        weight = found.pop(join(name, "weight"), "nothing")
        if weight != (layer.shape, "floating-point"):
            raise _other_network((layer.shape, "floating-point"), weight, join(name, "weight"))
        m, k = layer.matrix_shape
        found[join(name, "A")] = (m, layer.rank), "floating-point"
        found[join(name, "B")] = (layer.rank, k), "floating-point"


def _other_network(expected: str | Signature, found: str | Signature, name: str) -> ModelFileError:
    expected, found = (text if isinstance(text, str) else f"{text[1]} {text[0]}" for text in (expected, found))
    return ModelFileError(
        f"the file is of another network: at {name!r} it has {expected}, the model {found}; "
        "load it into a model that is built as the saved one was"
    )


def _decomposed(model: nn.Module, layer: LayerStructure) -> tuple[nn.Module, LowRankSparse]:
    """A dense layer of the model, and the one of the file that takes its place, still without values."""
    dense: Any = model.get_submodule(layer.names[0])
    block = 1 if layer.sparse is None else layer.sparse.block
    return dense, layer_of(dense, layer.rank, layer.sparse is not None, layer.scheme, block)


def _tie(model: nn.Module, name: str, stored: str) -> None:
    """Makes the tensor at `name` the very one at `stored`, as it was in the saved network."""
    (path, _, leaf), (stored_path, _, stored_leaf) = name.rpartition("."), stored.rpartition(".")
    try:
        owner, source = model.get_submodule(path), model.get_submodule(stored_path)
    except AttributeError:  # a state whose names are not those of the modules: equal values have to do
        return
    if leaf in owner._parameters and stored_leaf in source._parameters:
        owner._parameters[leaf] = source._parameters[stored_leaf]
    elif leaf in owner._buffers and stored_leaf in source._buffers:
        owner._buffers[leaf] = source._buffers[stored_leaf]
