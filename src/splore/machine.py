"""The machine that this process runs on: the cores that it may use, and the processor's name."""

import os
import platform
from pathlib import Path


def usable_cores() -> int:
    """The cores that this process may use: what its affinity allows, within the quota of its control groups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(min(cores, int(quota)), 1)


def cores_per_process() -> int:
    """The usable cores, shared among the processes of the same job on this machine."""
    return max(usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The cores' worth of time that the control groups (version 1 or 2) of this process grant it; None for no limit.

    A container runs on every core of its host by affinity and is held back by such a quota. `root` is where /proc and
    /sys are.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for _, controllers, path in (line.split(":", 2) for line in groups if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers  # version 2 has one tree for all controllers
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):  # the group's own folder may be hidden from a container, its root is not
            quotas += _quota(folder)
            if folder == mount:
                break
    return min(quotas, default=None)


def _quota(folder: Path) -> list[float]:
    """The quota of one control group, if it has one, in cores."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{each}_us").read_text().strip() for each in ("quota", "period"))
        return [int(quota) / int(period)] if quota not in ("max", "-1") else []
    except (OSError, ValueError, ZeroDivisionError):
        return []


def cpu_name() -> str:
    """The processor's name, family, model and vector extensions: a virtual machine may give the name too broadly."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    first = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    name = first.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in first and "model" in first:
        name += f" family {first['cpu family']} model {first['model']}"
    flags = first.get("flags", "").split()
    extensions = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{name} ({' '.join(extensions)})" if extensions else name
