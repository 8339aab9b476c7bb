"""The Wilson interval against published values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_core.statistics import wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_it_is_what_the_textbook_says(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-4)


def test_without_episodes_nothing_is_known():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 10**9), st.floats(0, 1), st.floats(0.01, 10))
def test_the_rate_is_always_within_its_interval(n, share, z):
    successes = int(n * share)
    low, high = wilson_interval(successes, n, z)
    assert 0 <= low <= successes / n <= high <= 1


@pytest.mark.parametrize(("successes", "n", "z"), [(-1, 10, 1.96), (11, 10, 1.96), (1, -1, 1.96), (1, 2, 0)])
def test_counts_that_cannot_be_are_refused(successes, n, z):
    with pytest.raises(ValueError, match="expected 0 <= successes <= n"):
        wilson_interval(successes, n, z)
