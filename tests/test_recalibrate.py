"""Batch norm measured anew: the statistics are those of the data, and nothing else is touched."""

import pytest
import torch
from torch import nn

from splore.design.decompose import Design, decompose
from splore.postprocess.prune import prune
from splore.postprocess.recalibrate import recalibrate


def net():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(96, 5), nn.BatchNorm1d(5, momentum=0.3), nn.Linear(5, 2),
    )  # fmt: skip


def loader(count=4, size=8):
    return [2 * torch.randn(size, 3, 6, 6) + 1 for _ in range(count)]


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def moments(batches, dims):
    """The mean over batches of each one's mean and unbiased variance."""
    means = torch.stack([x.mean(dims) for x in batches]).mean(0)
    return means, torch.stack([x.var(dims, unbiased=True) for x in batches]).mean(0)


def test_the_statistics_are_the_averages_over_the_batches_computed_by_hand():
    model, batches = net(), loader()
    for norm in (model[1], model[6]):
        norm.running_mean.fill_(100)
        norm.running_var.fill_(100)
        norm.num_batches_tracked.fill_(100)
    assert recalibrate(model, batches) == 4
    with torch.no_grad():
        inner = [model[0](x) for x in batches]
        mean, var = moments(inner, (0, 2, 3))
        torch.testing.assert_close(model[1].running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model[1].running_var, var, rtol=1e-4, atol=1e-5)
        # What follows sees batches normalised by their own statistics, and dropout passes everything.
        norm = nn.functional.batch_norm
        outer = [model[5](norm(x, None, None, training=True).relu().flatten(1)) for x in inner]
        mean, var = moments(outer, 0)
        torch.testing.assert_close(model[6].running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model[6].running_var, var, rtol=1e-4, atol=1e-5)
    assert model[1].num_batches_tracked == model[6].num_batches_tracked == 4


def test_nothing_else_is_touched():
    model = net()
    model[0].eval()
    model[6].eval()
    before, flags = state(model), [m.training for m in model.modules()]
    random = torch.get_rng_state()
    batches = loader()
    torch.set_rng_state(random)
    recalibrate(model, batches)
    assert torch.equal(torch.get_rng_state(), random), "dropout must not draw"
    assert [m.training for m in model.modules()] == flags
    assert (model[1].momentum, model[6].momentum) == (0.1, 0.3)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{i}.{leaf}" for i in (1, 6) for leaf in ("running_mean", "running_var", "num_batches_tracked")}


def test_the_result_does_not_depend_on_the_statistics_before():
    model, other = net(), net()
    other.load_state_dict(model.state_dict())
    other[1].running_mean.fill_(50)
    batches = loader()
    recalibrate(model, batches)
    recalibrate(other, batches)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


def test_at_most_the_given_number_of_batches_is_drawn():
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield torch.randn(4, 3, 6, 6)

    assert recalibrate(net(), endless(), batches=3) == 3
    assert len(drawn) == 3


def test_batches_may_be_tuples_that_begin_with_the_inputs():
    model, other = net(), net()
    other.load_state_dict(model.state_dict())
    batches = loader()
    recalibrate(model, batches)
    recalibrate(other, [(x, torch.zeros(8)) for x in batches])
    assert torch.equal(model[6].running_var, other[6].running_var)


def test_recalibration_repairs_the_accuracy_of_a_cut_network():
    torch.manual_seed(3)
    labels = torch.randint(0, 2, (256,))
    images = 20 + torch.randn(256, 3, 6, 6) + labels[:, None, None, None]
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    decompose(model, Design(rank=1, include=("0",)))

    def accuracy():
        return (model.eval()(images).argmax(1) == labels).float().mean().item()

    recalibrate(model, images.split(64))
    whole = accuracy()
    prune(model, energy=0.5)
    broken = accuracy()
    recalibrate(model, images.split(64))
    assert whole > 0.95 and broken < 0.7 and accuracy() > 0.95, (whole, broken, accuracy())


@pytest.mark.parametrize(
    "model", [nn.Linear(3, 2), nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3))]
)
def test_without_batch_norm_no_batch_is_seen(model):
    def untouched():
        raise AssertionError("no batch is needed")
        yield

    assert recalibrate(model, untouched()) == 0


@pytest.mark.parametrize("batches", [None, 0])
def test_an_empty_loader_is_refused_and_the_statistics_stay(batches):
    model = net()
    recalibrate(model, loader())
    before, flags = state(model), [m.training for m in model.modules()]
    with pytest.raises(ValueError, match="at least one batch"):
        recalibrate(model, [] if batches is None else loader(), batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags


def test_an_error_on_the_way_leaves_the_model_as_it_was():
    model = net()
    recalibrate(model, loader())
    before = state(model)
    with pytest.raises(RuntimeError):
        recalibrate(model, [torch.randn(4, 3, 6, 6), torch.randn(4, 2, 6, 6)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(m.training for m in model.modules()) and model[6].momentum == 0.3
