"""Peak memory of a fresh process that loads a network from a file and runs it, and does nothing else."""

import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import numpy as np
x = np.random.default_rng(0).standard_normal({shape}).astype(np.float32)
{load}
for _ in range(3):
    run(x)
(peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]  # getrusage inherits its parent's
print(int(peak.split()[1]) / 1024)
"""
_LOADS = {
    "engine": "from splore.engine.engine import Engine\nrun = Engine.load({path!r}, threads={threads})",
    "ONNX Runtime": "from splore.deploy.runtimes import onnx_session as load\nrun = load({path!r}, {threads})",
    "OpenVINO": "from splore.deploy.runtimes import openvino_model as load\nrun = load({path!r}, {threads})",
}


def peak_mib(runtime: str, path: Path, shape: tuple[int, ...], threads: int) -> float:
    """Peak resident memory in MiB of `runtime` (engine, ONNX Runtime or OpenVINO) on images of this shape.

    Raises RuntimeError where it fails, and where the system has no /proc.
    """
    load = _LOADS[runtime].format(path=str(path), threads=threads)
    script = _SCRIPT.format(shape=shape, load=load)
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{runtime} failed on its own:\n{ran.stderr[-2000:]}")
    return round(float(ran.stdout.split()[-1]), 1)
