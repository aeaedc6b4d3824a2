"""Neural networks made small and fast: every weight learned as a low-rank plus a sparse matrix, W = A·B + S.

The three stages of the method, over any `torch.nn.Module`:

    splore.decompose(model, splore.Design(rank=4))    # (a) structure
    splore.attach(model, optimizer, l1=1e-3)          # (b) each step learns L and S
    splore.prune(model, params=0.05)                  # (c) cut S, then fine-tune: what is cut stays zero
    splore.save(model, "model.safetensors")
"""

import importlib
from typing import TYPE_CHECKING

_HOMES = {
    "budget.bytes": ("Bytes",),
    "budget.macs": ("MACs",),
    "budget.milliseconds": ("Milliseconds",),
    "design.decompose": ("Design", "Summary", "decompose", "materialise"),
    "design.layers": ("LowRankSparseConv2d", "LowRankSparseLinear", "decomposed_layers"),
    "design.matrix": ("Scheme",),
    "design.prices": ("Params",),
    "design.pruned": ("from_pruned",),
    "design.ranks": ("Budget", "Energy"),
    "measure.cost": ("cost",),
    "deploy.export": ("export",),
    "deploy.hub": ("push_to_hub",),
    "train.attach": ("attach",),
    "train.penalties": ("FrobeniusDecay", "L1", "Scaling", "parameter_groups"),
    "train.masks": ("hold_masks",),
    "postprocess.prune": ("cubic", "prune"),
    "postprocess.quantize": ("quantize",),
    "postprocess.rank_cut": ("cut_ranks", "share_budget"),
    "postprocess.recalibrate": ("recalibrate",),
    "postprocess.scores": ("energy_share", "lamp", "magnitude", "relative"),
    "capture.compile": ("compile",),
    "engine.engine": ("Engine",),
    "modelfile.file": ("ModelFileError", "load", "save"),
    "task": ("Preprocessing", "Task"),
    "measure.accuracy": ("evaluate",),
    "vision": ("build",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    __version__: str

    from splore.budget.bytes import Bytes
    from splore.budget.macs import MACs
    from splore.budget.milliseconds import Milliseconds
    from splore.capture.compile import compile
    from splore.deploy.export import export
    from splore.deploy.hub import push_to_hub
    from splore.design.decompose import Design, Summary, decompose, materialise
    from splore.design.layers import LowRankSparseConv2d, LowRankSparseLinear, decomposed_layers
    from splore.design.matrix import Scheme
    from splore.design.prices import Params
    from splore.design.pruned import from_pruned
    from splore.design.ranks import Budget, Energy
    from splore.engine.engine import Engine
    from splore.measure.accuracy import evaluate
    from splore.measure.cost import cost
    from splore.modelfile.file import ModelFileError, load, save
    from splore.postprocess.prune import cubic, prune
    from splore.postprocess.quantize import quantize
    from splore.postprocess.rank_cut import cut_ranks, share_budget
    from splore.postprocess.recalibrate import recalibrate
    from splore.postprocess.scores import energy_share, lamp, magnitude, relative
    from splore.task import Preprocessing, Task
    from splore.train.attach import attach
    from splore.train.masks import hold_masks
    from splore.train.penalties import L1, FrobeniusDecay, Scaling, parameter_groups
    from splore.vision import build


def __getattr__(name: str) -> object:
    """Imports a public name at its first use, so that `import splore` stays fast."""
    if name == "__version__":
        from importlib.metadata import version

        return version("splore")
    if name not in _HOME:
        raise AttributeError(f"module 'splore' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"splore.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
