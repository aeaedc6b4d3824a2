"""The order of the samples, and how ranks share it."""

import pytest

from splore.vision.data.order import TestOrder, TrainOrder


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("samples", [12, 13, 14, 17, 23, 24, 25, 40])
def test_ranks_share_each_batch(samples, world_size):
    one = TrainOrder(samples, 12, seed=5)
    ranks = [TrainOrder(samples, 12, 5, rank, world_size) for rank in range(world_size)]
    assert {len(order) for order in ranks} == {len(one)}
    for step in range(len(one)):
        spans = [order.span(step) for order in ranks]
        places = [place for first, last in spans for place in range(first, last)]
        first, last = one.span(step)
        assert len({last - first for first, last in spans}) == 1 and spans[0][1] - spans[0][0] >= 2
        assert places[: last - first] == list(range(first, last))
        assert all(place >= samples for place in places[last - first :])  # filled up with the epoch's start
    assert one.span(len(one) - 1)[1] == samples - (samples % 12 == 1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("samples", range(4, 30))
def test_every_test_sample_falls_to_one_rank(samples, world_size):
    ranks = [TestOrder(samples, 5, rank, world_size) for rank in range(world_size)]
    assert len({len(order) for order in ranks}) == 1
    spans = [order.span(step) for step in range(len(ranks[0])) for order in ranks]
    assert all(last > first for first, last in spans)
    assert [place for first, last in spans for place in range(first, last)] == list(range(samples))


@pytest.mark.parametrize(
    ("order", "options", "message"),
    [
        (TrainOrder, {"batch_size": 7, "world_size": 2}, "multiple of 2 and at least 4, found 7"),
        (TrainOrder, {"batch_size": 1}, "at least 2, found 1"),
        (TrainOrder, {"batch_size": 4, "samples": 1}, "at least 2 training samples"),
        (TrainOrder, {"batch_size": 4, "rank": 2, "world_size": 2}, "rank must lie in 0 ... 1, found 2"),
        (TestOrder, {"batch_size": 0}, "batch_size must be at least 1"),
        (TestOrder, {"batch_size": 4, "samples": 0}, "found none"),
        (TestOrder, {"batch_size": 4, "samples": 3, "world_size": 4}, "4 ranks cannot share 3 test samples"),
    ],
)
def test_orders_that_cannot_be(order, options, message):
    seed = {"seed": 0} if order is TrainOrder else {}
    with pytest.raises(ValueError, match=message):
        order(**{"samples": 10, **seed, **options})
