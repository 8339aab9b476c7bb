"""However the process ends, holding still is the last command: a real process, killed by real signals."""

import signal

import pytest
from policy_cell import Cell
from policy_fakes import bundle_of, embodiment_of
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray

from efm_core.errors import Reason
from efm_ros.qos import COMMANDS

STATUS = "policy/act/_action/status"  # What an action server publishes.
BUG = """
import sys
from efm_policy_node import onnx_policy
whole, calls = onnx_policy.OnnxPolicy.decide, []
def decide(self, requests):
    calls.append(1)
    if len(calls) > 20:
        raise ZeroDivisionError("a bug")
    return whole(self, requests)
onnx_policy.OnnxPolicy.decide = decide
from efm_policy_node.main import main
sys.exit(main())
"""

CRASHING_CALLBACK = """
import sys
from efm_policy_node.node import PolicyNode
def look(self):
    if self._robots and self._robots[0].io.loop.status().steps > 10:
        raise ZeroDivisionError("a bug in a callback")
PolicyNode._look_for_rivals = look
from efm_policy_node.main import main
sys.exit(main())
"""


BROKEN_WATCHDOG = """
import sys
from efm_policy_node.robot_loop import RobotLoop
whole = RobotLoop.check
def check(self):
    whole(self)
    if self.status().steps > 20:
        raise ZeroDivisionError("a bug in the watchdog")
RobotLoop.check = check
from efm_policy_node.main import main
sys.exit(main())
"""


@pytest.fixture
def cell(ros, tmp_path):
    embodiment = embodiment_of()
    cell = Cell(ros, tmp_path, embodiment)
    cell.bundle = bundle_of(embodiment, tmp_path)
    yield cell
    cell.close()


def fly(cell, **start):
    """Starts the node and lets it act on a robot that moves at a rate."""
    cell.start(**{"bundle": str(cell.bundle.path), "follow_models": False} | start)
    cell.robot.run(60.0, lambda: cell.node.get_clock().now().nanoseconds)
    return cell.goal()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_in_the_middle_of_an_act_holds_the_robot_and_exits_with_code_0(cell, how):
    fly(cell)
    cell.until(lambda: len(cell.robot.commands) > 10 and not cell.robot.is_held(), "the robot to move")
    cell.process.process.send_signal(how)
    cell.until(lambda: cell.process.process.poll() is not None, "the process to end", alive=False)
    assert cell.process.process.returncode == 0, cell.process.log
    cell.until(cell.robot.is_held, "the last command", alive=False)
    count = len(cell.robot.commands)
    cell.spin(0.3)
    assert len(cell.robot.commands) == count and "cadence" in cell.process.log


def test_a_signal_sent_twice_changes_nothing(cell):
    fly(cell)
    cell.until(lambda: len(cell.robot.commands) > 10, "the robot to move")
    cell.process.process.send_signal(signal.SIGINT)
    cell.process.process.send_signal(signal.SIGINT)
    assert cell.process.end() == 0
    cell.until(cell.robot.is_held, "the last command", alive=False)


@pytest.mark.parametrize(
    ("script", "words"),
    [(BUG, "a bug"), (CRASHING_CALLBACK, "a bug in a callback"), (BROKEN_WATCHDOG, "a bug in the watchdog")],
    ids=["pilot", "callback", "watchdog"],
)
def test_an_exception_in_any_thread_holds_the_robot_and_exits_with_code_1(cell, script, words):
    fly(cell, script=script)
    cell.until(lambda: cell.process.process.poll() is not None, "the process to end", alive=False)
    assert cell.process.process.returncode == 1
    assert words in cell.process.log and "Traceback" in cell.process.log
    cell.until(cell.robot.is_held, "the last command", alive=False)
    assert len(cell.robot.commands) > 10


def test_after_a_kill_a_new_process_acts_at_once_although_the_graph_still_shows_the_old_one(cell):
    fly(cell)
    cell.until(lambda: len(cell.robot.commands) > 5, "the robot to move")

    # The middleware forgets the old one after ten seconds, which a slow start may outlast.
    def servers():
        return {str(info.endpoint_gid) for info in cell.node.get_publishers_info_by_topic(STATUS)}

    cell.until(servers, "its action in the graph")
    old = servers()
    cell.process.end(signal.SIGKILL)
    cell.start(bundle=str(cell.bundle.path), follow_models=False)
    cell.until(lambda: "is ready" in cell.process.log, "the new process")
    cell.until(lambda: servers() - old, "its action, beside the remains")
    cell.robot.forget()
    goal = cell.goal(max_steps=5)
    assert goal.result().reason == Reason.OK, goal.result().message


def test_a_model_whose_numbers_go_wrong_in_flight_holds_the_robot_and_ends_the_act(cell):
    # The robot moves steadily up, and beyond 0.25 the bundle has no finite answer any more.
    bundle = bundle_of(cell.embodiment, cell.folder, tokens=(20, 5), nan_above=0.25)
    goal = fly(cell, bundle=str(bundle.path))
    cell.robot.lockstep = False
    cell.until(lambda: follow(cell) or goal.done, "the act's end")
    result = goal.result()
    assert result.reason == Reason.BUNDLE_UNUSABLE and "finite" in result.message
    cell.until(cell.robot.is_held, "the last command")
    assert cell.process.process.poll() is None  # the node lives on


def follow(cell):
    """Lets the robot be where it was told to be."""
    if cell.robot.commands:
        cell.robot.state = cell.robot.commands[-1][0]


@pytest.fixture
def driven(ros, tmp_path):
    """A robot that is commanded by velocities: the last one goes on until another comes."""
    embodiment = embodiment_of(action={"hold_still": "zero"})
    cell = Cell(ros, tmp_path, embodiment)
    cell.bundle = bundle_of(embodiment, tmp_path)
    yield cell
    cell.close()


def test_after_a_kill_the_new_process_stops_the_robot_before_any_act(driven):
    fly(driven)
    driven.until(lambda: len(driven.robot.commands) > 5 and driven.robot.commands[-1][0].any(), "velocities")
    driven.process.end(signal.SIGKILL)
    driven.start(bundle=str(driven.bundle.path), follow_models=False)
    driven.robot.forget()
    driven.until(lambda: driven.robot.commands, "a command")
    driven.spin(1.5)
    assert [values.tolist() for values, _ in driven.robot.commands] == [[0.0, 0.0]]


@pytest.mark.parametrize(
    "beside",
    [{"stage": "shadow"}, {"lockstep": True}, {"dry_run": True}, {"allow_second_commander": True}],
    ids=["shadow", "lockstep", "dry run", "another commander"],
)
def test_a_start_sends_nothing_where_others_may_command(driven, beside):
    rival = Node("person", namespace=driven.namespace)
    if "allow_second_commander" in beside:  # Allowed or not: it may command.
        rival.create_publisher(Float64MultiArray, "commands", COMMANDS)
    driven.start(bundle=str(driven.bundle.path), follow_models=False, **beside)
    driven.until(lambda: "is ready" in driven.process.log, "the node")
    driven.until(driven.robot.act.server_is_ready, "its action")
    driven.spin(6.0)
    rival.destroy_node()
    assert not driven.robot.commands
