"""The guard stops what got worse, leaves alone what only varies, and knows the best version."""

from __future__ import annotations

import json

import numpy as np
import pytest

from efm_core.errors import BadRequest
from efm_learner.guard import Guard, GuardSettings, Verdict

EPISODES_A_VERSION = 25


def practise(rate, versions, rng, detected=lambda version: 1.0, settings=None, verifier=True):
    """Runs versions until the guard stops; gives the guard, the last version and the verdict."""
    guard = Guard(settings or GuardSettings(), hold=2)
    verdict = Verdict(False, 0, "")
    for version in range(versions):
        for _ in range(rng.poisson(EPISODES_A_VERSION) + 1):
            found = bool(rng.random() < detected(version))
            good = bool(rng.random() < rate(version))
            guard.record(version, found, (found and good) if verifier else None, 20)
        verdict = guard.judge()
        if verdict.stop:
            break
    return guard, version, verdict


def over_the_peak(version):
    """Verified success rises from .4 to .8 at version 20 and falls to .3 at version 45."""
    return float(np.interp(version, [0, 20, 45], [0.4, 0.8, 0.3]))


@pytest.mark.parametrize("seed", range(5))
def test_practice_past_the_peak_is_stopped_though_the_detector_sees_nothing_but_success(seed):
    _, stopped_at, verdict = practise(over_the_peak, 60, np.random.default_rng(seed))
    assert verdict.stop
    assert 24 <= stopped_at <= 45
    assert 10 <= verdict.best_version <= 28
    assert "good episodes" in verdict.message


def test_doubted_detections_that_rise_without_any_gain_stop_practice():
    """What the run on Meta-World's push showed: the detector sees ever more, the verifier no more of it."""
    rng = np.random.default_rng(3)
    share = {"detected": lambda version: min(0.85, 0.5 + 0.02 * version)}
    _, stopped_at, verdict = practise(lambda v: 0.4 / share["detected"](v), 60, rng, **share)
    assert verdict.stop and 10 <= stopped_at <= 40
    assert "detections that the verifier doubts rose from" in verdict.message


def test_a_verifier_that_is_too_strict_does_not_stop_a_policy_that_gets_better():
    rng = np.random.default_rng(4)
    for _ in range(20):
        found = {"detected": lambda version: min(0.95, 0.3 + 0.02 * version)}
        _, _, verdict = practise(lambda _: 0.8, 40, rng, **found)  # It denies one of five.
        assert not verdict.stop


def test_noise_alone_stops_one_run_in_a_hundred():
    """200 runs of about 1,050 episodes with a constant rate; each stop is a false one."""
    rng = np.random.default_rng(0)
    rates = (0.4, 0.6, 0.75, 0.9)
    false = sum(practise(lambda _, r=rates[n % 4]: r, 40, rng)[2].stop for n in range(200))
    assert false <= 4, f"{false} of 200 runs were stopped by noise"


def test_a_run_that_gets_better_and_stays_there_is_not_stopped():
    rng = np.random.default_rng(1)
    for _ in range(20):
        _, _, verdict = practise(lambda v: min(0.9, 0.3 + 0.03 * v), 40, rng)
        assert not verdict.stop


def test_without_a_verifier_only_a_fall_of_the_detector_can_be_seen():
    rng = np.random.default_rng(2)
    _, _, fooled = practise(over_the_peak, 60, rng, verifier=False)
    assert not fooled.stop
    _, _, honest = practise(over_the_peak, 60, rng, detected=over_the_peak, verifier=False)
    assert honest.stop


def test_instant_detections_stop_at_once_and_are_not_good():
    guard = Guard(GuardSettings(), hold=2)
    for _ in range(60):
        guard.record(0, True, True, 20)
    assert guard.glance() == Verdict(False, 0, "")
    for _ in range(8):
        guard.record(1, True, True, 3)  # Two steps beyond the hold.
    verdict = guard.glance()
    assert verdict.stop
    assert verdict.best_version == 0
    assert "8 of the newest 10 episodes ended in success within 3 steps of the reset" in verdict.message


def test_a_few_lucky_resets_are_not_an_alarm():
    guard = Guard(GuardSettings(), hold=1)
    for number in range(30):
        guard.record(0, True, True, 1 if number % 3 == 0 else 20)
    assert not guard.glance().stop
    few = Guard(GuardSettings())
    for _ in range(9):
        few.record(0, True, True, 0)
    assert not few.glance().stop


def test_a_long_hold_does_not_make_ordinary_successes_instant_nor_hide_instant_ones():
    guard = Guard(GuardSettings(), hold=10)
    for _ in range(10):
        guard.record(0, True, True, 11)
    assert guard.glance().stop
    patient = Guard(GuardSettings(), hold=10)
    for _ in range(10):
        patient.record(0, True, True, 12)
    assert not patient.glance().stop


def test_the_kl_limit_stops_where_one_is_set():
    guard = Guard(GuardSettings(kl_limit=2.0))
    guard.record(0, True, True, 20)
    assert not guard.judge(1.9).stop
    assert guard.judge(2.1).message == "KL from Stage 1 is 2.10, more than 2 nats"
    assert not Guard(GuardSettings()).judge(100.0).stop


def judged(returns, episodes=15):
    guard = Guard(GuardSettings(), hold=2)
    verdicts = []
    for version, mean_return in enumerate(returns):
        for _ in range(episodes):
            guard.record(version, False, False, 100)
        verdicts.append(guard.judge(0.0, episodes, mean_return))
        guard.restore(json.loads(json.dumps(guard.state())))
    return [verdict.stop for verdict in verdicts], verdicts[-1].message


def test_a_policy_that_leads_away_from_the_goal_by_its_reward_is_stopped_before_it_learns_to_stand_still():
    """The returns are of two runs on Meta-World's push that ended with a policy that does nothing."""
    for returns in ((-2.08, -1.53, -1.75, -0.92, -0.62, -1.47), (-2.08, -1.75, -2.44, -0.0, -0.59, -0.5)):
        stops, message = judged(returns)
        assert stops == [False] * 5 + [True]  # After a window of episodes.
        assert "by this reward the policy leads away from the goal" in message and "cap_at_start" in message


def test_returns_that_are_negative_now_and_then_or_by_chance_stop_nothing():
    """The first are of a run that rose from .48 to .78."""
    for returns in ((1.19, 0.96, -0.11, -0.51, 0.1, 2.09), (-1.2, 0.9, -1.1, 0.8, -0.9, 0.7), (0.0,) * 6):
        stops, message = judged(returns)
        assert not any(stops) and not message


def test_old_losses_are_forgotten_and_few_large_iterations_are_no_proof():
    stops, _ = judged((-0.1, 3.0, 2.0, 2.5, 3.0, 2.0, 2.5, 2.0), episodes=30)
    assert not any(stops)
    stops, _ = judged((-2.0, -2.1), episodes=200)
    assert not any(stops)


def drifted(kl, first, newest, **settings):
    """Judges two versions with 100 episodes each, of which so many were good."""
    guard = Guard(GuardSettings(**settings))
    for version, good in enumerate((first, newest)):
        for number in range(100):
            guard.record(version, number < good, number < good, 20)
    return guard.judge(kl)


@pytest.mark.parametrize(
    ("kl", "first", "newest", "settings", "stops"),
    [
        (1.2, 30, 32, {"drift": 1.0}, True),
        (0.9, 30, 32, {"drift": 1.0}, False),  # It has not gone far.
        (5.0, 30, 45, {"drift": 1.0}, False),  # It was worth it.
        (5.0, 85, 85, {"drift": 1.0}, False),  # Hardly anything is left to win but time.
        (5.0, 30, 32, {}, False),
    ],
)
def test_a_long_way_from_stage_1_must_have_paid(kl, first, newest, settings, stops):
    """A policy of Meta-World's push was 1.3 nats away after 400 episodes, no better, and lost after 900."""
    verdict = drifted(kl, first, newest, **settings)
    assert verdict.stop == stops
    assert ("1.20 nats away from Stage 1" in verdict.message) == stops


def test_a_guard_that_is_off_says_what_it_sees_and_stops_nothing():
    off = GuardSettings(enabled=False)
    _, version, verdict = practise(over_the_peak, 60, np.random.default_rng(0), settings=off)
    assert version == 59
    assert not verdict.stop
    assert "good episodes fell" in verdict.message


def test_many_good_episodes_rank_above_few():
    guard = Guard(GuardSettings(window=20))
    for _ in range(3):
        guard.record(0, True, True, 20)
    for number in range(40):
        guard.record(1, True, number % 10 != 0, 20)
    for number in range(40):
        guard.record(2, True, number % 2 == 0, 20)
    assert guard.ranking() == [1, 0, 2]


def test_a_guard_without_episodes_holds_version_0_for_the_best():
    assert Guard(GuardSettings()).judge() == Verdict(False, 0, "")


def test_a_restart_in_between_changes_nothing():
    rng = np.random.default_rng(3)
    whole, _, verdict = practise(over_the_peak, 60, rng)
    other = Guard(GuardSettings(), hold=2)
    other.restore(json.loads(json.dumps(whole.state())))
    assert other.state() == whole.state()
    assert other.judge() == verdict


@pytest.mark.parametrize("changes", [{"window": 0}, {"significance": 0}, {"instant_share": 0}, {"slack": -1}])
def test_settings_out_of_range_are_refused_by_name(changes):
    with pytest.raises(BadRequest, match=next(iter(changes))):
        GuardSettings(**changes)


def test_a_state_from_before_the_guard_kept_returns_is_evidence_of_everything_else():
    whole = Guard(GuardSettings(), hold=2)
    for _ in range(5):
        whole.record(3, True, True, 20)
    whole.judge(episodes=5, mean_return=-1.0)
    older = {key: value for key, value in whole.state().items() if key != "returns"}
    restored = Guard(GuardSettings(), hold=2)
    restored.restore(older)
    assert restored.ranking() == whole.ranking() == [3]
    assert restored.state() == {**whole.state(), "returns": []}
