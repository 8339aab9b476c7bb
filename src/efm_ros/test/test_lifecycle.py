"""Every end of a node's process, in order or not, ends with the robot held still (real processes and DDS)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import Float64MultiArray

from efm_core.errors import EXIT_REFUSED
from efm_ros.qos import COMMANDS
from efm_ros.testing import PATIENCE_S, Spinner

SCRIPT = Path(__file__).with_name("commanding_node.py")


class Process:
    """The commanding node in a process of its own, and what this process hears of it."""

    def __init__(self, listener, spinner, threads, parameters, arguments=()):
        self.listener, self.spinner = listener, spinner
        given = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
        self.heard = []
        self._subscription = listener.create_subscription(
            Float64MultiArray,
            "command",
            lambda message: self.heard.append(message.data[0]),
            QoSProfile(depth=500),
        )
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(threads), "--ros-args", *given, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def until_commanding(self):
        self.spinner.until(lambda: len(self.heard) >= 5, "five commands")

    def until_held(self):
        """Spins until the last command is the hold-still one, and a little more for any that come after."""
        self.spinner.until(lambda: self.heard and self.heard[-1] == 0.0, "the hold-still command")
        for _ in range(10):
            self.spinner.executor.spin_once(timeout_sec=0.01)
        assert self.heard[-1] == 0.0

    def exit(self, number=None):
        """Waits for the end; gives exit code, output, and seconds from the signal to the end."""
        start = time.monotonic()
        if number is not None:
            os.kill(self.process.pid, number)
        self.spinner.until(lambda: self.process.poll() is not None, "the end of the node's process")
        seconds = time.monotonic() - start
        return self.process.returncode, self.process.stdout.read(), seconds

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.listener.destroy_subscription(self._subscription)


@pytest.fixture
def listener(ros):
    node = Node("listener")
    yield node
    node.destroy_node()


@pytest.fixture
def launch(listener):
    spinner = Spinner(listener)
    processes = []

    def start(threads=1, arguments=(), **parameters):
        processes.append(Process(listener, spinner, threads, parameters, arguments))
        return processes[-1]

    yield start
    for process in processes:
        process.close()
    spinner.close()


@pytest.fixture
def change(listener, launch):
    """Asks the node for a transition; gives whether it was done."""
    client = listener.create_client(ChangeState, "commander/change_state")
    state = listener.create_client(GetState, "commander/get_state")

    def ask(process, transition):
        request = ChangeState.Request(transition=Transition(id=transition))
        return process.spinner.call(client, request).success

    ask.state = lambda process: process.spinner.call(state, GetState.Request()).current_state.label
    yield ask
    listener.destroy_client(client)
    listener.destroy_client(state)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("threads", [1, 2])
def test_after_a_signal_the_last_command_holds_still_and_the_exit_code_is_zero(launch, number, threads):
    node = launch(threads)
    node.until_commanding()
    code, output, seconds = node.exit(number)
    node.until_held()
    assert code == 0, output
    assert output == "released\n"
    assert seconds < 20.0  # 0.2 s on an idle machine.


def test_a_second_signal_during_the_stop_changes_nothing(launch):
    """A terminal sends SIGINT to the whole group, and `ros2 run` sends it once more."""
    node = launch()
    node.until_commanding()
    os.kill(node.process.pid, signal.SIGINT)
    code, output, _ = node.exit(signal.SIGINT)
    node.until_held()
    assert (code, output) == (0, "released\n")


@pytest.mark.parametrize("threads", [1, 2])
def test_after_an_exception_in_a_callback_the_robot_is_held_and_the_exit_code_is_one(launch, threads):
    node = launch(threads, fault="callback")
    code, output, _ = node.exit()
    node.until_held()
    assert code == 1
    assert "fault: ZeroDivisionError: a bug in a callback" in output
    assert "Traceback" in output
    assert "released" in output


def test_after_a_fault_in_a_thread_of_the_node_the_robot_is_held_and_the_exit_code_is_one(launch):
    node = launch(fault="thread")
    code, output, _ = node.exit()
    node.until_held()
    assert (code, "a bug in a thread" in output) == (1, True)


def test_an_error_in_stop_does_not_prevent_release(launch):
    node = launch(fault="stop")
    node.until_commanding()
    code, output, _ = node.exit(signal.SIGINT)
    assert "stop: ZeroDivisionError: a bug in stop" in output
    assert "released" in output
    node.until_held()
    assert code == 0


@pytest.mark.parametrize(
    ("fault", "words", "traced"),
    [
        ("acquire", "configure: expected a bundle's folder, found nothing", False),
        ("acquire_bug", "configure: ZeroDivisionError: a bug in acquire", True),
        ("start", "activate: no start today", False),
    ],
)
def test_a_node_that_cannot_start_by_itself_says_why_and_exits_with_one(launch, fault, words, traced):
    node = launch(fault=fault)
    code, output, _ = node.exit()
    assert code == 1
    assert words in output
    assert ("Traceback" in output) == traced
    assert "released" in output  # What acquire took is given back.


def test_a_node_that_refuses_a_parameter_exits_with_a_code_of_its_own(launch):
    """Whoever started it need not try again: `efm up` and `ros2 launch` end the stack at once."""
    code, output, _ = launch(fault="acquire_parameter").exit()
    assert code == EXIT_REFUSED
    assert "configure: parameter 'bundle': expected a folder, found a cat" in output


def test_a_typing_mistake_in_a_parameter_ends_the_start(launch):
    code, output, _ = launch(faultt="stop").exit()
    assert code == EXIT_REFUSED
    assert "unknown parameter 'faultt', did you mean 'fault'?" in output
    assert "Traceback" not in output


def test_a_parameter_file_that_does_not_parse_ends_the_start_without_a_traceback(launch, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("/**:\n  ros__parameters:\n    after: [1, two\n")
    code, output, _ = launch(arguments=["--params-file", str(broken)]).exit()
    assert code == EXIT_REFUSED
    assert "the node did not start" in output
    assert "Traceback" not in output


def test_a_lifecycle_manager_takes_the_node_through_all_its_states(launch, change):
    node = launch(autostart="false")
    assert change.state(node) == "unconfigured"
    assert change(node, Transition.TRANSITION_CONFIGURE)
    assert change(node, Transition.TRANSITION_ACTIVATE)
    node.until_commanding()
    assert change(node, Transition.TRANSITION_DEACTIVATE)
    node.until_held()
    assert change(node, Transition.TRANSITION_ACTIVATE)
    node.spinner.until(lambda: node.heard[-1] == 1.0, "commands after the second activation")
    assert change(node, Transition.TRANSITION_DEACTIVATE)
    assert change(node, Transition.TRANSITION_CLEANUP)
    assert change.state(node) == "unconfigured"
    assert change(node, Transition.TRANSITION_CONFIGURE)
    code, output, _ = node.exit(signal.SIGINT)
    assert (code, node.heard[-1], output) == (0, 0.0, "released\nreleased\n")


def test_a_refused_configuration_leaves_the_node_ready_for_another_try(launch, change):
    node = launch(autostart="false", fault="acquire")
    assert not change(node, Transition.TRANSITION_CONFIGURE)
    assert change.state(node) == "unconfigured"
    assert not change(node, Transition.TRANSITION_CONFIGURE)
    assert node.exit(signal.SIGTERM)[0] == 0


def test_a_lifecycle_shutdown_holds_still_and_ends_the_process(launch, change):
    node = launch()
    node.until_commanding()
    change(node, Transition.TRANSITION_ACTIVE_SHUTDOWN)
    code, output, _ = node.exit()
    node.until_held()
    assert (code, output) == (0, "released\n")


def test_diagnostics_name_node_subcomponent_and_robot_once_a_second(launch, listener):
    arrays = []
    subscription = listener.create_subscription(DiagnosticArray, "/diagnostics", arrays.append, COMMANDS)
    node = launch(arguments=["-r", "__ns:=/hall"])
    node.spinner.until(lambda: len(arrays) >= 5, "five diagnostic messages")
    listener.destroy_subscription(subscription)
    found = {status.name: status for status in arrays[-1].status}
    wheel, lifecycle = found["commander: wheel"], found["commander: lifecycle"]
    assert (wheel.hardware_id, lifecycle.hardware_id) == ("hall/robot_1", "hall")
    assert (lifecycle.level, lifecycle.message) == (b"\0", "active")
    assert [(value.key, value.value) for value in wheel.values] == [("speed", "0.5")]
    stamps = [array.header.stamp.sec + array.header.stamp.nanosec * 1e-9 for array in arrays[-4:]]
    # One comes within each second; where the first of them is late, the others are not.
    assert 1.9 < stamps[-1] - stamps[0] < PATIENCE_S
