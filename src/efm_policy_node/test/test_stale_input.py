"""When input stops, without ROS: the robot is held in time, in clear words, and goes on when it is fresh."""

import numpy as np
import pytest
from loop_cell import PERIOD_S, Cell

from efm_core.errors import Reason


@pytest.fixture
def cell(robot, embodiment):
    return Cell(robot, embodiment)


@pytest.fixture
def lockstep(robot, embodiment):
    return Cell(robot, embodiment, lockstep=True)


# Stale input


def test_stale_input_holds_still_within_two_periods_and_says_which_input(cell, robot):
    cell.begin()
    for _ in range(3):
        cell.step(action=(0.1, 0.1), state=(0.3, 0.3))
    sent, stamp = len(robot.sent), robot.ros_ns
    while len(robot.sent) == sent:
        robot.wait(PERIOD_S / 10)
        cell.loop.check()
    assert (robot.ros_ns - stamp) / 1e9 <= 2 * PERIOD_S + PERIOD_S / 10 + 1e-9
    assert robot.sent[-1][0] == pytest.approx([0.3, 0.3])  # measured
    assert "holding still" in robot.of("say")[0] and "nothing new" in robot.of("say")[0]
    robot.wait(1.0)
    cell.loop.check()
    assert len(robot.sent) == sent + 1  # once


def test_the_limit_counts_from_the_last_arrival_and_not_from_the_tick_that_used_it(cell, robot):
    cell.begin()
    cell.step()
    cell.observe(robot.ros_ns + 1)  # the last image ever
    arrived_ns, sent = robot.ros_ns, len(robot.sent)
    robot.wait(0.9 * PERIOD_S)
    cell.loop.tick()
    cell.decide((0.1, 0.1))
    while len(robot.sent) == sent + 1:
        robot.wait(PERIOD_S / 10)
        cell.loop.check()
    assert (robot.ros_ns - arrived_ns) / 1e9 <= 2 * PERIOD_S + PERIOD_S / 10 + 1e-9


def test_a_state_that_keeps_coming_does_not_hide_a_dead_camera(cell, robot):
    cell.begin()
    cell.step(state=(0.3, 0.3))
    cell.loop.add_image("top", robot.ros_ns + 1, np.zeros((6, 8, 3), np.uint8))  # the last image ever
    died_ns, sent = robot.ros_ns, len(robot.sent)
    while len(robot.sent) == sent:
        robot.wait(PERIOD_S / 10)
        cell.loop.add_state(robot.ros_ns, np.array([0.3, 0.3]))
        cell.loop.check()
    assert (robot.ros_ns - died_ns) / 1e9 <= 2 * PERIOD_S + PERIOD_S / 10 + 1e-9


def test_a_new_act_says_nothing_of_the_gap_before_it(cell, robot):
    cell.begin()
    cell.step()
    robot.wait(1.0)
    cell.loop.check()
    cell.loop.cancel()
    robot.wait(60.0)
    cell.begin()
    cell.step()
    assert len(robot.of("say")) == 1  # of the gap in the first act


def test_a_camera_as_slow_as_the_control_rate_is_not_stale(cell, robot):
    cell.begin()
    for _ in range(20):
        robot.wait(0.1 * PERIOD_S)
        cell.observe()
        for _ in range(9):
            robot.wait(0.1 * PERIOD_S)
            cell.loop.check()
        cell.loop.tick()
        cell.decide((0.1, 0.1))
    assert len(robot.steps) == 20 and not robot.of("say")


def test_the_act_goes_on_when_input_is_fresh_again_and_changes_count_from_the_held_pose(cell, robot):
    cell.begin()
    cell.step(action=(0.1, 0.1), state=(0.3, 0.3))
    robot.wait(1.0)
    cell.loop.check()
    cell.step(action=(1.0, 1.0), state=(0.3, 0.3))
    assert "fresh again" in robot.of("say")[-1]
    assert robot.steps[-1].command[0] == pytest.approx(0.3 + 2.0 * 2 * PERIOD_S)  # at most two periods' worth
    assert not robot.endings


def test_input_that_stays_stale_ends_the_act_after_the_set_time(robot, embodiment):
    cell = Cell(robot, embodiment, stale_end_s=3.0)
    cell.begin()
    cell.step()
    for _ in range(32):
        robot.wait(0.1)
        cell.loop.check()
    ending = robot.endings[0]
    assert ending.reason == Reason.STALE_INPUT and "camera 'top'" not in ending.message


def test_a_camera_that_never_shows_is_named_when_the_act_ends(cell, robot):
    cell.begin()
    for _ in range(150):
        robot.wait(0.1)
        cell.loop.add_state(robot.ros_ns, np.zeros(2))
        cell.loop.check()
    assert robot.endings[0].reason == Reason.STALE_INPUT
    assert "no image of camera 'top' on 'camera/top/image_raw'" in robot.endings[0].message
    assert not robot.sent


def test_an_old_image_that_keeps_coming_is_no_fresh_input(cell, robot):
    cell.begin()
    cell.step()
    frozen = robot.ros_ns
    for _ in range(6):
        robot.wait(PERIOD_S)
        cell.observe(frozen)
        cell.loop.tick()
        cell.loop.check()
    assert not robot.jobs and "holding still" in robot.of("say")[0]


def test_a_robot_clock_that_stands_still_is_noticed_on_the_steady_clock(cell, robot):
    cell.begin()
    cell.step()
    sent = len(robot.sent)
    for _ in range(30):
        robot.wait(0.1, ros=False)
        cell.loop.check()
    assert len(robot.sent) == sent + 1 and "holding still" in robot.of("say")[0]


def test_a_clock_that_jumps_back_does_not_stop_the_act(cell, robot):
    cell.begin(start_ns=robot.ros_ns)
    cell.step()
    robot.ros_ns -= 3_600_000_000_000
    for _ in range(3):
        cell.step()
        cell.loop.check()
    assert len(robot.steps) == 4 and not robot.endings
    robot.wait(PERIOD_S)
    cell.loop.check()
    robot.wait(2 * PERIOD_S)
    cell.loop.check()
    assert "holding still" in robot.of("say")[-1]  # and the watchdog is awake on the new time
