"""Rewards, returns and success, all from d."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_core.reward import SuccessDetector, discounted_returns, first_success, rewards

numbers = st.lists(st.floats(-100, 100), max_size=40)


def test_the_reward_is_how_far_d_fell():
    np.testing.assert_array_equal(rewards([10, 8, 9, 0]), [2, -1, 9])


def test_an_episode_of_one_observation_has_no_rewards():
    assert rewards([3.0]).shape == (0,)


@given(numbers.filter(len))
def test_undiscounted_rewards_add_up_to_the_whole_way(d):
    np.testing.assert_allclose(rewards(d).sum(), d[0] - d[-1], atol=1e-9)


@given(numbers, st.floats(0, 1))
def test_returns_are_the_discounted_sums(r, gamma):
    expected = [sum(gamma ** (i - t) * r[i] for i in range(t, len(r))) for t in range(len(r))]
    np.testing.assert_allclose(discounted_returns(r, gamma), expected, atol=1e-6)


def test_returns_leave_the_rewards_as_they_are():
    r = np.ones(3)
    np.testing.assert_allclose(discounted_returns(r, 0.9), [2.71, 1.9, 1.0])
    np.testing.assert_array_equal(r, 1)


@pytest.mark.parametrize("d", [[], [[1.0, 2.0]], [1.0, np.nan], [np.inf, 0]])
def test_what_is_no_series_of_labels_is_refused(d):
    with pytest.raises(ValueError, match="steps to go: expected"):
        rewards(d)


def test_an_unlabelled_observation_is_named():
    with pytest.raises(ValueError, match="found nan at index 2"):
        rewards([3, 2, np.nan, 0])


@pytest.mark.parametrize("gamma", [-0.1, 1.1, np.nan])
def test_a_gamma_out_of_range_is_refused(gamma):
    with pytest.raises(ValueError, match=r"gamma: expected 0 \.\. 1"):
        discounted_returns([1.0], gamma)


def test_success_is_held_and_then_latched():
    detector = SuccessDetector(threshold=2.0, hold=2)
    assert [detector.update(d) for d in [3, 2, 2.1, 1, 2, 50]] == [False, False, False, False, True, True]
    assert detector.held == 0 and detector.succeeded
    detector.reset()
    assert not detector.succeeded and not detector.update(0.0)


def test_nan_is_no_success_and_breaks_a_series():
    detector = SuccessDetector(threshold=2.0, hold=2)
    assert [detector.update(d) for d in [1, np.nan, 1]] == [False, False, False]


@given(numbers, st.floats(0, 20), st.integers(1, 4))
def test_the_first_success_is_where_the_detector_first_says_so(d, threshold, hold):
    detector = SuccessDetector(threshold, hold)
    seen = [detector.update(value) for value in d]
    assert first_success(d, threshold, hold) == (seen.index(True) if True in seen else -1)


@pytest.mark.parametrize(("threshold", "hold"), [(-1.0, 1), (np.nan, 1), (np.inf, 1), (1.0, 0)])
def test_a_success_that_is_always_or_never_there_is_refused(threshold, hold):
    with pytest.raises(ValueError, match="expected a threshold >= 0 and hold >= 1"):
        SuccessDetector(threshold, hold)
