"""Asks examples/serve.py for the classes of images in folders, without PyTorch, and counts what is right.

    python examples/client.py net.splore FOLDER [--port 8000] [--images 2000] [--batch 16]

FOLDER has a folder of images for each class, named as the classes are. The program file says how an image becomes the
network's input. An engine of its own, in this process, has to agree with the answers that came over the network.
"""

import argparse
import json
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splore.engine.engine import Engine


def chosen(folder: Path, classes: tuple[str, ...], count: int) -> list[tuple[Path, int]]:
    """At most so many images, as many of each class, with the numbers of their classes."""
    each = -(-count // len(classes))
    return [(path, i) for i, name in enumerate(classes) for path in sorted((folder / name).iterdir())[:each]][:count]


def ask(server: HTTPConnection, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The network's results (N, classes) for images (N, C, H, W)."""
    server.request("POST", "/", images.tobytes())
    answer = server.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise OSError(f"the server answered {answer.status}: {body.decode(errors='replace')}")
    return np.frombuffer(body, np.float32).reshape(len(images), -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="the file that is served")
    parser.add_argument("folder", type=Path, help="a folder of images for each class")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16, help="images a request")
    options = parser.parse_args()
    engine = Engine.load(options.program)
    task = engine.task
    if task is None or not task.classes or task.preprocessing is None:
        raise SystemExit(f"{options.program} doesn't say its classes and preprocessing: give splore.save a task")
    found = chosen(options.folder, task.classes, options.images)
    right, difference, times = 0, 0.0, []
    for first in range(0, len(found), options.batch):
        paths, labels = zip(*found[first : first + options.batch], strict=True)
        images = np.stack([task.preprocessing(Image.open(path)) for path in paths])
        began = time.perf_counter()
        answers = ask(HTTPConnection("127.0.0.1", options.port, timeout=60), images)
        times.append(time.perf_counter() - began)
        right += int((answers.argmax(1) == labels).sum())
        difference = max(difference, float(np.abs(answers - engine(images)).max()))
    assert "torch" not in sys.modules
    figures = {"images": len(found), "right": right, "accuracy": 100 * right / len(found), "batch": options.batch}
    print(json.dumps(figures | {"difference": difference, "median_ms": 1e3 * float(np.median(times))}))


if __name__ == "__main__":
    main()
