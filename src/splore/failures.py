"""What the command line says of an error, and the exit code."""

import os
import sys

from splore.commands.parser import Misuse
from splore.names import UnknownName


def exit_code(error: Exception) -> int | None:
    """2 for what was asked wrongly, 1 for what went wrong outside of this program, None for a mistake within it."""
    if isinstance(error, Misuse | UnknownName | FileExistsError):
        return 2
    if _is_of_recipe(error):
        return 2
    if isinstance(error, ValueError | OSError | ImportError):
        return 1
    known = _is_full_memory(error) or _is_diverged(error) or _is_not_compiled(error) or _is_loss_of_peers(error)
    return 1 if known else None


# What has not been imported has raised nothing; and a program runs where there is no torch to be imported.


def _is_of_recipe(error: Exception) -> bool:
    if "splore.runs.recipe_file" not in sys.modules:
        return False
    from splore.runs.recipe_file import RecipeError

    return isinstance(error, RecipeError)


def _is_diverged(error: Exception) -> bool:
    if "splore.train.loop" not in sys.modules:
        return False
    from splore.train.loop import Diverged

    return isinstance(error, Diverged)


def _is_full_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return False
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _is_not_compiled(error: Exception) -> bool:
    """Whether torch.compile has failed."""
    if "torch._dynamo.exc" not in sys.modules:  # it takes seconds to import, and nothing has been compiled
        return False
    from torch._dynamo.exc import BackendCompilerFailed

    return isinstance(error, BackendCompilerFailed)


def _is_loss_of_peers(error: Exception) -> bool:
    """Whether an error says that another process of the same job is gone."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or not isinstance(error, RuntimeError):
        return False
    from torch.distributed import DistError

    # Gloo's own errors have no type of theirs.
    return isinstance(error, DistError) or "gloo" in str(error).lower() or "Connection closed by peer" in str(error)


def explained(error: Exception) -> str:
    """What to say of an error, in one line."""
    message = " ".join(str(error).split())
    if isinstance(error, Misuse):
        return message
    if _is_full_memory(error):
        return f"the device's memory is full: make data.batch_size smaller ({message.split('. ')[0]})"
    if _is_not_compiled(error):
        return (
            "the net could not be compiled: see that a C++ compiler (g++) works, or set hardware.compile: false "
            f"({message[:300]})"
        )
    if _is_loss_of_peers(error):
        return (
            "another process of this job has died or can't be reached: the same command with --resume continues from "
            f"the last checkpoint ({message[:200]})"
        )
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        return "this needs PyTorch, and only programs (.splore) do without: pip install torch"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, FileExistsError):
        message = error.strerror + (f": {error.filename}" if error.filename else "")
    return message or repr(error)
