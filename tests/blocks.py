"""A net whose S is kept in blocks, and its blocks by brute force."""

from itertools import product

import torch
from torch import nn

from splore.design.decompose import Design, decompose
from splore.design.layers import decomposed_layers
from splore.design.matrix import Scheme, unfold


def block_numbers(shape, scheme, size):
    """The number of its block for each entry of the matrix (m, k), counted in the order (row, j, tap)."""
    n, c, *kernel = shape
    numbers = torch.empty(shape, dtype=torch.int64)
    names = {}
    for place in product(*map(range, shape)):
        names[(place[0], place[1] // size, *place[2:])] = None
    for i, name in enumerate(names):
        names[name] = i
    for place in product(*map(range, shape)):
        numbers[place] = names[(place[0], place[1] // size, *place[2:])]
    return unfold(numbers, scheme)


def whole(mask, numbers):
    """Whether a mask is a union of the blocks of these numbers."""
    return all(len(set(mask[numbers == b].tolist())) == 1 for b in numbers.unique())


def dense():
    """Convolutions whose channels are no multiple of four, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, (1, 3), bias=False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


def in_blocks(scheme=Scheme.CHANNEL):
    """The net with W = A·B + S in blocks of 4."""
    model = dense()
    decompose(model, Design(rank=1, block=4, scheme=scheme))
    return model


def layers_and_numbers(model, block=4):
    return [(x, block_numbers(x.weight_shape, x.scheme, block)) for x in decomposed_layers(model).values()]
