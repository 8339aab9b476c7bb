"""Sampling: greedy at temperature 0, the model's own distribution at 1, and honest log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_core.policy import sample_actions


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_temperature_zero_takes_the_most_likely_bin_and_needs_no_rng():
    logits = np.random.default_rng(0).normal(size=(3, 2, 4, 21)).astype(np.float32)
    tokens, log_prob = sample_actions(logits, 0.0, None)
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    np.testing.assert_allclose(log_prob, log_softmax(logits).max(-1).sum(-1), rtol=1e-5)
    assert tokens.dtype == np.int64 and tokens.shape == (3, 2, 4) and log_prob.shape == (3, 2)


def test_bins_are_drawn_as_often_as_the_model_says():
    logits = np.log(np.broadcast_to([0.1, 0.6, 0.3], (1, 1, 20000, 3)))
    tokens, _ = sample_actions(logits, 1.0, np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(tokens.ravel()) / 20000, [0.1, 0.6, 0.3], atol=0.015)


def test_a_temperature_flattens_what_is_drawn_but_not_the_log_probability():
    logits = np.log(np.broadcast_to([0.2, 0.8], (1, 1, 20000, 2)))
    tokens, log_prob = sample_actions(logits, 2.0, np.random.default_rng(0))
    expected = np.sqrt([0.2, 0.8]) / np.sqrt([0.2, 0.8]).sum()
    np.testing.assert_allclose(np.bincount(tokens.ravel()) / 20000, expected, atol=0.015)
    ones = (tokens == 1).sum()
    np.testing.assert_allclose(log_prob[0, 0], ones * np.log(0.8) + (20000 - ones) * np.log(0.2))


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 5))
def test_the_log_probability_is_that_of_the_tokens_at_temperature_one(seed, temperature):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, 3, 2, 5)).astype(np.float32) * 5
    tokens, log_prob = sample_actions(logits, temperature, rng)
    chosen = np.take_along_axis(log_softmax(logits.astype(np.float64)), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(log_prob, chosen.sum(-1))


@pytest.mark.parametrize("missing", [-1e9, -np.inf])
def test_bins_that_a_dimension_does_not_have_are_never_drawn(missing):
    logits = np.zeros((1, 1, 1000, 5), np.float32)
    logits[..., 2:] = missing
    tokens, log_prob = sample_actions(logits, 5.0, np.random.default_rng(1))
    assert tokens.max() == 1
    np.testing.assert_allclose(log_prob, 1000 * np.log(0.5), rtol=1e-6)


def test_the_same_seed_draws_the_same_and_the_logits_stay_as_they_are():
    logits = np.random.default_rng(0).normal(size=(1, 1, 3, 7)).astype(np.float32)
    before = logits.copy()
    first, second = (sample_actions(logits, 1.0, np.random.default_rng(5))[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(logits, before)


def test_a_tiny_temperature_is_greedy_and_not_an_overflow():
    logits = np.array([[[[1.0, 2.0, -1e9]]]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert sample_actions(logits, 1e-300, np.random.default_rng(0))[0].item() == 1


@pytest.mark.parametrize(
    ("logits", "temperature", "rng", "message"),
    [
        (np.zeros((1, 2, 3)), 1.0, np.random.default_rng(), "expected the shape"),
        (np.zeros((1, 1, 1, 0)), 1.0, np.random.default_rng(), "expected the shape"),
        (np.full((1, 1, 1, 2), np.nan), 1.0, np.random.default_rng(), "expected finite numbers"),
        (np.full((1, 1, 1, 2), np.inf), 1.0, np.random.default_rng(), "expected finite numbers"),
        (np.full((1, 1, 1, 2), -np.inf), 1.0, np.random.default_rng(), "expected finite numbers"),
        (np.zeros((1, 1, 1, 2)), -1.0, np.random.default_rng(), "temperature: expected"),
        (np.zeros((1, 1, 1, 2)), np.nan, np.random.default_rng(), "temperature: expected"),
        (np.zeros((1, 1, 1, 2)), 1.0, None, "expected an rng"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(logits, temperature, rng, message):
    with pytest.raises(ValueError, match=message):
        sample_actions(logits, temperature, rng)


def test_no_robots_draw_nothing():
    tokens, log_prob = sample_actions(np.zeros((0, 1, 2, 3)), 1.0, np.random.default_rng())
    assert tokens.shape == (0, 1, 2) and log_prob.shape == (0, 1)
