"""Where a figure comes from: the code, the machine and the versions it was measured with."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from splore.machine import cpu_name, usable_cores


def provenance() -> dict:
    """Commit, versions and hardware, for the JSON beside every result."""
    return {
        "commit": _commit(),
        "versions": {"splore": _version(), "torch": torch.__version__, "python": platform.python_version()},
        "hardware": {
            "cpu": cpu_name(),
            "cores": usable_cores(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _version() -> str | None:
    """None for a source tree that is only on the path."""
    try:
        return version("splore")
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree, with a + when more than results has changed; None for an installed package."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        revision = [*git, "describe", "--always", "--abbrev=12", "--exclude=*"]
        commit = subprocess.run(revision, capture_output=True, text=True, check=True).stdout.strip()
        code = [":(top)", ":(top,exclude)benchmarks/results", ":(top,exclude)docs"]
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code], check=False, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * (changed.returncode != 0)
