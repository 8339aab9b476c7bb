"""Calibration: the detector's rule on d that is known, and the figures of the report."""

import dots
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efm_core.reward import first_success
from efm_learner.calibrate import (
    CalibrationSettings,
    JudgedEpisodes,
    calibrate,
    choose_detector,
    coverage,
    firing_times,
)
from efm_learner.network import build_network
from efm_learner.samples import Labelling, make_table


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0, 20, width=32), min_size=1, max_size=30),
    st.lists(st.floats(0, 20, width=32), min_size=1, max_size=5),
    st.integers(1, 4),
)
def test_firing_times_are_those_of_the_detector(d, thresholds, hold):
    found = firing_times(np.array(d, float), np.array(thresholds, float), hold)
    assert found.tolist() == [first_success(d, threshold, hold) for threshold in thresholds]


def judged(successful_floor=0.5, unsuccessful_floor=3.0, episodes=20):
    walk = np.concatenate([np.arange(12.0, 0, -1), np.full(4, successful_floor)])
    failure = np.concatenate([np.arange(12.0, 5, -1), np.full(9, unsuccessful_floor)])
    return JudgedEpisodes([walk] * episodes, [12] * episodes, [failure] * episodes, [])


def test_a_threshold_between_success_and_failure_is_found():
    found = choose_detector(judged(), CalibrationSettings(), dots.embodiment())
    assert found["recall"] == 1.0 and found["false"] == 0.0 and found["limits_kept"]
    assert 0.5 <= found["threshold"] < 1.0
    assert found["expected_false_success"] == 0.0 and found["false_success_interval"][1] < 0.2


def test_where_success_and_failure_look_alike_the_report_says_so():
    found = choose_detector(judged(0.5, 0.5), CalibrationSettings(), dots.embodiment())
    assert not found["limits_kept"] and found["expected_false_success"] > 0.05


def test_a_lucky_moment_in_failures_is_met_by_holding():
    walk = np.concatenate([np.arange(12.0, 0, -1), np.full(4, 0.5)])
    failure = np.full(16, 6.0)
    failure[7] = 0.1
    found = choose_detector(
        JudgedEpisodes([walk] * 20, [12] * 20, [failure] * 20, []), CalibrationSettings(), dots.embodiment()
    )
    assert found["hold"] > 1 and found["recall"] == 1.0 and found["false"] == 0.0


def test_calling_success_before_the_rest_counts_as_early():
    early = np.concatenate([np.arange(12.0, 4, -1), np.full(8, 0.5)])
    found = choose_detector(
        JudgedEpisodes([early] * 20, [12] * 20, [], []), CalibrationSettings(holds=(1,)), dots.embodiment()
    )
    assert found["recall"] == 0.0 or found["early"] == 1.0
    assert not found["limits_kept"] or found["recall"] == 0.0


def test_coverage_of_a_perfectly_known_distribution_keeps_its_promise():
    rng = np.random.default_rng(0)
    distributions = rng.dirichlet(np.ones(12), 4000)
    target = np.array([rng.choice(12, p=p) for p in distributions], float)
    found = coverage(distributions, target, 1)
    for promised in (0.5, 0.8, 0.95):
        assert found[f"{promised:g}"] >= promised - 0.03
    sure = np.eye(12)[np.zeros(4000, int)]
    assert coverage(sure, target, 1)["0.95"] < 0.3


def test_the_report_of_an_untrained_network_has_every_figure():
    embodiment = dots.embodiment()
    table = make_table(dots.episodes(8, 4), embodiment, Labelling(rest_steps=dots.REST))
    network = build_network(embodiment, {"name": "small"}, heads=2)
    report = calibrate(network, table, "max", CalibrationSettings())
    assert report["successful_episodes"] == 8 and report["unsuccessful_episodes"] == 4
    assert report["mean_absolute_error"] > 0 and -1 <= report["rank_correlation"] <= 1
    assert 0 <= report["bound_kept"] <= 1 and set(report["coverage"]) == {"0.5", "0.8", "0.95"}
    assert {"threshold", "hold", "precision", "recall", "mismatched"} <= set(report["detector"])


def test_without_a_successful_episode_there_is_nothing_to_calibrate_on():
    from efm_core.errors import BadRequest

    embodiment = dots.embodiment()
    table = make_table(dots.episodes(0, 3), embodiment, Labelling())
    with pytest.raises(BadRequest, match="at least one successful"):
        calibrate(build_network(embodiment, {"name": "state"}), table, "mean", CalibrationSettings())
