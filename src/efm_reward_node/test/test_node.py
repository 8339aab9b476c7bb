"""The reward node on real topics: robots are judged in order, models come and go, episodes get labels."""

import math
import shutil
import threading
from pathlib import Path

import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from judged_world import TASK, picture, robot, stamp, write_reward_bundle
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from test_reward_model import record

from efm_core.errors import Reason
from efm_msgs.msg import Instruction, ModelStatus, StepsToGo
from efm_msgs.srv import LabelEpisode
from efm_reward_node.node import RewardNode
from efm_ros.conversion import ns_to_stamp, rgb_to_image, stamp_to_ns
from efm_ros.names import in_robot
from efm_ros.qos import EVENTS, IMAGES, LATCHED, MODELS
from efm_ros.testing import PATIENCE_S, Spinner
from efm_ros.transfer_server import BundleServer

DONE = TransitionCallbackReturn.SUCCESS


class Robot:
    """What a robot and its episode node publish, and what they hear of the reward node."""

    def __init__(self, node, name, spinner):
        self.name, self.spinner, self.node = name, spinner, node
        self.labels, self.statuses, self.judge_node = [], [], None
        self.camera = node.create_publisher(Image, in_robot(name, "camera/top/image_raw"), IMAGES)
        self.instruction = node.create_publisher(Instruction, in_robot(name, "instruction"), LATCHED)
        node.create_subscription(StepsToGo, in_robot(name, "steps_to_go"), self.labels.append, EVENTS)
        node.create_subscription(ModelStatus, in_robot(name, "model_status"), self.statuses.append, MODELS)

    @property
    def live(self):
        """This robot inside the reward node."""
        return next(one for one in self.judge_node._live.robots if one.name == self.name)

    @property
    def stream(self):
        return self.live.stream

    def is_heard(self):
        return self.camera.get_subscription_count() and self.instruction.get_subscription_count()

    def begin(self, episode_id, first, text=TASK):
        message = Instruction(episode_id=episode_id, text=text)
        message.header.stamp = ns_to_stamp(stamp(first))
        self.instruction.publish(message)
        self.spinner.until(
            lambda: self.stream.course is not None and self.stream.course.episode_id == episode_id,
            f"the begin of episode {episode_id}",
        )

    def end(self):
        self.instruction.publish(Instruction())
        self.spinner.until(lambda: self.stream.course is None, "the end of the episode")

    def show(self, step, brightness):
        self.camera.publish(rgb_to_image(picture(brightness), Header(stamp=ns_to_stamp(stamp(step)))))

    def until_judged(self, count):
        self.spinner.until(lambda: len(self.labels) >= count, f"{count} labels of robot '{self.name}'")

    def judge(self, brightnesses, first=0):
        """Shows one image after the other, each after the label of the one before: none can be lost."""
        for step, brightness in enumerate(brightnesses, start=first):
            count = len(self.labels)
            self.show(step, brightness)
            self.until_judged(count + 1)
        return self.labels[-len(brightnesses) :]

    def states(self, bundle):
        return [status.state for status in self.statuses if status.bundle_id == bundle.id]

    def until_state(self, bundle, state):
        self.spinner.until(lambda: state in self.states(bundle), f"state {state} of bundle {bundle.id}")


@pytest.fixture
def spinner(ros):
    spinner = Spinner()
    yield spinner
    spinner.close()


@pytest.fixture
def world(spinner):
    node = Node("world")
    spinner.executor.add_node(node)
    yield node
    node.destroy_node()


@pytest.fixture
def bundles(tmp_path):
    return tmp_path / "bundles"


@pytest.fixture
def start(world, spinner, tmp_path, bundles):
    """Starts a reward node; gives it and its robots, all matched with one another."""
    nodes = []
    embodiment = tmp_path / "table.yaml"
    embodiment.write_text(yaml.safe_dump(robot().to_dict()))

    def begin(robots=("",), wait=True, **parameters):
        given = {
            "robots": list(robots),
            "lockstep": True,
            "bundle_dir": str(tmp_path / "cache"),
            **parameters,
        }
        given.setdefault("embodiment", str(embodiment))
        if "bundle" not in given:
            given["bundle"] = str(write_reward_bundle(bundles).path)
        node = RewardNode(parameter_overrides=[Parameter(name, value=value) for name, value in given.items()])
        nodes.append(node)
        spinner.executor.add_node(node)
        made = [Robot(world, name, spinner) for name in robots]
        for found in made:
            found.judge_node = node
        if wait:
            spinner.until(lambda: node.is_active or node.failure is not None, "an active reward node")
            assert node.failure is None, node.failure
            spinner.until(lambda: all(found.is_heard() for found in made), "the reward node to listen")
            spinner.until(
                lambda: all(one.publisher.get_subscription_count() for one in node._live.robots), "us"
            )
        return node, made

    yield begin
    for node in nodes:
        node.stop_and_release()
        spinner.executor.remove_node(node)
        node.destroy_node()


class Gate:
    """Holds a model's inferences back until it is opened; remembers how many observations came in each."""

    def __init__(self, model):
        self.batches = []
        self._open = threading.Event()
        self._judge = model.judge
        model.judge = self.judge

    def judge(self, observations, instructions):
        self.batches.append(len(observations))
        assert self._open.wait(PATIENCE_S)
        return self._judge(observations, instructions)

    def open(self):
        self._open.set()


def values(labels, field):
    return [getattr(label, field) for label in labels]


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


# Models


def set_bundle(node, path):
    result = node.set_parameters([Parameter("bundle", value=str(path))])[0]
    assert result.successful, result.reason


def test_a_new_bundle_waits_for_the_end_of_the_episode(start, bundles):
    node, (arm,) = start()
    old, new = node._supply.current.bundle, write_reward_bundle(bundles, offset=10.0)
    arm.begin("first", 0)
    arm.judge([5])
    set_bundle(node, new.path)
    arm.until_state(new, ModelStatus.STATE_READY)
    (label,) = arm.judge([5], first=1)
    assert (label.bundle_id, ModelStatus.STATE_ACTIVE in arm.states(new)) == (old.id, False)
    arm.begin("second", 2)
    (label,) = arm.judge([5], first=2)
    assert label.bundle_id == new.id
    assert label.expectation == pytest.approx(15, abs=1e-3)
    arm.until_state(new, ModelStatus.STATE_ACTIVE)
    active = [status for status in arm.statuses if status.state == ModelStatus.STATE_ACTIVE][-1]
    assert (active.node, active.robot) == ("reward", "")
    assert 0 <= active.stall < 0.1


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"kind": "policy"}, Reason.BUNDLE_UNUSABLE),
        ({"threshold": None}, Reason.BUNDLE_UNUSABLE),
        ({"embodiment": robot(control_rate_hz=5.0)}, Reason.EMBODIMENT_MISMATCH),
        ("missing", Reason.BUNDLE_UNKNOWN),
        ("tampered", Reason.BUNDLE_TAMPERED),
    ],
)
def test_a_wrong_bundle_is_refused_in_words_and_the_old_one_goes_on(start, bundles, choices, reason):
    node, (arm,) = start()
    wrong = write_reward_bundle(bundles, offset=3.0, **(choices if isinstance(choices, dict) else {}))
    if choices == "missing":
        shutil.rmtree(wrong.path)
    if choices == "tampered":
        with (wrong.path / "model.onnx").open("r+b") as file:
            file.write(b"no")
    set_bundle(node, wrong.path)
    arm.until_state(wrong, ModelStatus.STATE_REFUSED)
    refused = [status for status in arm.statuses if status.state == ModelStatus.STATE_REFUSED][-1]
    assert refused.reason == reason
    assert refused.message
    arm.begin("first", 0)
    (label,) = arm.judge([5])
    assert label.bundle_id == node._supply.current.id != wrong.id


def test_a_model_that_gives_nan_labels_nothing_then_and_the_one_before_comes_back(start, bundles):
    node, (arm,) = start()
    old, new = node._supply.current.bundle, write_reward_bundle(bundles, offset=10.0)
    set_bundle(node, new.path)
    arm.until_state(new, ModelStatus.STATE_READY)
    arm.begin("first", 0)
    arm.judge([5])
    arm.show(1, 255)
    arm.until_state(new, ModelStatus.STATE_REFUSED)
    (label,) = arm.judge([6], first=2)
    assert label.bundle_id == new.id  # An episode is of one model.
    assert len(arm.labels) == 2
    arm.begin("second", 3)
    (label,) = arm.judge([6], first=3)
    assert label.bundle_id == old.id


@pytest.fixture
def learner(spinner, tmp_path):
    node = Node("learner", namespace="/learner")
    spinner.executor.add_node(node)
    yield BundleServer(node, tmp_path / "learner")
    node.destroy_node()


def test_without_a_bundle_the_first_announced_one_is_taken_and_no_other(start, learner, tmp_path):
    node, (arm,) = start(bundle="")
    assert node._supply.current is None
    first = write_reward_bundle(tmp_path / "learner")
    learner.announce(write_reward_bundle(tmp_path / "learner", kind="policy", offset=9.0))
    learner.announce(first)
    arm.until_state(first, ModelStatus.STATE_ACTIVE)
    arm.begin("first", 0)
    (label,) = arm.judge([5])
    assert label.bundle_id == first.id
    learner.announce(write_reward_bundle(tmp_path / "learner", offset=1.0))
    arm.begin("second", 1)
    (label,) = arm.judge([5], first=1)
    assert label.bundle_id == first.id
    assert sorted(path.name for path in (tmp_path / "cache").glob("[0-9a-f]*")) == [first.id]


def test_told_to_follow_the_models_it_takes_every_reward_bundle(start, learner, tmp_path):
    node, (arm,) = start(follow_models=True)
    for offset in (1.0, 2.0):
        bundle = write_reward_bundle(tmp_path / "learner", offset=offset)
        learner.announce(bundle)
        arm.until_state(bundle, ModelStatus.STATE_ACTIVE)


def test_an_announcement_for_another_robot_is_refused_without_a_fetch(start, learner, tmp_path):
    node, (arm,) = start(follow_models=True)
    other = write_reward_bundle(tmp_path / "learner", embodiment=robot(control_rate_hz=5.0))
    learner.announce(other)
    arm.until_state(other, ModelStatus.STATE_REFUSED)
    assert arm.statuses[-1].reason == Reason.EMBODIMENT_MISMATCH
    assert not (tmp_path / "cache" / other.id).exists()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"bundle": "/nowhere"}, "/nowhere"),
        ({"embodiment": "tabel"}, "tabel"),
    ],
)
def test_a_node_that_cannot_judge_refuses_to_be_configured(start, parameters, words):
    node, _ = start(wait=False, autostart=False, **parameters)
    assert node.trigger_configure() != DONE
    assert words in str(node._refusal)
    assert node._supply is None


# Labelling, lifecycle and diagnostics


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
    arm.spinner.until(lambda: status("judging") and status("model"), "diagnostics")
    figures = {value.key: value.value for value in status("judging").values}
    assert (figures["episode_id"], figures["judged"], figures["missed"]) == ("first", "1", "0")
    assert float(figures["steps_to_go"]) == pytest.approx(7, abs=1e-3)
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
