"""A compressed network on the Hugging Face Hub: what a repository holds, and how it gets there."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import splore
from splore.deploy.card import card
from splore.modelfile.file import read_structure, save
from splore.modelfile.hub import MODEL_FILE
from splore.runs.folder import RECIPE, SUMMARY
from splore.runs.record import FILES

if TYPE_CHECKING:
    from torch import nn

CARD = "README.md"
REPOSITORY_FILES = (MODEL_FILE, CARD, RECIPE, SUMMARY)
"""What a repository holds, the last two of a run."""


def push_to_hub(
    source: "nn.Module | str | os.PathLike[str]",
    name: str,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Puts a network into the repository "user/name" of the Hub, which is made where it isn't there.

    Args:
        source: the folder of a finished run, a model file, or a network.
        name: the repository; `splore.load(name)` reads it from there.
        private: whether a new repository is closed to others.
        revision: the branch; main by default.
        token: of the Hub; the one of `hf auth login` by default.

    Returns: the address of the repository.

    Raises:
        ValueError: the source is no run and no model file.
        OSError: the Hub refused it, or can't be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    with tempfile.TemporaryDirectory() as folder:
        write_repository(source, Path(folder), name)
        api = HfApi(token=token, library_name="splore", library_version=splore.__version__)
        try:
            url = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=name, folder_path=folder, revision=revision, commit_message="A network compressed by splore"
            )
        except (HfHubHTTPError, OSError) as error:
            why = " ".join(str(error).split())[:200]
            raise OSError(
                f"{name} could not be put on the Hub ({why}): check the name, the token and the network"
            ) from error
    return str(url)


def write_repository(source: "nn.Module | str | os.PathLike[str]", folder: Path, name: str) -> None:
    """Writes the files of a repository into an empty folder: the model file, its card, and the recipe and summary of a
    run. Raises ValueError where `source` is no run and no model file."""
    summary = None
    if not isinstance(source, str | os.PathLike):
        save(source, folder / MODEL_FILE)
    elif Path(source).is_dir():
        run = Path(source)
        file = run / FILES["after fine-tuning"]
        if not (run / SUMMARY).exists() or not file.exists():
            raise ValueError(f"expected a finished run in {run}, found no {SUMMARY} or no {file.name}: finish it first")
        summary = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
        for path in (file, run / SUMMARY, run / RECIPE):
            shutil.copy(path, folder / path.name)
        (folder / file.name).rename(folder / MODEL_FILE)
    else:
        read_structure(source)
        shutil.copy(source, folder / MODEL_FILE)
    (folder / CARD).write_text(card(folder / MODEL_FILE, name, summary), encoding="utf-8")
