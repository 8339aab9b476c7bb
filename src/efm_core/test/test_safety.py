"""The safety gate, holding still, and the watchdog."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from example_robots import arm_robot, table_robot
from hypothesis import given
from hypothesis import strategies as st

from efm_core.errors import ActionNotFinite, LimitExceeded
from efm_core.safety import (
    Gate,
    SafetyGate,
    Watchdog,
    hold_still_command,
    hold_still_values,
    measured_positions,
)

ARM = arm_robot()  # Two joints: -1 .. 1 rad, at most 2 rad/s at 10 Hz; a gripper 0 .. 1.
POLICY_STEP_MSG = Path(__file__).parents[2] / "efm_msgs/msg/PolicyStep.msg"


def gate() -> SafetyGate:
    return SafetyGate(ARM.action, ARM.control_rate_hz)


def test_flags_are_those_of_the_interface_file():
    found = re.findall(r"^uint8 GATE_(\w+) = (\d+)", POLICY_STEP_MSG.read_text(), re.MULTILINE)
    assert {name: int(code) for name, code in found} == {
        name: int(item) for name, item in Gate.__members__.items()
    }


def test_what_is_within_the_limits_passes_as_it_is():
    checked = gate()
    for action in ([0.5, -0.5, 1.0], [0.6, -0.4, 0.0]):
        command, flags = checked.check(action, 0.1)
        np.testing.assert_array_equal(command, action)
        assert flags == Gate.PASSED and command.dtype == np.float64


def test_what_is_out_of_bounds_is_cut():
    command, flags = gate().check([3, -1e300, 0.5])
    np.testing.assert_array_equal(command, [1, -1, 0.5])
    assert flags == Gate.BOUNDED


def test_the_first_command_is_only_bounded_and_the_next_change_slowly():
    checked = gate()
    checked.check([0, 0, 0])
    command, flags = checked.check([0.9, -0.9, 0.0], 0.1)
    np.testing.assert_allclose(command, [0.2, -0.2, 0])
    assert flags == Gate.RATE_LIMITED
    command, flags = checked.check([9, -0.25, 0.0], 0.1)
    np.testing.assert_allclose(command, [0.4, -0.25, 0])
    assert flags == Gate.BOUNDED | Gate.RATE_LIMITED


def test_from_a_known_place_also_the_first_command_changes_slowly():
    checked = gate()
    checked.reset([0.5, 0.5, 1.0])
    np.testing.assert_allclose(checked.check([-1, 0.5, 1.0])[0], [0.3, 0.5, 1])
    checked.reset()
    np.testing.assert_allclose(checked.check([-1, 0.5, 1.0])[0], [-1, 0.5, 1])


def test_a_dimension_without_a_limit_may_jump():
    table = table_robot()
    checked = SafetyGate(table.action, 10)
    checked.check([-0.03, 0])
    command, flags = checked.check([0.03, 0], 0.0)
    np.testing.assert_array_equal(command, [0.03, 0])
    assert flags == Gate.PASSED


@pytest.mark.parametrize(
    ("dt_s", "step"),
    [(None, 0.2), (0.1, 0.2), (0.05, 0.1), (0.0, 0.0), (0.2, 0.4), (60.0, 0.4), (-5.0, 0.2), (np.nan, 0.2)],
)
def test_the_step_follows_the_time_but_no_pause_and_no_clock_makes_it_a_jump(dt_s, step):
    checked = gate()
    checked.check([0, 0, 0])
    np.testing.assert_allclose(checked.check([1, -1, 0], dt_s)[0], [step, -step, 0])


def test_rounding_is_no_flag():
    checked = gate()
    assert checked.check([1 + 1e-9, 0, 0])[1] == Gate.PASSED
    assert checked.check([0.8 - 1e-9, 0, 0], 0.1)[1] == Gate.PASSED


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_not_finite_is_refused_by_name_and_changes_nothing(bad):
    checked = gate()
    checked.check([0, 0, 0])
    with pytest.raises(ActionNotFinite, match="'elbow' is (nan|inf|-inf)"):
        checked.check([0, bad, 0])
    np.testing.assert_allclose(checked.check([1, 0, 0], 0.1)[0], [0.2, 0, 0])


@pytest.mark.parametrize("wrong", [[0, 0], [[0, 0, 0]], [], 0])
def test_an_action_of_another_size_is_refused(wrong):
    with pytest.raises(ValueError, match="expected 3 numbers"):
        gate().check(wrong)


def test_a_robot_far_out_of_its_bounds_is_not_thrown_back_into_them():
    with pytest.raises(LimitExceeded, match=r"'elbow': expected -1 \.\. 1 rad, found the robot at 1.5"):
        gate().reset([0, 1.5, 0])
    checked = gate()
    checked.reset([0, 1.01, 0])  # A little over, as encoders are.
    np.testing.assert_allclose(checked.check([0, 1, 0])[0], [0, 1, 0])


def test_a_command_cannot_be_changed_behind_the_back_of_the_gate():
    checked = gate()
    command, _ = checked.check([0, 0, 0])
    command[:] = 1
    np.testing.assert_allclose(checked.check([1, 1, 0], 0.1)[0], [0.2, 0.2, 0])


actions = st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3)


@given(st.lists(st.tuples(actions, st.floats(0, 10) | st.none()), max_size=20))
def test_no_sequence_of_actions_breaks_bounds_or_rates(sequence):
    checked = gate()
    previous = None
    for action, dt_s in sequence:
        command, flags = checked.check(action, dt_s)
        assert np.all(np.abs(command[:2]) <= 1) and 0 <= command[2] <= 1
        if previous is not None:
            seconds = 0.1 if dt_s is None else min(dt_s, 0.2)
            assert np.all(np.abs(command - previous)[:2] <= 2 * seconds + 1e-12)
        if flags == Gate.PASSED:
            np.testing.assert_allclose(command, action, atol=2e-6)
        previous = command


@pytest.mark.parametrize("rate", [0, -1, np.nan, np.inf])
def test_a_control_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="control rate"):
        SafetyGate(ARM.action, rate)


# Holding still


def test_velocities_and_steps_stop_at_zero_but_a_gripper_keeps_what_it_holds():
    table = table_robot()
    np.testing.assert_array_equal(hold_still_command(table, [0.02, 1.0], None), [0, 1])
    assert hold_still_command(table, None, None) is None  # Any command could move the gripper.


def test_joints_are_held_where_they_are_measured_and_the_gripper_as_commanded():
    np.testing.assert_allclose(hold_still_command(ARM, [0.1, 0.2, 1.0], [-0.5, 0.5]), [0.5, -0.5, 1])


def test_without_a_measurement_the_last_command_holds():
    np.testing.assert_allclose(hold_still_command(ARM, [0.1, 0.2, 1.0], None), [0.1, 0.2, 1])
    np.testing.assert_allclose(hold_still_command(ARM, [0.1, 0.2, 1.0], [np.nan, 0.5]), [0.5, 0.2, 1])
    assert hold_still_command(ARM, None, None) is None
    assert hold_still_command(ARM, None, [0.5, 0.5]) is None  # The gripper was never commanded.


def test_position_targets_are_held_by_the_last_command_and_before_it_by_the_measurement():
    action = arm_robot(hold_still="last").action
    np.testing.assert_allclose(hold_still_values(action, [0.1, 0.2, 1], [0.9, 0.9, 0]), [0.1, 0.2, 1])
    np.testing.assert_allclose(hold_still_values(action, None, [0.9, 0.9, 0]), [0.9, 0.9, 0])
    assert hold_still_values(action, None, None) is None


def test_a_held_command_is_a_copy():
    last = np.array([0.1, 0.2, 1.0])
    hold_still_values(arm_robot(hold_still="last").action, last, None)[:] = 9
    np.testing.assert_array_equal(last, [0.1, 0.2, 1.0])


def test_positions_come_in_the_order_of_the_action():
    np.testing.assert_array_equal(measured_positions(ARM, [-0.5, 0.5]), [0.5, -0.5, np.nan])
    assert measured_positions(ARM, None) is None
    assert measured_positions(table_robot(), [0.1, 0.2]) is None
    assert measured_positions(dataclasses.replace(table_robot(), state=None), [0.1, 0.2]) is None


# Watchdog


def test_a_watchdog_is_stale_before_the_first_input_and_after_a_silence():
    dog = Watchdog(0.2)
    assert dog.stale(5.0)
    dog.feed(5.0)
    assert not dog.stale(5.0) and not dog.stale(5.2 - 1e-9) and dog.stale(5.21)
    dog.feed(5.3)
    assert not dog.stale(5.4)


def test_a_clock_that_was_set_back_neither_alarms_at_once_nor_never():
    dog = Watchdog(0.2)
    dog.feed(1000.0)
    assert not dog.stale(1.0)
    assert not dog.stale(1.1)
    assert dog.stale(1.3)


def test_a_clock_that_jumps_ahead_is_a_silence():
    dog = Watchdog(0.2)
    dog.feed(1.0)
    assert dog.stale(1000.0)


def test_a_time_that_is_no_number_is_stale():
    dog = Watchdog(0.2)
    dog.feed(1.0)
    assert dog.stale(float("nan"))


@pytest.mark.parametrize("limit", [0, -1, np.nan, np.inf])
def test_a_watchdog_without_a_limit_is_refused(limit):
    with pytest.raises(ValueError, match="expected a limit of more than 0 s"):
        Watchdog(limit)
