"""How reward models come into the node and go: swapped between episodes, refused in words, fetched."""

import shutil
import time

import pytest
from judged_world import robot, write_reward_bundle
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from efm_core.errors import Reason
from efm_msgs.msg import ModelStatus
from efm_reward_node.reward_model import RewardModel
from efm_ros.lifecycle import WARN
from efm_ros.transfer_server import BundleServer

DONE = TransitionCallbackReturn.SUCCESS
SLOW_LOAD_S = 2.0


def set_bundle(node, path):
    result = node.set_parameters([Parameter("bundle", value=str(path))])[0]
    assert result.successful, result.reason


def test_a_new_bundle_waits_for_the_end_of_the_episode(start, bundles):
    node, (arm,) = start()
    load = node._supply._load
    node._supply._load = lambda path: (time.sleep(SLOW_LOAD_S), load(path))[1]
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
    assert 0 <= active.stall < SLOW_LOAD_S  # Nothing is loaded while a robot waits.


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


def test_an_episode_that_began_before_there_was_any_model_is_judged_as_soon_as_there_is_one(
    start, learner, tmp_path
):
    """The first episode of a fleet that has just started must not run to its greatest length unjudged."""
    node, (arm,) = start(bundle="")
    arm.begin("first", 0, wait=False)
    arm.spinner.until(lambda: arm.live.instruction is not None, "the instruction")
    arm.show(0, 5)
    arm.spinner.until(lambda: arm.stream._kept, "the image")
    learner.announce(write_reward_bundle(tmp_path / "learner"))
    arm.until_judged(1)
    assert arm.labels[0].expectation == pytest.approx(5, abs=1e-3)


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
        ({"embodiment": "taable"}, "taable"),
    ],
)
def test_a_node_that_cannot_judge_refuses_to_be_configured(start, parameters, words):
    node, _ = start(wait=False, autostart=False, **parameters)
    assert node.trigger_configure() != DONE
    assert words in str(node._refusal)
    assert node._supply is None


def test_a_fetched_bundle_that_is_damaged_in_the_cache_is_fetched_again_the_next_time(
    start, learner, tmp_path
):
    node, (arm,) = start(follow_models=True)
    bundle = write_reward_bundle(tmp_path / "learner", offset=1.0)
    cached = tmp_path / "cache" / bundle.id
    shutil.copytree(bundle.path, cached)
    (cached / "model.onnx").write_bytes(b"damaged")
    learner.announce(bundle)
    arm.until_state(bundle, ModelStatus.STATE_REFUSED)
    learner.announce(bundle)
    arm.until_state(bundle, ModelStatus.STATE_ACTIVE)
    assert node._supply.current.id == bundle.id


def test_old_fetched_bundles_are_removed_from_the_disk(start, learner, tmp_path):
    node, (arm,) = start(follow_models=True, keep_bundles=2)
    made = [write_reward_bundle(tmp_path / "learner", offset=float(offset)) for offset in (1, 2, 3)]
    for bundle in made:
        learner.announce(bundle)
        arm.until_state(bundle, ModelStatus.STATE_ACTIVE)
    arm.spinner.until(lambda: not (tmp_path / "cache" / made[0].id).exists(), "the oldest to go")
    assert all((tmp_path / "cache" / bundle.id).exists() for bundle in made[1:])


def test_of_many_announcements_at_once_only_the_newest_is_loaded(start, learner, tmp_path):
    """A late joiner gets the last ten from the latched topic."""
    made = [write_reward_bundle(tmp_path / "learner", offset=float(offset)) for offset in range(1, 6)]
    for bundle in made:
        learner.announce(bundle)
    node, (arm,) = start(follow_models=True)
    arm.until_state(made[-1], ModelStatus.STATE_ACTIVE)
    loaded = {status.bundle_id for status in arm.statuses if status.state == ModelStatus.STATE_LOADING}
    assert made[-1].id in loaded
    assert len(loaded & {bundle.id for bundle in made}) <= 2  # The burst may come in two pieces.


def test_a_fetch_that_is_given_up_for_a_newer_bundle_is_no_refusal(start, learner, tmp_path):
    _, (arm,) = start(follow_models=True)
    first, second = (write_reward_bundle(tmp_path / "learner", offset=offset) for offset in (1.0, 2.0))
    assert learner._node.destroy_service(learner.service)
    learner.announce(first)
    arm.until_state(first, ModelStatus.STATE_FETCHING)
    learner.announce(second)
    arm.until_state(second, ModelStatus.STATE_FETCHING)
    BundleServer(learner._node, tmp_path / "learner")
    arm.until_state(second, ModelStatus.STATE_ACTIVE)
    assert ModelStatus.STATE_REFUSED not in arm.states(first)


def test_a_gpu_that_did_not_come_up_is_told_in_the_diagnostics(start, monkeypatch):
    monkeypatch.setattr(RewardModel, "passed_over", ("CUDAExecutionProvider",))
    node, _ = start()
    node.update_diagnostics()
    level, message, figures = node.diagnostics["model"]
    assert level == WARN
    assert message.startswith("runs on the CPU: CUDAExecutionProvider did not come up")
    assert figures["provider"] == "CPUExecutionProvider"
