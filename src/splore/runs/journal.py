"""metrics.jsonl: one JSON object per line, in the order of the run, with no line lost or doubled by a resume."""

import json
import os
from pathlib import Path

JOURNAL = "metrics.jsonl"


class Journal:
    """Appends to a file of JSON lines. `size` goes into each checkpoint; a resumed run cuts the file back to it."""

    def __init__(self, path: Path, size: int = 0, write: bool = True) -> None:
        self.path = path
        self.size = size
        self._write = write
        if write:
            with path.open("ab") as file:
                file.truncate(size)

    def add(self, **values: object) -> None:
        """Appends a line; values must be JSON-able."""
        line = (json.dumps(values) + "\n").encode()
        if self._write:
            try:
                with self.path.open("ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())  # before any checkpoint that counts on it
            except OSError as error:
                message = f"a line could not be written ({error.strerror}); the run can be resumed"
                raise OSError(error.errno, message, str(self.path)) from error
        self.size += len(line)
