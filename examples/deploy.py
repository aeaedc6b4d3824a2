"""From a compressed net to a server without PyTorch: compile, save, load in a fresh process, serve from threads.

    python examples/deploy.py

The net has random weights; one of yours comes from `splore.load("model.safetensors")`.
"""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import splore


def main() -> None:
    """Compiles and saves a net, then has another process run it, and compares its answers with PyTorch's."""
    import torch

    model = splore.build("resnet20", num_classes=10).eval()
    splore.decompose(model, splore.Design(rank=1))
    splore.prune(model, params=0.15)
    engine = splore.compile(model, torch.randn(16, 3, 32, 32), threads=1)  # times its kernels on this machine
    with tempfile.TemporaryDirectory() as folder:
        program, images, answers = (Path(folder) / name for name in ("net.splore", "images.npy", "answers.npy"))
        engine.save(program)
        batches = np.random.default_rng(0).standard_normal((8, 16, 3, 32, 32), dtype=np.float32)
        np.save(images, batches)
        subprocess.run([sys.executable, __file__, str(program), str(images), str(answers)], check=True)
        found = np.load(answers)
    with torch.no_grad():
        expected = model(torch.from_numpy(batches.reshape(-1, 3, 32, 32))).numpy().reshape(found.shape)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"largest difference from PyTorch: {error:.1e} of the largest output")
    assert error < 1e-4


def serve(program: str, images: str, answers: str) -> None:
    """What a server does: one engine for the life of the process, called by as many threads as there are requests."""
    engine = splore.Engine.load(program, threads=1)
    batches: NDArray[np.float32] = np.load(images)
    with ThreadPoolExecutor(max_workers=4) as pool:
        np.save(answers, np.stack(list(pool.map(engine, batches))))
    assert "torch" not in sys.modules
    print(f"{batches.shape[0]} batches of {batches.shape[1]} images from 4 threads, without torch")


if __name__ == "__main__":
    serve(*sys.argv[1:]) if sys.argv[1:] else main()
