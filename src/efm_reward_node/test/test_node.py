"""The reward node on real topics: robots are judged in order, episodes get labels, faults are told."""

import math
from pathlib import Path

import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from judged_world import picture, record, robot, stamp, write_reward_bundle
from rclpy.lifecycle import TransitionCallbackReturn
from reward_cell import Gate, values
from sensor_msgs.msg import JointState
from std_msgs.msg import Header

from efm_core.errors import Reason
from efm_msgs.srv import LabelEpisode
from efm_reward_node.node import RewardNode
from efm_ros.conversion import ns_to_stamp, rgb_to_image, stamp_to_ns
from efm_ros.qos import EVENTS, IMAGES

DONE = TransitionCallbackReturn.SUCCESS


def test_an_episode_is_judged_at_every_observation_with_reward_and_success(start):
    node, (arm,) = start()
    arm.begin("first", 0)
    labels = arm.judge([9, 6, 7, 2, 1, 5])
    assert values(labels, "expectation") == pytest.approx([9, 6, 7, 2, 1, 5], abs=1e-3)
    assert math.isnan(labels[0].reward)
    assert values(labels[1:], "reward") == pytest.approx([3, -1, 5, 1, -4], abs=1e-3)
    assert values(labels, "held") == [0, 0, 0, 1, 2, 0]
    assert values(labels, "success") == [False, False, False, False, True, True]
    assert [stamp_to_ns(label.header.stamp) for label in labels] == [stamp(step) for step in range(6)]
    assert {(label.episode_id, label.bundle_id) for label in labels} == {("first", node._supply.current.id)}
    assert {(label.threshold, label.bin_width, len(label.probabilities)) for label in labels} == {
        (2.0, 1, 50)
    }
    assert sum(labels[0].probabilities) == pytest.approx(1, abs=1e-5)


def test_observations_from_before_the_instruction_are_judged_from_its_stamp_on(start):
    node, (arm,) = start()
    for step in range(4):
        arm.show(step, 10 + step)
        arm.spinner.until(
            lambda step=step: arm.stream._kept and len(arm.stream._kept["top"]) == step + 1, "the image"
        )
    arm.begin("first", 2)
    arm.until_judged(2)
    assert values(arm.labels, "expectation") == pytest.approx([12, 13], abs=1e-3)


def test_a_new_instruction_begins_anew_and_between_episodes_nothing_is_judged(start):
    node, (arm,) = start()
    arm.begin("first", 0)
    arm.judge([2, 2, 2])
    assert arm.labels[-1].success
    arm.end()
    arm.show(3, 30)
    arm.begin("second", 4, "push it over there")
    (label,) = arm.judge([2], first=4)
    assert (label.episode_id, label.held, label.success) == ("second", 0, False)
    assert math.isnan(label.reward)
    assert label.expectation == pytest.approx(4, abs=1e-3)  # By the words of its own instruction.
    assert len(arm.labels) == 4


def test_robots_that_are_ready_together_share_an_inference(start):
    node, robots = start(robots=("left", "right", "far"))
    gate = Gate(node._supply.current)
    for found in robots:
        found.begin(f"of {found.name}", 0)
    robots[0].show(0, 5)
    robots[0].spinner.until(lambda: gate.batches == [1], "the first inference")
    robots[1].show(0, 6)
    robots[2].show(0, 7)
    robots[0].spinner.until(lambda: all(one.stream.waiting for one in robots[1:]), "two observations to wait")
    gate.open()
    for index, found in enumerate(robots):
        found.until_judged(1)
        assert found.labels[0].expectation == pytest.approx(5 + index, abs=1e-3)
        assert found.labels[0].episode_id == f"of {found.name}"
    assert gate.batches == [1, 2]


def test_in_lockstep_observations_queue_up_behind_a_slow_model_and_none_is_dropped(start):
    node, (arm,) = start()
    gate = Gate(node._supply.current)
    arm.begin("first", 0)
    for step in range(30):
        arm.show(step, step)
        arm.spinner.until(lambda step=step: arm.stream.newest_ns == stamp(step), "the image")
    gate.open()
    arm.until_judged(30)
    assert values(arm.labels, "expectation") == pytest.approx(list(range(30)), abs=1e-3)
    assert arm.stream.missed == 0


def test_in_lockstep_a_burst_on_several_topics_is_put_together_by_stamp(start, world, tmp_path):
    """Messages are taken topic by topic: all images of a burst come before its first state."""
    entries = [{"name": "x", "unit": "m", "low": -1.0, "high": 1.0}]
    seeing = robot(
        state={"topic": "state", "interface": "joint_states", "max_age_s": 1e10, "entries": entries}
    )
    file = tmp_path / "seeing.yaml"
    file.write_text(yaml.safe_dump(seeing.to_dict()))
    bundle = write_reward_bundle(tmp_path / "bundles", embodiment=seeing)
    node, (arm,) = start(embodiment=str(file), bundle=str(bundle.path))
    joints = world.create_publisher(JointState, "state", IMAGES)
    arm.spinner.until(joints.get_subscription_count, "the reward node to listen to joints")
    arm.begin("first", 0)
    with node._live._changed:  # The node cannot go on while these come in.
        for step in range(30):
            header = Header(stamp=ns_to_stamp(stamp(step)))
            joints.publish(JointState(header=header, name=["x"], position=[0.0]))
            arm.show(step, step)
    arm.until_judged(30)
    assert values(arm.labels, "expectation") == pytest.approx(list(range(30)), abs=1e-3)


def test_live_the_newest_frame_wins_behind_a_slow_model(start):
    node, (arm,) = start(lockstep=False)
    gate = Gate(node._supply.current)
    arm.begin("first", 0)
    for step in range(10):
        arm.show(step, step)
        arm.spinner.until(lambda step=step: arm.stream.newest_ns == stamp(step), "the image")
        arm.spinner.until(lambda: gate.batches, "the first inference")
    gate.open()
    arm.until_judged(2)
    assert values(arm.labels, "expectation") == pytest.approx([0, 9], abs=1e-3)
    assert arm.stream.missed == 8


def test_a_recorded_episode_is_labelled_on_request_like_live(start, world, spinner, tmp_path):
    node, (arm,) = start()
    client = world.create_client(LabelEpisode, "reward/label_episode")
    path = record(tmp_path, [9, 6, 7, 2, 1, 5])
    answer = spinner.call(client, LabelEpisode.Request(path=str(path)))
    assert (answer.reason, answer.message) == (Reason.OK, "")
    assert (answer.bundle_id, answer.success_index) == (node._supply.current.id, 4)
    arm.begin("live", 0)
    live = arm.judge([9, 6, 7, 2, 1, 5])
    assert list(answer.expectation) == values(live, "expectation")
    assert list(answer.spread) == values(live, "spread")
    assert [stamp_to_ns(found) for found in answer.stamps] == [stamp(step) for step in range(6)]


def test_what_cannot_be_labelled_is_refused_with_a_reason(start, world, spinner, tmp_path, learner):
    client = world.create_client(LabelEpisode, "reward/label_episode")
    node, _ = start(bundle="", live=False, wait=False)
    path = str(record(tmp_path, [9, 6]))

    def reason(**request):
        answer = spinner.call(client, LabelEpisode.Request(**request))
        assert answer.message
        assert answer.success_index == -1
        return answer.reason

    spinner.until(lambda: node.is_active, "an active node")
    assert reason(path=path) == Reason.BUNDLE_UNKNOWN
    learner.announce(write_reward_bundle(tmp_path / "learner"))
    spinner.until(lambda: node._supply.current is not None, "a model")
    assert reason(path=str(tmp_path / "missing")) == Reason.EPISODE_INVALID
    assert reason(path=path, instruction="far too many words for this model") == Reason.BAD_REQUEST
    node.trigger_deactivate()
    assert reason(path=path) == Reason.NOT_ACTIVE


def test_a_recording_that_nobody_foresaw_does_not_end_the_judging(start, world, spinner, tmp_path):
    node, (arm,) = start()
    client = world.create_client(LabelEpisode, "reward/label_episode")
    answer = spinner.call(client, LabelEpisode.Request(path="a name with a zero \0 in it"))
    assert answer.reason in (Reason.INTERNAL, Reason.EPISODE_INVALID)
    arm.begin("first", 0)
    assert arm.judge([5])


def test_after_a_deactivation_it_judges_again_with_the_instruction_that_holds(start):
    node, (arm,) = start()
    arm.begin("first", 0)
    arm.judge([5])
    assert node.trigger_deactivate() == DONE
    assert node.trigger_activate() == DONE
    arm.spinner.until(arm.is_heard, "the reward node to listen again")
    arm.spinner.until(lambda: arm.stream.course is not None, "the instruction")
    arm.spinner.until(lambda: arm.live.publisher.get_subscription_count(), "us")
    (label,) = arm.judge([6], first=1)
    assert label.episode_id == "first"
    assert node.trigger_deactivate() == DONE
    assert node.trigger_cleanup() == DONE
    assert node._supply is None


def test_an_image_that_cannot_be_used_is_told_and_the_next_one_is_judged(start, world):
    arrays = []
    world.create_subscription(DiagnosticArray, "/diagnostics", arrays.append, EVENTS)
    node, (arm,) = start()
    arm.begin("first", 0)
    broken = rgb_to_image(picture(5), Header(stamp=ns_to_stamp(stamp(0))))
    broken.encoding = "bayer_rggb8"
    arm.camera.publish(broken)

    def status(name):
        found = [one for array in arrays for one in array.status if one.name == f"reward: {name}"]
        return found[-1] if found else None

    arm.spinner.until(
        lambda: any("bayer_rggb8" in one.message for array in arrays for one in array.status), "the complaint"
    )
    arm.judge([7], first=1)
    arrays.clear()

    def figures():
        told = status("judging")
        return {value.key: value.value for value in told.values} if told and status("model") else {}

    arm.spinner.until(lambda: figures().get("judged") == "1", "diagnostics of one judgement")
    assert (figures()["episode_id"], figures()["missed"]) == ("first", "0")
    assert float(figures()["steps_to_go"]) == pytest.approx(7, abs=1e-3)
    model = {value.key: value.value for value in status("model").values}
    assert model["bundle_id"] == node._supply.current.id
    assert model["provider"] == "CPUExecutionProvider"


def test_a_fault_in_one_of_its_threads_ends_the_node(start):
    """A thread that dies in silence would leave the robot unjudged for ever."""
    node, (arm,) = start()
    node._supply.current.judge = lambda observations, instructions: 1 / 0
    arm.begin("first", 0)
    arm.show(0, 5)
    arm.spinner.until(lambda: node.failure is not None, "the fault")
    assert isinstance(node.failure, ZeroDivisionError)


def test_every_parameter_of_the_settings_file_exists():
    file = Path(__file__).resolve().parents[3] / "config" / "reward.yaml"
    names = yaml.safe_load(file.read_text())["/**"]["ros__parameters"]
    fields = {field.name: field.default for field in RewardNode.Parameters.__dataclass_fields__.values()}
    assert {name: fields[name] for name in names} == names
