"""Ways to make a scene ready, each against a small robot made for it; and one that a newcomer wrote."""

import dataclasses
import re
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray

from efm_core.embodiment import load_embodiment
from efm_core.errors import BadRequest, EstopPressed, WaitTimeout
from efm_episode_node import resets
from efm_episode_node.resets import ResetContext, make_reset
from efm_episode_node.run_types import Scene
from efm_ros.qos import COMMANDS, deep
from efm_ros.testing import Spinner

POINTMASS = load_embodiment("pointmass")
# The same body, commanded to places: two joints whose positions are measured.
PLACES = dataclasses.replace(
    POINTMASS,
    control_rate_hz=100.0,
    action=dataclasses.replace(
        POINTMASS.action,
        hold_still="measured",
        dimensions=tuple(
            dataclasses.replace(dimension, name=name, unit="m", max_rate=2.0)
            for dimension, name in zip(POINTMASS.action.dimensions, "xy", strict=True)
        ),
    ),
    reset=dataclasses.replace(POINTMASS.reset, method="trajectory", points=((0.5, 0.5), (0.0, -0.5))),
)


@pytest.fixture
def node(ros):
    node = Node("reset_test")
    yield node
    node.destroy_node()


@pytest.fixture
def context(node):
    def make(embodiment=POINTMASS, **changes):
        values = {
            "node": node,
            "embodiment": embodiment,
            "timeout_s": 1.0,
            "wait_for_person": lambda text: None,
            "measured": lambda: np.zeros(2),
            "stopped": lambda: "",
            "dry_run": False,
            "policy_missing": lambda: "",
            "ask_policy": lambda instruction: None,
            "instruction": "",
        }
        return ResetContext(**{**values, **changes})

    return make


class Heard:
    """The commands that a reset sends."""

    def __init__(self, node):
        self.spinner = Spinner(node)
        self.values = []
        node.create_subscription(Float64MultiArray, "commands", self.take, deep(COMMANDS))

    def take(self, message):
        self.values.append(list(message.data))

    def until_still(self):
        self.spinner.until(
            lambda: self.values and np.allclose(self.values[-1], [0.0, 0.0]), "the last command"
        )
        return np.array(self.values)


def test_a_person_is_told_the_task_and_asked_to_confirm(context):
    asked = []
    scene = make_reset("person", context(wait_for_person=asked.append)).reset(0, "push the cube")
    assert asked == ["make the scene ready for 'push the cube', then call episodes/reset_done"]
    assert scene.instruction == "push the cube" and scene.start_ns > 0


def test_without_a_reset_the_episode_begins_where_the_last_one_ended(context):
    assert make_reset("none", context()).reset(0, "go on").instruction == "go on"


def test_a_policy_is_asked_for_its_own_reset_by_an_instruction(context):
    asked = []
    reset = make_reset("policy", context(ask_policy=asked.append, instruction="clear the table"))
    assert reset.reset(0, "push").instruction == "push"
    assert asked == ["clear the table"]
    with pytest.raises(BadRequest, match="reset_instruction"):
        make_reset("policy", context())


def test_a_simulator_that_is_away_is_named_and_waited_for(context):
    reset = make_reset("service", context())
    assert "is the simulator running?" in reset.missing()
    with pytest.raises(WaitTimeout, match="expected the service '/reset', found none"):
        reset.reset(1, "")


def test_a_trajectory_goes_through_its_points_slowly_and_ends_holding_still(node, context, monkeypatch):
    monkeypatch.setattr(resets, "LEAST_MOVE_S", 0.2)
    monkeypatch.setattr(resets, "SETTLE_S", 0.01)
    heard = Heard(node)
    make_reset("trajectory", context(PLACES)).reset(0, "")
    values = heard.until_still()
    steps = np.abs(np.diff(values[:-1], axis=0)).max()
    assert steps <= 2.0 / 100.0 + 1e-9, "not faster than max_rate"
    for point in PLACES.reset.points:
        assert np.abs(values - point).max(axis=1).min() < 0.03, f"comes by {point}"


def test_nothing_moves_in_a_dry_run(node, context, monkeypatch):
    monkeypatch.setattr(resets, "LEAST_MOVE_S", 0.05)
    monkeypatch.setattr(resets, "SETTLE_S", 0.01)
    heard = Heard(node)
    make_reset("trajectory", context(PLACES, dry_run=True)).reset(0, "")
    for _ in range(10):
        heard.spinner.executor.spin_once(timeout_sec=0.01)
    assert heard.values == []


def test_the_estop_ends_a_trajectory_and_the_robot_holds_still(node, context):
    heard = Heard(node)
    reset = make_reset(
        "trajectory", context(PLACES, stopped=lambda: "the e-stop is pressed" if heard_enough() else "")
    )
    looked = []

    def heard_enough():
        looked.append(1)
        return len(looked) > 3

    with pytest.raises(EstopPressed, match="the e-stop is pressed"):
        reset.reset(0, "")
    assert len(heard.until_still()) <= 4


def test_a_trajectory_waits_for_measured_positions(context):
    reset = make_reset("trajectory", context(PLACES, measured=lambda: None))
    assert "measured positions" in reset.missing()


def test_an_unknown_way_is_refused_with_the_nearest(context):
    with pytest.raises(BadRequest, match="did you mean 'person'"):
        make_reset("persn", context())


class BellReset:
    """What a newcomer writes."""

    def __init__(self, context):
        self.context = context

    def missing(self):
        return ""

    def reset(self, seed, instruction):
        return Scene(self.context.now_ns(), 0, f"{instruction}, after the bell")


def test_a_newcomers_way_is_found_by_its_entry_point(context, monkeypatch):
    entry = metadata.EntryPoint("bell", f"{__name__}:BellReset", resets.ENTRY_POINT_GROUP)
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda self: BellReset)
    monkeypatch.setattr(
        resets.metadata, "entry_points", lambda group: [entry] if group == "efm.resets" else []
    )
    assert make_reset("bell", context()).reset(0, "push").instruction == "push, after the bell"
    with pytest.raises(BadRequest, match="policy, none, bell"):
        make_reset("gong", context())


def test_the_way_that_the_guide_shows_works(context):
    guide = (Path(__file__).parents[3] / "docs/collect.md").read_text()
    names: dict[str, object] = {}
    exec(re.search(r"```python\n(.*?)```", guide, re.S)[1], names)
    asked = []
    reset = names["TiltReset"](context(wait_for_person=asked.append))
    assert reset.missing() == "" and reset.reset(3, "push").instruction == "push"
    assert asked == ["tilt the table, then call episodes/reset_done"]


def test_a_way_of_others_that_does_not_load_is_named(context, monkeypatch):
    entry = metadata.EntryPoint("bell", "no_such_module:Bell", resets.ENTRY_POINT_GROUP)
    monkeypatch.setattr(resets.metadata, "entry_points", lambda group: [entry])
    with pytest.raises(BadRequest, match="reset 'bell' .no_such_module:Bell. does not load"):
        make_reset("bell", context())
