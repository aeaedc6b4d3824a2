"""Small nets and matrices that the tests of design and cuts share."""

import torch
from torch import nn

from splore.design.decompose import Design, decompose
from splore.design.layers import LowRankSparseLinear, decomposed_layers


def decomposable():
    """Names: 0, 3.0, 3.2, 6 are convolutions or linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Sequential(nn.Conv2d(12, 16, 3, stride=2, bias=False), nn.ReLU(), nn.Conv2d(16, 16, (1, 3))),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def partly_decomposed(rank=2):
    """A net in which 2 and 4 are decomposed, and 0 and 1 are not."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, bias=False), nn.Flatten(), nn.Linear(12, 9)
    )
    decompose(model, Design(rank=rank, include=("2", "Linear")))
    return model


def params(model):
    return sum(p.numel() for p in model.parameters())


def low_rank_plus_sparse(m, k, rank, density, noise=0.01):
    """A matrix that is what the method hopes for, as a trained weight might be."""
    spikes = torch.randn(m, k) * 3 * (torch.rand(m, k) < density)
    return torch.randn(m, rank) @ torch.randn(rank, k) / rank**0.5 + spikes + noise * torch.randn(m, k)


def svd_error(matrix, rank):
    return torch.linalg.svdvals(matrix.double())[rank:].square().sum().sqrt()


def sparse(*rows):
    """A net of one layer per row of values, with that row as its S (1, k) and no low-rank part."""
    layers = []
    for row in rows:
        layer = LowRankSparseLinear(nn.Linear(len(row), 1, bias=False), 0)
        layer.S.data.copy_(torch.tensor([row], dtype=torch.float32))
        layers.append(layer)
    return nn.Sequential(*layers)


def held(model):
    """Parameters of a model with only the non-zeros of S counted."""
    layers = decomposed_layers(model).values()
    return sum(p.numel() for p in model.parameters()) - sum(int((layer.S == 0).sum()) for layer in layers)
