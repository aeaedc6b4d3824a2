"""What a network is wrapped in or copied to: parallel and compiled modules, and averages of weights.

Averages, such as `AveragedModel`, are deep copies whose numbers are mixed with those of the network from time to time.
They take no masks and no ranks: after a cut they go on with entries that the network no longer has. So a layer knows
which one it is a copy of, and by this an average that was begun before a cut is found out.
"""

import weakref
from typing import TYPE_CHECKING, Any, Optional

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING:
    from splore.design.low_rank_sparse import LowRankSparse


class Lineage:
    """What a layer knows of the one that it is a deep copy of. A pickle forgets it, and nothing is kept alive by it."""

    def __init__(self, layer: Optional["LowRankSparse"] = None, source: Optional["LowRankSparse"] = None) -> None:
        self._layer, self._source = (None if each is None else weakref.ref(each) for each in (layer, source))

    @property
    def source(self) -> Optional["LowRankSparse"]:
        """The layer that was copied, while it lives."""
        return self._source() if self._source else None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Lineage":
        layer = self._layer() if self._layer else None
        return Lineage(memo.get(id(layer)), layer)

    def __reduce__(self) -> tuple:
        return Lineage, ()


def is_average(model: nn.Module) -> bool:
    """Whether a module is PyTorch's or timm's average of weights; told without an import of timm."""
    return isinstance(model, AveragedModel) or type(model).__module__ == "timm.utils.model_ema"


def check_average(average: nn.Module) -> None:
    """Raises ValueError, with the place, for an average that was begun before a cut of the network that it follows."""
    for name, module in average.get_submodule("module").named_modules():
        lineage = getattr(module, "lineage", None)
        if not isinstance(lineage, Lineage):
            continue
        layer: Any = module
        revived = layer.S is not None and (layer.S * ~layer.mask).any()
        if revived or (lineage.source is not None and not _alike(layer, lineage.source)):
            raise ValueError(
                f"the average was begun before the network was cut, and has entries in {name!r} that the network has "
                "no more: begin it anew after the cut, or give its .module for the average as it is"
            )


def _alike(layer: "LowRankSparse", source: "LowRankSparse") -> bool:
    if layer.rank != source.rank:
        return False
    return layer.mask is None or bool((layer.mask == source.mask.to(layer.mask.device)).all())


def network_within(model: nn.Module) -> nn.Module:
    """The network itself within `torch.compile`, DataParallel, DDP, a DeepSpeed engine, and averages of weights.

    Raises:
        ValueError: it is within an average that was begun before a cut, or within FSDP1; or its parameters are away.
    """
    check_not_flat(model)
    if is_average(model):
        check_average(model)
    wraps = isinstance(model, DataParallel | DistributedDataParallel) or type(model).__name__ == "DeepSpeedEngine"
    if wraps or is_average(model):
        return network_within(model.get_submodule("module"))
    if "_orig_mod" in model._modules:
        return network_within(model.get_submodule("_orig_mod"))
    for name, parameter in model.named_parameters():
        check_here(name, parameter)
    return model


def check_not_flat(module: nn.Module) -> None:
    """Raises ValueError for a wrapper that makes one flat parameter of many; told without an import of it."""
    if type(module).__name__ == "FullyShardedDataParallel":
        raise ValueError(
            "expected whole parameters or those of fully_shard (FSDP2), found FullyShardedDataParallel, which cuts "
            "them into flat shards: decompose the model, then use fully_shard; to cut or save, load the full state "
            "dict into a model that is not sharded"
        )


def check_here(name: str, parameter: Tensor) -> None:
    """Raises ValueError for a parameter that DeepSpeed's ZeRO-3 has taken away between steps."""
    if hasattr(parameter, "ds_tensor") and not parameter.numel():
        raise ValueError(
            f"expected whole parameters, found shards of DeepSpeed's ZeRO-3 in {name!r}: use a stage below 3, or "
            "fully_shard (FSDP2)"
        )
