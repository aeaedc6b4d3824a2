"""What the charts share. A chart is a Vega-Lite specification.

Colours are the page's CSS variables, so that one chart serves on light, on dark and on paper.
"""

import math
from collections.abc import Sequence
from typing import Any

Chart = dict[str, Any]
"""Its `description` is what stands above it, and what a screen reader says."""

METHODS = {"dense": "dense", "low-rank+sparse": "A·B + S", "sparse": "S alone", "low-rank": "A·B alone"}
"""A recipe's method, as charts and tables call the net."""

_COLOURS = {
    "dense": "var(--dense)",
    "A·B + S": "var(--ours)",
    "S alone": "var(--sparse)",
    "A·B alone": "var(--low-rank)",
    "A·B": "var(--low-rank)",
    "S": "var(--sparse)",
    "compressed": "var(--ours)",
    "bias": "var(--dense)",
}
AUTOSIZE = {"type": "fit-x", "contains": "padding"}
LEGEND = {"orient": "top", "title": None, "offset": 24}


def coloured(field: str, names: Sequence[str], legend: dict | None) -> dict:
    """The encoding of a colour for each name, the same one wherever the name stands on the page."""
    scale = {"domain": list(names), "range": [_COLOURS[name] for name in names]}
    return {"field": field, "type": "nominal", "scale": scale, "legend": legend}


def milliseconds(ms: float) -> str:
    """A time in three digits: 0.0321 ms, 1.45 ms, 124 ms."""
    digits = 2 - math.floor(math.log10(ms)) if ms > 0 else 0
    return f"{ms:.{min(max(digits, 0), 4)}f} ms"
