"""Networks that `torch.nn.utils.prune` has masked: what it left becomes S, and its masks the masks of S."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import prune

from splore.design.decompose import Summary
from splore.design.layers import LowRankSparse, layer_of
from splore.design.matrix import Scheme, unfold
from splore.design.obstacle import Uses, obstacle
from splore.design.select import replace
from splore.tensors import load_tensors

ORIGINAL, MASK = "_orig", "_mask"
"""What `torch.nn.utils.prune` puts behind the name of a tensor: the tensor before, and 1 where it is kept."""


def from_pruned(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> Summary:
    """Replaces each layer whose weight is masked by one with W = S, in place; S is kept under that mask from then on.

    Args:
        model: a network that `torch.nn.utils.prune` has masked; or, with `state`, a dense one of its architecture.
        state: the state dict of a masked network, with `NAME_orig` and `NAME_mask`; None takes the model's own masks.

    Masks of biases, and of what is no convolution or linear layer, are applied once and for all; the summary names the
    layers that stay dense. Optimisers must be built afterwards. L comes by `decompose` only to layers without a mask.

    Raises:
        ValueError: nothing is masked, or the state is of another network; the model is then untouched.
    """
    found = model.state_dict() if state is None else state
    masks = {name.removesuffix(MASK): mask.bool() for name, mask in found.items() if _is_mask(name, found)}
    if not masks:
        raise ValueError(
            "expected masks of torch.nn.utils.prune, NAME_orig and NAME_mask, found none: a network whose zeros have "
            "no masks is decomposed by decompose(model, Design(rank=0))"
        )
    if state is not None:
        _load(model, state, masks)
    else:
        for module in model.modules():
            for hook in list(module._forward_pre_hooks.values()):
                if isinstance(hook, prune.BasePruningMethod):
                    prune.remove(module, hook._tensor_name)
    modules, uses = dict(model.named_modules()), Uses(model)
    new: dict[str, LowRankSparse] = {}
    dense: dict[str, str] = {}
    for name in masks:
        path, _, leaf = name.rpartition(".")
        reason = "a mask of another tensor" if leaf != "weight" else obstacle(modules[path], uses)
        if reason:
            dense[name] = f"{reason}; its mask was applied once and for all"
        else:
            new[path] = _layer(modules[path], masks[name])
    replace(model, {modules[path]: layer for path, layer in new.items()})
    return Summary.of(new, dense)


def has_masks(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is of a network that `torch.nn.utils.prune` has masked."""
    return any(_is_mask(name, state) for name in state)


def _is_mask(name: str, state: Mapping[str, Tensor]) -> bool:
    return name.endswith(MASK) and name.removesuffix(MASK) + ORIGINAL in state


def _load(model: nn.Module, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Loads a masked state into a dense network, whole or not at all."""
    dense = {name: value for name, value in state.items() if not _is_mask(name, state)}
    for name, mask in masks.items():
        dense[name] = dense.pop(name + ORIGINAL) * mask
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in dense.items()}
    if own != given:
        differ = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
        raise ValueError(
            f"the state is of another network: {', '.join(differ[:3])} differ{'s' * (len(differ) == 1)}; pass a dense "
            "network that is built as the pruned one was"
        )
    load_tensors(model, dense)


def _layer(dense: nn.Module, mask: Tensor) -> LowRankSparse:
    transposed = isinstance(dense, _ConvTransposeNd)
    layer = layer_of(dense, 0, True, Scheme.CHANNEL)  # type: ignore[arg-type]
    weight: Tensor = dense.weight.detach()  # type: ignore[union-attr, assignment, operator]
    matrices = (unfold(each, Scheme.CHANNEL, transposed) for each in (weight, mask.to(weight.device)))
    S, open_places = matrices
    with torch.no_grad():
        layer.set_parts(None, None, S, open_places)
    return layer
