"""Steps-to-go: bins hold whole steps, and a distribution becomes one number with its doubts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_core.steps_to_go import StepsToGoBins, combine, softmax

BINS = StepsToGoBins(50, 4)
logits = st.lists(st.floats(-50, 50, width=32), min_size=50, max_size=50)


def one_hot(*indices: int) -> np.ndarray:
    return np.eye(50, dtype=np.float32)[list(indices)]


def test_the_goal_is_in_the_first_bin_and_all_that_is_far_in_the_last():
    np.testing.assert_array_equal(BINS.bin_of([0, 3, 4, 199, 200, 10**9]), [0, 0, 1, 49, 49, 49])


def test_bins_of_one_step_are_the_steps_themselves():
    np.testing.assert_array_equal(StepsToGoBins(4, 1).centers, [0, 1, 2, 3])


def test_a_bin_stands_for_the_mean_of_its_steps():
    assert BINS.centers.dtype == np.float32 and BINS.centers.shape == (50,)
    np.testing.assert_array_equal(BINS.centers[:2], [1.5, 5.5])


@given(st.integers(0, 500), st.integers(2, 60), st.integers(1, 9))
def test_the_centre_of_a_bin_is_near_its_steps(steps, bins, width):
    table = StepsToGoBins(bins, width)
    centre = table.centers[table.bin_of(steps)]
    assert abs(centre - min(steps, bins * width - 1)) <= (width - 1) / 2


@pytest.mark.parametrize("steps", [-1, [0, -0.5], np.nan, np.inf])
def test_steps_below_zero_or_not_finite_are_refused(steps):
    with pytest.raises(ValueError, match="expected finite numbers >= 0"):
        BINS.bin_of(steps)


def test_no_steps_are_no_bins():
    assert BINS.bin_of([]).shape == (0,)


def test_a_sure_prediction_has_no_spread():
    np.testing.assert_allclose(BINS.expectation(one_hot(3, 0)), [13.5, 1.5])
    np.testing.assert_allclose(BINS.spread(one_hot(3, 0)), [0, 0])


def test_a_prediction_of_two_bins_has_their_distance_as_spread():
    half = (one_hot(0) + one_hot(10)) / 2
    np.testing.assert_allclose(BINS.expectation(half), [21.5])
    np.testing.assert_allclose(BINS.spread(half), [20])


def test_distributions_over_other_bins_are_refused():
    for wrong in (np.zeros((2, 49)), np.float32(1)):
        with pytest.raises(ValueError, match="expected 50 bins"):
            BINS.expectation(wrong)


@given(logits)
def test_a_softmax_is_a_distribution_whatever_is_added_to_the_logits(values):
    array = np.array(values, np.float32)
    np.testing.assert_allclose(softmax(array).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(softmax(array + np.float32(8)), softmax(array), atol=1e-5)


def test_a_softmax_of_extreme_logits_is_finite():
    np.testing.assert_array_equal(softmax(np.array([1e30, 0, -1e9], np.float32)), [1, 0, 0])
    assert softmax(np.zeros(2, np.float32)).dtype == np.float32


def test_heads_that_agree_do_not_disagree():
    heads = np.stack([one_hot(3, 0), one_hot(3, 0)], axis=1) * 100
    d, spread, disagreement, probabilities = combine(heads, "mean", BINS)
    np.testing.assert_allclose(d, [13.5, 1.5], rtol=1e-5)
    np.testing.assert_allclose(spread, 0, atol=1e-3)
    np.testing.assert_allclose(disagreement, 0, atol=1e-5)
    assert probabilities.shape == (2, 50)


def test_the_mean_of_heads_is_between_them_and_the_greatest_is_the_pessimist():
    heads = np.stack([one_hot(0), one_hot(10)], axis=1) * 100
    mean, spread, disagreement, _ = combine(heads, "mean", BINS)
    np.testing.assert_allclose([mean[0], spread[0], disagreement[0]], [21.5, 20, 40], rtol=1e-5)
    greatest, spread, disagreement, probabilities = combine(heads, "max", BINS)
    np.testing.assert_allclose([greatest[0], disagreement[0]], [41.5, 40], rtol=1e-5)
    np.testing.assert_allclose(probabilities, one_hot(10), atol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_the_pessimist_never_expects_less_than_the_mean(seed):
    heads = np.random.default_rng(seed).normal(size=(4, 3, 50)).astype(np.float32) * 3
    assert np.all(combine(heads, "max", BINS)[0] >= combine(heads, "mean", BINS)[0] - 1e-3)


@pytest.mark.parametrize("shape", [(2, 50), (2, 0, 50), (2, 1, 49)])
def test_logits_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="expected"):
        combine(np.zeros(shape, np.float32), "mean", BINS)


def test_an_unknown_combination_is_refused():
    with pytest.raises(ValueError, match="expected 'mean' or 'max', found 'min'"):
        combine(np.zeros((1, 1, 50), np.float32), "min", BINS)


@pytest.mark.parametrize(("bins", "width"), [(1, 1), (2, 0)])
def test_bins_that_are_none_are_refused(bins, width):
    with pytest.raises(ValueError, match="expected bins >= 2 and width >= 1"):
        StepsToGoBins(bins, width)
