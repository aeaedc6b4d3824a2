"""Folders of random images, and batches compared."""

import numpy as np
import torch
from PIL import Image

CPU = torch.device("cpu")


def equal(some, others):
    some, others = list(some), list(others)
    return len(some) == len(others) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(some, others, strict=True)
    )


def write_images(root, shape=(8, 8), classes=("ant", "bee"), counts=None, suffix="png", mode="RGB"):
    """Random images in `root`/{train,test}/<class>/; returns those of train in the order of a listing."""
    draws = np.random.default_rng(0)
    train = []
    for split, count in (counts or {"train": 6, "test": 3}).items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draws.integers(0, 256, (*shape, 3) if mode == "RGB" else shape, dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.{suffix}")
                if split == "train":
                    train.append(pixels)
    return train
