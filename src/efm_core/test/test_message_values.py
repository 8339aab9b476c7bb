"""What is written into a command or a state is what is read out of it."""

from pathlib import Path

import numpy as np
import pytest
from example_robots import arm_robot, table_robot

from efm_core.embodiment import load_embodiment
from efm_core.message_values import (
    COMMAND_TYPES,
    STATE_TYPES,
    command_message,
    command_values,
    message_stamp_ns,
    state_message,
    state_values,
)
from efm_core.schemas import deserialize, serialize

FOLDER = Path(__file__).parents[3] / "config/embodiments"
STAMP_NS = 12_345_678_901
TWISTS = table_robot(
    action__interface="twist_stamped",
    action__frame_id="base_link",
    action__dimensions=[
        {"name": name, "low": -1.0, "high": 1.0, "bins": 5, "unit": unit, "max_rate": 1.0}
        for name, unit in (("linear.y", "m/s"), ("angular.z", "rad/s"))
    ],
)
ROBOTS = {path.stem: load_embodiment(path.stem) for path in sorted(FOLDER.glob("*.yaml"))}
ROBOTS |= {"arm": arm_robot(), "twists": TWISTS}


@pytest.fixture(params=ROBOTS)
def embodiment(request):
    return ROBOTS[request.param]


def test_a_command_of_every_robot_is_read_as_it_was_written(embodiment):
    action, period = embodiment.action, 1.0 / embodiment.control_rate_hz
    values = np.random.default_rng(1).normal(size=embodiment.action_size)
    data = serialize(command_message(values, action, STAMP_NS, period))
    message = deserialize(data, COMMAND_TYPES[action.interface])
    assert np.array_equal(command_values(message, action, period), values)
    assert message_stamp_ns(message) == STAMP_NS


def test_a_state_of_every_robot_is_read_as_it_was_written(embodiment):
    state = embodiment.state
    values = np.random.default_rng(1).normal(size=embodiment.state_size)
    message = deserialize(serialize(state_message(values, state, STAMP_NS)), STATE_TYPES[state.interface])
    assert np.array_equal(state_values(message, state), values)
    assert message_stamp_ns(message) == STAMP_NS
