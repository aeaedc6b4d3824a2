"""Model files on the Hugging Face Hub: "user/name" in the place of a path."""

import os
import re
from pathlib import Path

MODEL_FILE = "model.safetensors"
"""The model file's name in a repository."""
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def located(path: str | os.PathLike) -> Path:
    """Where a model file is on this machine: `path`, or what "user/name", or "user/name@revision", names on the Hub.

    A text is a name on the Hub where it looks like one and nothing local begins like it. Files are fetched once into
    the Hub's cache, from which they come without a network too (HF_HUB_OFFLINE=1 never asks it).

    Raises OSError where there is no such file on the Hub, or it can't be reached.
    """
    text = os.fspath(path)
    if not isinstance(path, str) or not _is_repository(text):
        return Path(path)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    name, _, revision = text.partition("@")
    try:
        return Path(hf_hub_download(name, MODEL_FILE, revision=revision or None))
    except (HfHubHTTPError, OSError, ValueError) as error:  # the last: not in the cache, and offline
        why = " ".join(str(error).split())[:200]
        raise OSError(
            f"there is no file {text!r} here, and {MODEL_FILE} of that name could not be had from the Hub ({why}): "
            "check the path, or the name and the network"
        ) from error


def _is_repository(text: str) -> bool:
    local = Path(text).exists() or Path(text).parent.exists() or text.endswith((".safetensors", ".splore"))
    return not local and _REPOSITORY.fullmatch(text) is not None
