"""The real teleop node in a process: demonstrations by messages and by gamepad, and the buttons."""

import os
import pty
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from policy_cell import Cell
from policy_fakes import embodiment_of
from rclpy.action import ActionClient
from sensor_msgs.msg import Joy
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import Trigger

from efm_core.errors import Reason
from efm_core.summary import Actor
from efm_msgs.action import Act
from efm_ros.qos import COMMANDS, LATCHED
from efm_ros.testing import PATIENCE_S


@pytest.fixture(scope="module")
def cell(ros, tmp_path_factory):
    cell = Cell(ros, tmp_path_factory.mktemp("teleop"), embodiment_of(control_rate_hz=50.0))
    cell.robot.act = ActionClient(cell.node, Act, "teleop/act")
    cell.joy = cell.node.create_publisher(Joy, "joy", 5)
    cell.marks, cell.takeovers, cell.estops = [], [], []

    def mark(request, response):
        cell.marks.append("success")
        response.success = True
        return response

    cell.node.create_service(Trigger, "episodes/mark_success", mark)
    cell.node.create_subscription(Bool, "takeover", lambda m: cell.takeovers.append(m.data), LATCHED)
    cell.node.create_subscription(Bool, "estop", lambda m: cell.estops.append(m.data), LATCHED)
    steering = ["axis 0", "axis 1 reversed"]
    cell.start(module="efm_policy_node.teleop_main", lockstep=True, steering=steering)
    yield cell
    cell.close()


def test_a_person_demonstrates_by_messages_through_the_gate_and_is_recorded(cell):
    robot = cell.robot
    goal = cell.episode(episode_id="demo", max_steps=10)

    def steer():
        robot.steer((0.4, 9.0))
        return goal.done

    cell.until(steer, "the act to end")
    cell.until(lambda: len(robot.steps) == 10, "10 steps")
    assert goal.result().reason == Reason.OK and goal.result().bundle_id == ""
    assert all(step.actor == Actor.HUMAN and step.episode_id == "demo" for step in robot.steps)
    commands = np.array(list(robot.answers.values()))
    assert np.diff(commands[:, 0]).max() <= 2.0 / 50 + 1e-9 and commands[-1, 1] == 1.0
    cell.until(robot.is_held, "the last command")


def test_a_person_demonstrates_with_a_gamepad(cell):
    robot = cell.robot
    goal = cell.episode(max_steps=10)

    def push():
        cell.joy.publish(Joy(axes=[1.0, 1.0], buttons=[0] * 8))
        return goal.done

    cell.until(push, "the act to end")
    assert goal.result().reason == Reason.OK
    assert robot.state[0] > 0.1 and robot.state[1] < -0.05  # the second axis is reversed


def test_nothing_moves_while_the_person_wants_nothing_and_the_world_waits(cell):
    robot = cell.robot
    cell.diagnostics.clear()
    cell.until(lambda: gamepad(cell).startswith("none"), "the gamepad to count as gone")
    goal = cell.episode()
    cell.spin(0.6)
    assert not robot.commands and not goal.done
    assert goal.cancel().reason == Reason.CANCELLED


def gamepad(cell):
    """What /diagnostics says of it; empty before it says anything."""
    return cell.diagnostics.get("teleop: gamepad", DiagnosticStatus()).message


def press(cell, button):
    buttons = [0] * 8
    cell.joy.publish(Joy(axes=[0.0, 0.0], buttons=buttons))
    buttons[button] = 1
    cell.joy.publish(Joy(axes=[0.0, 0.0], buttons=buttons))
    cell.joy.publish(Joy(axes=[0.0, 0.0], buttons=[0] * 8))


def test_buttons_take_over_stop_and_mark(cell):
    cell.until(lambda: cell.joy.get_subscription_count() == 1, "the node")
    press(cell, 0)
    cell.until(lambda: cell.marks, "the mark")
    press(cell, 7)
    cell.until(lambda: cell.takeovers == [True], "the takeover")
    press(cell, 7)
    cell.until(lambda: cell.takeovers == [True, False], "its end")
    press(cell, 6)
    cell.until(lambda: cell.estops == [True], "the e-stop")
    assert cell.episode().result().reason == Reason.ESTOP
    press(cell, 6)
    cell.until(lambda: cell.estops == [True, False], "its release")
    assert cell.goal(max_steps=1).handle is not None


def test_at_a_takeover_the_gamepad_speaks_to_the_policy_node(cell):
    heard = []
    cell.node.create_subscription(
        Float64MultiArray, "teleop/command", lambda m: heard.append(list(m.data)), COMMANDS
    )
    takeover = cell.node.create_publisher(Bool, "takeover", LATCHED)
    takeover.publish(Bool(data=True))

    def push(deflection):
        cell.joy.publish(Joy(axes=[0.0, deflection], buttons=[0] * 8))
        return heard

    cell.until(lambda: push(0.0), "what the person wants")
    assert heard[0][0] == pytest.approx(cell.robot.state[0], abs=0.1)
    cell.until(lambda: push(1.0)[-1][1] < heard[0][1], "the person's wish to change")
    takeover.publish(Bool(data=False))


def test_the_keyboard_says_when_nobody_hears_its_keys():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "efm_policy_node.keyboard", "--ros-args", "-r", "__ns:=/nobody"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + PATIENCE_S
    try:
        while b"publishing on" not in shown and time.monotonic() < deadline:
            shown += os.read(ours, 4096)
        while b"nobody listens on /nobody/joy" not in shown and time.monotonic() < deadline:
            os.write(ours, b" ")
            shown += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        os.close(ours)
    assert (
        b"EMERGENCY STOP, and release (nobody listens on /nobody/joy: is the teleop node running?)" in shown
    )
