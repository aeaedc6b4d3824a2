"""Example nets and data sets, of which the method knows nothing. What is named here is all that others use.

Nets by name, those of torchvision and timm, and a user's own: `build`, `rebuild`, `usual_image`, `Origin`, `NETS`,
`read_weights`, `start_from`, `trained_with`.
Data sets by name, and a user's own: `open_data`, `Data`, `Batches`, `Augment`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splore.vision.data.in_memory import Augment
    from splore.vision.data.open import Batches, Data, open_data
    from splore.vision.nets.build import (
        NETS,
        Origin,
        build,
        rebuild,
        trained_with,
        usual_image,
    )
    from splore.vision.nets.weights import read_weights, start_from

_HOMES = {
    "data.in_memory": ("Augment",),
    "data.open": ("Batches", "Data", "open_data"),
    "nets.build": ("NETS", "Origin", "build", "rebuild", "trained_with", "usual_image"),
    "nets.weights": ("read_weights", "start_from"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "NETS",
    "Augment",
    "Batches",
    "Data",
    "Origin",
    "build",
    "open_data",
    "read_weights",
    "rebuild",
    "start_from",
    "trained_with",
    "usual_image",
]


def __getattr__(name: str) -> object:
    """Imports a name at its first use: a net needs no data set, nor a data set a net."""
    if name not in _HOME:
        raise AttributeError(f"module 'splore.vision' has no attribute {name!r}")
    return getattr(importlib.import_module(f"splore.vision.{_HOME[name]}"), name)
