"""The judge sees exactly what the reward node saw."""

from __future__ import annotations

import dots
import numpy as np
import practised
import pytest

from efm_core.episode import observations_of, read_episode
from efm_core.errors import BundleInvalid
from efm_core.observation import Observation, ObservationAssembler
from efm_core.onnx_model import OnnxModel
from efm_core.steps_to_go import StepsToGoBins, combine
from efm_learner.labelling import BATCH, Judge
from efm_learner.random_bundle import write_random_bundle


def test_each_row_of_an_episode_is_the_observation_that_the_assembler_had_handed_out(tmp_path):
    robot = dots.embodiment(frames=3)
    arrays = dots.episode(0)
    episode = read_episode(dots.record(tmp_path, arrays))
    assembler = ObservationAssembler(robot)
    live: list[Observation] = []
    for row in range(len(arrays)):
        stamp = (row + 1) * dots.PERIOD_NS
        assembler.add_image("top", stamp, arrays.images["top"][row])
        assembler.add_state(stamp, arrays.state[row])
        live.append(assembler.ready(stamp, synchronous=True))
    assert episode.embodiment.camera("top").frames == 2  # As recorded; the rule is the same for 3.
    for mine, seen in zip(observations_of(episode, 0, len(episode)), live, strict=True):
        assert mine.stamp_ns == seen.stamp_ns
        np.testing.assert_array_equal(mine.images["top"], seen.images["top"][1:])
        np.testing.assert_array_equal(mine.state, seen.state)


def test_d_is_that_of_the_bundle_one_observation_at_a_time_however_long_the_episode(tmp_path, bundles):
    episode = read_episode(practised.record_episode(tmp_path, bundles["policy"], 1, steps=BATCH + 5))
    d = Judge(bundles["reward"]).steps_to_go(episode)
    model, bins = OnnxModel(bundles["reward"]), StepsToGoBins(70, 2)
    assert d.shape == (BATCH + 6,)
    assert d.dtype == np.float32
    for row in (0, 1, BATCH - 1, BATCH, BATCH + 5):
        logits = model.run(observations_of(episode, row, row + 1), [practised.INSTRUCTION]).steps_to_go_logits
        assert d[row] == pytest.approx(float(combine(logits, "mean", bins)[0][0]), abs=1e-4)


def test_a_verifier_agrees_by_the_mean_of_the_observations_that_the_detector_needs(tmp_path, bundles):
    episode = read_episode(practised.record_episode(tmp_path, bundles["policy"], 2))
    d = Judge(bundles["verifier"]).steps_to_go(episode)
    judge = Judge(bundles["verifier"])
    assert judge.hold == 2
    judge.threshold = float(d[-2:].mean()) - 1.0
    assert judge.agrees(episode, slack=1.01)
    assert not judge.agrees(episode, slack=0.99)


def test_a_bundle_that_is_no_calibrated_reward_is_refused(tmp_path, bundles):
    with pytest.raises(BundleInvalid, match="expected a calibrated reward, found kind 'policy'"):
        Judge(bundles["policy"])
    open_threshold = write_random_bundle(
        practised.pointmass(), tmp_path, "reward", settings=practised.SMALL, success_threshold=None
    )
    with pytest.raises(BundleInvalid, match="success_threshold None; make one with efm sft"):
        Judge(open_threshold)
