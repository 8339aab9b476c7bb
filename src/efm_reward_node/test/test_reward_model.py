"""What the reward model says of observations and of recorded episodes, without ROS."""

import subprocess
import sys

import numpy as np
import pytest
from judged_world import TASK, observation, record, robot, stamp, write_reward_bundle

from efm_core.episode import read_episode
from efm_core.errors import BundleUnusable, EmbodimentMismatch, EpisodeInvalid
from efm_reward_node.reward_model import LabellingStopped, label_episode, load_reward


@pytest.fixture
def model(tmp_path):
    return load_reward(write_reward_bundle(tmp_path / "bundles").path, robot())


def test_observations_are_judged_in_one_batch_each_by_its_own_instruction(model):
    first, second = model.judge([observation(7), observation(9)], [TASK, "push it over there"])
    assert first.expectation == pytest.approx(7, abs=1e-3)
    assert second.expectation == pytest.approx(11, abs=1e-3)
    assert first.spread == pytest.approx(0, abs=1e-3)
    assert first.disagreement == 0
    assert first.probabilities.sum() == pytest.approx(1)
    assert first.probabilities.argmax() == 7


def test_one_bad_observation_fails_alone(model):
    outcomes = model.judge([observation(7), observation(255), observation(9)], [TASK] * 3)
    assert [getattr(outcome, "expectation", None) is None for outcome in outcomes] == [False, True, False]
    assert isinstance(outcomes[1], BundleUnusable)
    assert outcomes[2].expectation == pytest.approx(9, abs=1e-3)


def test_threshold_and_hold_are_the_bundles_unless_they_are_given(tmp_path, model):
    assert (model.threshold, model.hold) == (2.0, 2)
    own = load_reward(model.bundle.path, robot(), threshold=0.0, hold=5)
    assert (own.threshold, own.hold) == (0.0, 5)


def test_a_bundle_that_cannot_judge_this_robot_is_refused(tmp_path):
    policy = write_reward_bundle(tmp_path, kind="policy")
    with pytest.raises(BundleUnusable, match="expected kind reward or both, found policy"):
        load_reward(policy.path, robot())
    open_ended = write_reward_bundle(tmp_path, threshold=None)
    with pytest.raises(BundleUnusable, match="expected a calibrated success threshold, found none"):
        load_reward(open_ended.path, robot())
    assert load_reward(open_ended.path, robot(), threshold=1.0).threshold == 1.0
    with pytest.raises(EmbodimentMismatch):
        load_reward(write_reward_bundle(tmp_path).path, robot(control_rate_hz=5.0))


def test_a_recorded_episode_is_labelled_at_every_observation_over_several_batches(model, tmp_path):
    brightnesses = [*range(39, 0, -1), 1, 1]
    labels = label_episode(model, read_episode(record(tmp_path, brightnesses)))
    np.testing.assert_array_equal(labels.stamps, [stamp(step) for step in range(len(brightnesses))])
    np.testing.assert_allclose(labels.expectation, brightnesses, atol=1e-3)
    assert labels.spread.shape == (len(brightnesses),)
    assert labels.success_index == brightnesses.index(2) + 1  # Held for two observations.


def test_a_recorded_episode_is_judged_by_another_instruction_when_one_is_given(model, tmp_path):
    episode = read_episode(record(tmp_path, [9, 8, 7]))
    labels = label_episode(model, episode, "push it over there")
    np.testing.assert_allclose(labels.expectation, [11, 10, 9], atol=1e-3)
    assert labels.success_index == -1


def test_an_episode_of_another_robot_is_refused(model, tmp_path):
    other = robot(control_rate_hz=5.0)
    with pytest.raises(EmbodimentMismatch, match="episode 20261122T140102Z-1a2b3c4d"):
        label_episode(model, read_episode(record(tmp_path, [9, 8], embodiment=other)))


def test_labelling_stops_between_batches_when_it_is_told_to(model, tmp_path):
    with pytest.raises(LabellingStopped, match="stopped at observation 0"):
        label_episode(model, read_episode(record(tmp_path, [9, 8])), stopped=lambda: True)


def test_a_folder_that_is_no_episode_is_refused(tmp_path):
    with pytest.raises(EpisodeInvalid):
        read_episode(tmp_path)


def test_the_model_never_loads_rclpy():
    modules = "efm_reward_node.reward_model, efm_reward_node.robot_stream"
    code = f"import sys; import {modules}; print('rclpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
