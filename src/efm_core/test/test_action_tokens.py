"""Actions and tokens: bin centres survive the round trip exactly, everything else goes to the nearest bin."""

from __future__ import annotations

import numpy as np
import pytest
from example_robots import table, table_robot
from hypothesis import assume, given
from hypothesis import strategies as st

from efm_core.action_tokens import ActionTokenizer
from efm_core.embodiment import Embodiment
from efm_core.errors import ActionNotFinite, EmbodimentInvalid


def tokenizer(*dimensions: dict) -> ActionTokenizer:
    known = [
        {"name": f"a{index}", "unit": "1", "max_rate": 1.0, **dimension}
        for index, dimension in enumerate(dimensions)
    ]
    plain = table(action__dimensions=known, action__hold_still="last")
    return ActionTokenizer(Embodiment.from_dict(plain).action)


TABLE = ActionTokenizer(table_robot().action)
bounds = st.floats(-1e6, 1e6, allow_nan=False)


@given(low=bounds, high=bounds, bins=st.integers(2, 2000))
def test_bin_centres_come_back_exactly(low, high, bins):
    assume(low < high)
    try:
        tokens = tokenizer({"low": low, "high": high, "bins": bins})
    except EmbodimentInvalid:
        assume(False)  # Bins that are too close to differ are refused.
    every = np.arange(bins)[:, None]
    centres = tokens.decode(every)
    np.testing.assert_array_equal(tokens.encode(centres), every)
    np.testing.assert_array_equal(tokens.decode(tokens.encode(centres)), centres)
    assert centres[0, 0] == low and centres[-1, 0] == high
    assert np.all(np.diff(centres[:, 0]) > 0)


@given(value=st.floats(-0.1, 0.1), bins=st.integers(2, 300))
def test_a_number_goes_to_the_nearest_bin(value, bins):
    tokens = tokenizer({"low": -0.05, "high": 0.05, "bins": bins})
    nearest = float(tokens.decode(tokens.encode([value]))[0])
    half_a_bin = 0.05 / (bins - 1)
    assert abs(nearest - np.clip(value, -0.05, 0.05)) <= half_a_bin * (1 + 1e-9)


def test_low_middle_and_high_are_values_of_bins():
    np.testing.assert_array_equal(TABLE.decode([[0, 0], [10, 1], [20, 1]]), [[-0.03, 0], [0, 1], [0.03, 1]])


def test_a_gripper_is_open_or_closed():
    np.testing.assert_array_equal(TABLE.encode([[0, 0.49], [0, 0.51], [0, -3], [0, 3]])[:, 1], [0, 1, 0, 1])


def test_the_bins_of_every_dimension_are_known():
    np.testing.assert_array_equal(TABLE.bins, [21, 2])
    assert TABLE.max_bins == 21


def test_chunks_and_batches_keep_their_axes():
    actions = np.zeros((3, 5, 2))
    tokens = TABLE.encode(actions)
    assert tokens.shape == (3, 5, 2) and tokens.dtype == np.int64
    assert TABLE.decode(tokens).shape == (3, 5, 2)
    assert TABLE.encode(np.zeros((0, 2))).shape == TABLE.decode(np.zeros((0, 2), np.int64)).shape == (0, 2)


def test_tokens_of_a_message_are_decoded_whatever_their_width():
    np.testing.assert_array_equal(TABLE.decode(np.array([20, 1], np.uint16)), [0.03, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_with_their_place(bad):
    with pytest.raises(ActionNotFinite, match=r"found (nan|inf|-inf) at \[1, 0\]"):
        TABLE.encode([[0, 0], [bad, 0]])


@pytest.mark.parametrize("tokens", [[21, 0], [0, 2], [-1, 0], [0.0, 1.0], [True, False], [0], [[0, 0, 0]], 0])
def test_tokens_that_are_no_bins_are_refused(tokens):
    with pytest.raises(ValueError, match="expected"):
        TABLE.decode(tokens)


@pytest.mark.parametrize("actions", [0.0, [0.0], [[0.0, 0.0, 0.0]]])
def test_actions_of_another_size_are_refused(actions):
    with pytest.raises(ValueError, match="expected 2 dimensions on the last axis"):
        TABLE.encode(actions)


def test_huge_numbers_go_to_the_outermost_bins():
    np.testing.assert_array_equal(TABLE.encode([[-1e300, 1e300]]), [[0, 1]])


def test_bins_that_are_too_close_to_differ_are_refused():
    with pytest.raises(EmbodimentInvalid, match="expected bins that differ"):
        tokenizer({"low": 1e12, "high": 1e12 + 1, "bins": 1000})
