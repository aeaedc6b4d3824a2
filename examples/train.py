"""A training loop of your own, on scikit-learn's handwritten digits: a dense net beside W = A·B + S.

    python examples/train.py

Both nets see the same images for as many epochs, and end with the last one. What splore adds is marked (a), (b), (c).
It needs scikit-learn (`pip install scikit-learn`), and takes about twenty seconds of one core.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import splore

EPOCHS, TUNING = 12, 8  # before and after the cut; the dense net gets the sum of both
PEAK, HALF = 0.05, 0.025  # learning rates, of both stages and between them
KEPT = 0.05  # of the dense net's parameters


def digits() -> tuple[DataLoader, DataLoader]:
    """Batches of images (N, 1, 8, 8), from 0 to 1, and labels: 1,347 images to train on, 450 for the test."""
    loaded = load_digits()
    images = torch.tensor(loaded.images, dtype=torch.float32).unsqueeze(1) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = (TensorDataset(images[part], torch.tensor(loaded.target)[part]) for part in order.split([450, 1347]))
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=450)


def net() -> nn.Module:
    """A small convolutional net, wide enough that most of it can go."""
    torch.manual_seed(0)
    widths, layers = (1, 32, 64, 128), []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def train(model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, epochs: int, last: float) -> None:
    """An ordinary loop, which knows nothing of the method; the learning rate is a cosine down to `last`."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader), eta_min=last)
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def dense_net(loader: DataLoader) -> nn.Module:
    """The baseline."""
    model = net()
    train(model, loader, sgd(model, PEAK), EPOCHS + TUNING, last=0.0)
    return model


def compressed_net(loader: DataLoader) -> nn.Module:
    """The same net by the three stages of the method."""
    model = net()
    print(splore.decompose(model, splore.Design(rank=2)))  # (a) every weight is A·B + S from here on
    optimizer = sgd(model, PEAK)
    splore.attach(model, optimizer, l1=0.01, nuclear=0.01)  # (b) each step learns L and S
    train(model, loader, optimizer, EPOCHS, last=HALF)
    splore.share_budget(model, params=KEPT)  # (c) ranks of L and entries of S compete for the parameters,
    splore.prune(model, params=KEPT)  # the weakest entries go,
    splore.recalibrate(model, loader)  # batch norm is measured again,
    optimizer = sgd(model, HALF, decay_sparse=True)
    splore.attach(model, optimizer, nuclear=0.01)  # and what was cut stays zero
    train(model, loader, optimizer, TUNING, last=0.0)
    return model


def sgd(model: nn.Module, rate: float, decay_sparse: bool = False) -> torch.optim.Optimizer:
    """Weight decay for dense weights, and for S where it has no l1; A and B have the nuclear norm."""
    groups = splore.parameter_groups(model, weight_decay=5e-4, decay_sparse=decay_sparse)
    return torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True)


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    """Of the test images, in per cent."""
    model.eval()
    right: list[Tensor] = [(model(images).argmax(1) == labels).float() for images, labels in loader]
    return 100 * torch.cat(right).mean().item()


def main() -> None:
    """Trains both nets and prints what they are worth and what they cost."""
    torch.set_num_threads(1)  # more gain nothing on a net as small as this
    loader, test = digits()
    models = {"dense": dense_net(loader), "A·B + S": compressed_net(loader)}
    print(f"\n{'net':8} {'accuracy':>10} {'parameters':>12} {'kept':>8} {'multiply-adds':>15} {'bytes':>10}")
    for name, model in models.items():
        cost = splore.cost(model, (1, 8, 8))
        print(
            f"{name:8} {accuracy(model, test):8.2f} % {cost.params:12,} {cost.params_kept:8.2%} {cost.macs:15,} "
            f"{cost.bytes:10,}"
        )
    splore.save(models["A·B + S"], "digits.safetensors")
    print("\nsaved: digits.safetensors; splore.load('digits.safetensors', model=net()) brings it back")


if __name__ == "__main__":
    main()
