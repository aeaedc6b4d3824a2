"""What the command line says of an error, and the exit code."""

import os
import sys

from splore.commands.parser import Misuse
from splore.names import UnknownName


def exit_code(error: Exception) -> int | None:
    """2 for what was asked wrongly, 1 for what went wrong outside of this program, None for a mistake within it."""
    if isinstance(error, Misuse | UnknownName | FileExistsError):
        return 2
    from splore.runs.recipe_file import RecipeError

    if isinstance(error, RecipeError):
        return 2
    if isinstance(error, ValueError | OSError | ImportError):
        return 1
    import torch

    from splore.train.loop import Diverged

    known = isinstance(error, Diverged | torch.OutOfMemoryError)
    return 1 if known or _is_not_compiled(error) or _is_loss_of_peers(error) else None


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
    import torch

    if isinstance(error, torch.OutOfMemoryError):
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
    if isinstance(error, OSError) and error.strerror and not isinstance(error, FileExistsError):
        message = error.strerror + (f": {error.filename}" if error.filename else "")
    return message or repr(error)
