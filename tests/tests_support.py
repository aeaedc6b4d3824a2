"""Nets and data that runs in the tests name as `tests_support:...`; the environment says what is to befall them.

DIE_AT      forward passes after which the process kills itself, within DIE_WITHIN seconds
DIE_RANK    the rank to which this happens (all by default)
NAN_AT      forward passes after which the outputs are NaN
SEE         folder for what each rank is given and has learned, at every forward pass of an evaluation
WARN        what each forward pass warns of
SLEEP       seconds that each forward pass takes longer
UNLUCKY     the seed with which the net `unlucky` can't be built
GATHER      parameters from which FSDP gathers a module by itself
"""

import os
import signal
import threading
import time
import warnings

import torch
from torch import nn

from splore.train import shards

if "GATHER" in os.environ:
    shards.OWN_GATHER = int(os.environ["GATHER"])


class Mortal(nn.Module):
    """A tiny net, with batch norm unless told otherwise, for images with one channel."""

    passes = 0

    def __init__(self, num_classes, norm=True, dropout=0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=not norm)
        self.norm1 = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1, stride=2)
        self.norm2 = nn.BatchNorm2d(12) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(12, num_classes)

    def forward(self, x):
        Mortal.passes += 1
        time.sleep(float(os.environ.get("SLEEP", "0")))
        if "WARN" in os.environ:
            warnings.warn(os.environ["WARN"], stacklevel=2)
        if Mortal.passes == int(os.environ.get("DIE_AT", "0")) and _here():
            threading.Thread(target=_die, args=(float(os.environ.get("DIE_WITHIN", "0")),), daemon=True).start()
        if os.environ.get("SEE") and len(x) > 1 and not any(module.training for module in self.modules()):
            seen = {"images": x, "state": self.state_dict()}
            torch.save(seen, f"{os.environ['SEE']}/{Mortal.passes:05d}-{os.environ.get('RANK', '0')}.pt")
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        x = self.head(self.drop(x.mean((2, 3))))
        late = Mortal.passes > int(os.environ.get("NAN_AT", "1000000000"))
        return x * float("nan") if late else x


def _here():
    return os.environ.get("DIE_RANK", "") in ("", os.environ.get("RANK", "0"))


def _die(seconds):
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def tiny(num_classes):
    return Mortal(num_classes)


def forgetful(num_classes):
    return Mortal(num_classes, dropout=0.2)


def unlucky(num_classes):
    if os.environ.get("UNLUCKY") == str(torch.initial_seed()):
        raise OSError("no luck with this seed")
    return Mortal(num_classes)


def plain(num_classes):
    return Mortal(num_classes, norm=False)


def half_frozen(num_classes):
    """The first layer is not trained, and of the others not the biases."""
    model = Mortal(num_classes, norm=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("conv1") and not name.endswith("bias"))
    return model


def two_outputs():
    return Mortal(2)


def colour(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )


def mistaken():
    return 1 / 0


class Blobs(torch.utils.data.Dataset):
    """Images of one bright quarter each, which is the class, in noise."""

    num_classes = 4

    def __init__(self, samples, seed):
        draw = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(samples) % 4
        self.images = torch.randn(samples, 1, 6, 6, generator=draw)
        for image, label in zip(self.images, self.labels.tolist(), strict=True):
            row, column = 3 * (label // 2), 3 * (label % 2)
            image[0, row : row + 3, column : column + 3] += 1.5

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], int(self.labels[index])


def blobs():
    """Sizes that 2 and 4 processes share evenly, in batches of 16."""
    return Blobs(96, 0), Blobs(40, 1)
