"""Stage c: how the entries of S are compared across layers, and the schedule of a gradual cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import held, partly_decomposed, sparse

from splore.design.layers import decomposed_layers
from splore.postprocess.prune import cubic, prune
from splore.postprocess.scores import energy_share, lamp, magnitude, relative

SCORES = [magnitude, lamp, energy_share, relative]
INTEGERS = st.lists(st.integers(-4, 4), min_size=1, max_size=9)


@settings(max_examples=60)
@given(values=INTEGERS)
def test_lamp_is_the_share_of_the_energy_that_is_left_when_smaller_ones_are_cut(values):
    scores = lamp(sparse(values)[0]).flatten().tolist()
    # With ties any order of the equal ones is right: compare the scores in the order of the magnitudes.
    ordered = sorted(abs(v) for v in values)
    expected = [v * v / sum(w * w for w in ordered[i:]) if v else 0.0 for i, v in enumerate(ordered)]
    assert sorted(scores) == pytest.approx(sorted(expected), rel=1e-6)
    for v, s in zip(values, scores, strict=True):
        for w, other in zip(values, scores, strict=True):
            assert abs(v) <= abs(w) or s > other


@pytest.mark.parametrize("allowed", [2, 3, 5])
def test_lamp_empties_no_layer_that_magnitude_would(allowed):
    rows = [5.0, 4.0, 3.0, 2.0], [0.02, 0.01, 0.0, 0.03]
    model, other = sparse(*rows), sparse(*rows)
    assert min(prune(model, params=allowed, score=lamp).values()) > 0
    assert prune(other, params=min(allowed, 4), score=magnitude)["1"] == 0


@settings(max_examples=40)
@given(values=INTEGERS)
def test_the_energy_share_is_that_of_all_entries_no_larger(values):
    scores = energy_share(sparse(values)[0]).flatten().tolist()
    ordered = sorted(abs(v) for v in values)
    whole = sum(v * v for v in ordered) or 1
    expected = [sum(w * w for w in ordered[: i + 1]) / whole for i in range(len(ordered))]
    assert sorted(scores) == pytest.approx(sorted(expected), rel=1e-6)
    for v, s in zip(values, scores, strict=True):
        for w, other in zip(values, scores, strict=True):
            assert abs(v) <= abs(w) or s > other


@pytest.mark.parametrize("energy", [0.1, 0.5, 0.9, 0.999])
def test_a_budget_by_energy_share_is_the_cut_by_one_energy_in_all_layers(energy):
    model, other = partly_decomposed(), partly_decomposed()
    other.load_state_dict(model.state_dict())
    prune(model, energy=energy)
    prune(other, params=held(model), score=energy_share)
    for name, layer in decomposed_layers(model).items():
        assert torch.equal(layer.mask, other.get_submodule(name).mask)


def test_magnitude_and_relative_are_what_they_are_called():
    layer = partly_decomposed()[2]
    assert torch.equal(magnitude(layer), layer.S.detach().abs())
    whole = layer.weight.detach().square().sum()
    torch.testing.assert_close(relative(layer), layer.S.detach().square() / whole)


def test_scores_of_a_sparse_part_of_zeros_are_zero():
    layer = sparse([0.0, 0.0])[0]
    assert not any(score(layer).any() for score in SCORES)


@given(first=st.floats(0, 1), last=st.floats(0, 1))
def test_the_cubic_schedule_begins_and_ends_where_it_should(first, last):
    assert cubic(0.0, first, last) == pytest.approx(first) and cubic(1.0, first, last) == last
    assert cubic(-1.0, first, last) == pytest.approx(first) and cubic(2.0, first, last) == last
    assert cubic(0.5, first, last) == pytest.approx(last + (first - last) / 8)


def test_the_cubic_schedule_falls_fast_at_first_and_slowly_at_the_end():
    values = [cubic(i / 10, 1.0, 0.1) for i in range(11)]
    falls = [a - b for a, b in zip(values, values[1:], strict=False)]
    assert all(a > b > 0 for a, b in zip(falls, falls[1:], strict=False))


@pytest.mark.parametrize("score, found", [(lambda layer: None, "NoneType"), (lambda layer: layer.S[:1], r"\(1, 72\)")])
def test_scores_are_a_tensor_of_the_shape_of_s(score, found):
    with pytest.raises(ValueError, match=f"a score for each entry of S.*found {found}"):
        prune(partly_decomposed(), params=0.5, score=score)
