"""Which observations of a robot are judged, and what reward and success come out, without ROS and threads."""

import math

import numpy as np
import pytest
from judged_world import PERIOD_NS, TASK, picture, robot, stamp, write_reward_bundle

from efm_core.errors import ObservationInvalid
from efm_core.reward import SuccessDetector
from efm_reward_node.reward_model import Judgement, load_reward
from efm_reward_node.robot_stream import KEPT_INPUTS, Course, RobotStream

STATE = {
    "topic": "joint_states",
    "interface": "joint_states",
    "max_age_s": 1e10,
    "entries": [{"name": "x", "unit": "m", "low": -1.0, "high": 1.0}],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_reward(write_reward_bundle(tmp_path_factory.mktemp("bundles")).path, robot())


@pytest.fixture
def course(model):
    return Course("episode", TASK, model, SuccessDetector(model.threshold, model.hold))


def stream(lockstep=True, queue=100, **changes):
    return RobotStream(robot(**changes), lockstep, queue, lambda: stamp(1000), lambda: 0.0)


def popped(found):
    """Takes all tasks; gives step and the brightness of every frame."""
    tasks = []
    while (task := found.pop()) is not None:
        seen = task.observation
        tasks.append(
            ((seen.stamp_ns - stamp(0)) // PERIOD_NS, [int(frame.max()) for frame in seen.images["top"]])
        )
    return tasks


def test_in_lockstep_every_observation_of_the_episode_becomes_a_task_in_order(course):
    found = stream()
    found.begin(course, stamp(0))
    for step in range(4):
        found.add_image("top", stamp(step), picture(10 + step))
    assert popped(found) == [(0, [10, 10]), (1, [10, 11]), (2, [11, 12]), (3, [12, 13])]


def test_what_came_before_its_instruction_is_judged_and_what_is_older_is_not(course):
    """A world in lockstep shows the first observation before the episode node can name the episode."""
    found = stream()
    for step in range(5):
        found.add_image("top", stamp(step), picture(10 + step))
    found.begin(course, stamp(3))
    found.add_image("top", stamp(5), picture(15))
    assert popped(found) == [(3, [13, 13]), (4, [13, 14]), (5, [14, 15])]


def test_a_repeated_observation_is_judged_once(course):
    found = stream()
    found.begin(course, stamp(0))
    for _ in range(3):
        found.add_image("top", stamp(0), picture(10))
    assert popped(found) == [(0, [10, 10])]


def test_in_lockstep_all_inputs_of_a_stamp_are_waited_for(course):
    found = stream(state=STATE)
    found.begin(course, stamp(0))
    found.add_image("top", stamp(0), picture(10))
    assert found.waiting == 0
    found.add_state(stamp(0), np.array([0.5]))
    (task,) = [found.pop()]
    np.testing.assert_array_equal(task.observation.state, [0.5])


def test_a_queue_that_is_full_drops_the_oldest_and_counts_it(course):
    found = stream(queue=3)
    found.begin(course, stamp(0))
    for step in range(5):
        found.add_image("top", stamp(step), picture(step))
    assert [step for step, _ in popped(found)] == [2, 3, 4]
    assert found.missed == 2


def test_live_the_newest_observation_wins_and_the_history_keeps_the_pace_of_control(course):
    found = stream(lockstep=False)
    found.begin(course, stamp(0))
    for step in range(4):
        for third in range(3):  # The camera runs at three times the control rate.
            at = stamp(step) + third * PERIOD_NS // 3
            found.add_image("top", at, picture(10 * step + third))
    assert popped(found) == [(3, [20, 30])]
    assert found.missed == 3


def test_live_a_fast_state_does_not_quicken_the_history(course):
    found = stream(lockstep=False, state=STATE)
    found.begin(course, stamp(0))
    for tick in range(21):  # The camera runs at three times the control rate, the state ten times as fast.
        at = stamp(0) + tick * PERIOD_NS // 10
        if tick % 3 == 0:
            found.add_image("top", at, picture(tick))
        found.add_state(at, np.zeros(1))
    assert popped(found) == [(1, [9, 18])]


def test_live_a_fast_state_does_not_push_the_images_out_that_came_before_the_instruction(course):
    found = stream(lockstep=False, state=STATE)
    found.add_image("top", stamp(0), picture(10))
    for tick in range(5 * KEPT_INPUTS):
        found.add_state(stamp(0) + tick, np.zeros(1))
    found.begin(course, stamp(0))
    assert popped(found) == [(0, [10, 10])]


def test_between_episodes_nothing_is_judged_and_what_waits_still_is(course):
    found = stream()
    found.begin(course, stamp(0))
    found.add_image("top", stamp(0), picture(10))
    found.end()
    found.add_image("top", stamp(1), picture(11))
    assert [step for step, _ in popped(found)] == [0]


def test_after_the_clock_was_set_back_the_next_episode_is_judged_all_the_same(course):
    found = stream()
    for step in (100, 101):
        found.add_image("top", stamp(step), picture(99))
    found.begin(course, stamp(100))
    popped(found)
    for step in range(2):
        found.add_image("top", stamp(step), picture(step))
    found.begin(course, stamp(0))
    assert popped(found) == [(0, [0, 0]), (1, [0, 1])]


def test_images_of_any_size_come_to_the_model_in_its_own(course):
    found = stream()
    found.begin(course, stamp(0))
    found.add_image("top", stamp(0), picture(10, height=60, width=100))
    assert found.pop().observation.images["top"].shape == (2, 6, 8, 3)


def test_an_image_that_is_none_is_refused(course):
    with pytest.raises(ObservationInvalid):
        stream().add_image("top", stamp(0), np.zeros((6, 8)))


def test_it_says_what_is_missing(course):
    found = stream(state=STATE)
    found.begin(course, stamp(0))
    found.add_image("top", stamp(0), picture(10))
    assert "no state on 'joint_states'" in found.why_nothing_new()


def test_the_reward_is_the_fall_of_d_and_success_is_seen_after_the_hold_and_stays(course):
    seen = []
    for d in (5.0, 3.0, 4.0, 1.0, 2.0, 9.0):
        reward = course.take(Judgement(d, 0.0, 0.0, np.zeros(1)))
        seen.append((reward, course.detector.held, course.detector.succeeded))
    assert math.isnan(seen[0][0])
    assert seen[1:] == [(2.0, 0, False), (-1.0, 0, False), (3.0, 1, False), (-1.0, 2, True), (-7.0, 0, True)]
