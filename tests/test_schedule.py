"""The learning rate over a stage, against values worked out by hand."""

import pytest

from splore.train.loop import warm_cosine


@pytest.mark.parametrize(("progress", "rate"), [(0, 0.0), (0.1, 0.05), (0.2, 0.1), (0.6, 0.06), (1, 0.02)])
def test_a_linear_rise_and_a_half_cosine_to_its_final_rate(progress, rate):
    assert warm_cosine(progress, 0.1, 0.2, 0.02) == pytest.approx(rate)


def test_without_a_final_rate_it_ends_at_zero():
    assert warm_cosine(1.0, 0.1, 0.0) == pytest.approx(0)
