"""Results as rows in a JSON file, each with where it comes from; a measurement made again replaces its row."""

import json
from collections.abc import Sequence
from pathlib import Path

from splore.measure.provenance import provenance

DEFAULTS = {"bits": 32, "block": 1}  # what rows mean that were written without


def add_row(path: Path, row: dict, key: Sequence[str]) -> None:
    """Adds a row, in the place of the one of the same hardware that has the same values under `key`."""
    row = row | provenance()
    rows = json.loads(path.read_text()) if path.exists() else []
    kept = [
        old for old in rows if any(old.get(name, DEFAULTS.get(name)) != row.get(name) for name in (*key, "hardware"))
    ]
    path.write_text(json.dumps([*kept, row], indent=1) + "\n")
