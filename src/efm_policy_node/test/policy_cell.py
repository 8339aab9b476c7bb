"""A fake robot on real topics, and the real node as a process beside it: what tests of the node run on."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.action import ActionClient
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Float64MultiArray, Header
from std_srvs.srv import SetBool

from efm_core.embodiment import Embodiment
from efm_msgs.action import Act
from efm_msgs.msg import ModelStatus, PolicyStep
from efm_policy_node.command_outlet import NO_OBSERVATION_NS
from efm_ros.commands import decode_command, encode_command
from efm_ros.conversion import ns_to_stamp, rgb_to_image
from efm_ros.names import in_robot
from efm_ros.qos import COMMANDS, EVENTS, IMAGES, LATCHED, MODELS
from efm_ros.testing import PATIENCE_S, Spinner

START_NS = 1_700_000_000_000_000_000
_numbers = itertools.count(1)


class FakeRobot:
    """A robot that goes where it is told, and shows itself: in lockstep when answered, or at a rate."""

    def __init__(self, node: Node, embodiment: Embodiment, robot: str = "") -> None:
        self.node, self.embodiment, self.robot = node, embodiment, robot
        self.period_ns = round(1e9 / embodiment.control_rate_hz)
        self.stamp_ns = START_NS
        self.state = np.zeros(embodiment.action_size)
        self.shown: list[np.ndarray] = []
        self.commands: list[tuple[np.ndarray, int | None]] = []
        self.arrivals: list[float] = []
        self.steps: list[PolicyStep] = []
        self.statuses: list[ModelStatus] = []
        self.lockstep = False
        self.frozen = False
        self.timer: Any = None
        camera = embodiment.cameras[0]
        self.size = (camera.height, camera.width)
        self._image = node.create_publisher(Image, in_robot(robot, camera.topic), IMAGES)
        self._joints = node.create_publisher(JointState, in_robot(robot, embodiment.state.topic), IMAGES)
        node.create_subscription(
            Float64MultiArray, in_robot(robot, embodiment.action.topic), self._commanded, COMMANDS
        )
        node.create_subscription(PolicyStep, in_robot(robot, "policy_step"), self.steps.append, EVENTS)
        node.create_subscription(ModelStatus, in_robot(robot, "model_status"), self.statuses.append, MODELS)
        node.create_timer(0.3, self._show_again)
        self.act = ActionClient(node, Act, in_robot(robot, "policy/act"))
        self.wish = node.create_publisher(Float64MultiArray, in_robot(robot, "teleop/command"), COMMANDS)
        self.takeover = node.create_publisher(Bool, in_robot(robot, "takeover"), LATCHED)
        self.estop = node.create_publisher(Bool, in_robot(robot, "estop"), LATCHED)
        self.takeover_set = node.create_client(SetBool, in_robot(robot, "takeover_set"))
        self.estop_set = node.create_client(SetBool, in_robot(robot, "estop_set"))

    def show(self) -> None:
        """Publishes what it sees now, with its present stamp."""
        header = Header(stamp=ns_to_stamp(self.stamp_ns))
        self.shown.append(self.state)
        names = [entry.joint_name for entry in self.embodiment.state.entries]
        self._joints.publish(JointState(header=header, name=names, position=self.state.tolist()))
        brightness = np.full((*self.size, 3), self.stamp_ns // self.period_ns % 256, np.uint8)
        self._image.publish(rgb_to_image(brightness, header))

    def reset(self) -> int:
        """Begins anew in lockstep and shows it; returns the stamp."""
        self.lockstep = True
        self.stamp_ns += self.period_ns
        self.state = np.zeros_like(self.state)
        self.show()
        return self.stamp_ns

    def _show_again(self) -> None:
        """As a world in lockstep does when nobody answers."""
        if self.lockstep:
            self.show()

    def run(self, rate_hz: float, clock: Callable[[], int]) -> None:
        """Shows itself at a rate from now on, stamped by a clock."""
        self.lockstep = False

        def look() -> None:
            if not self.frozen:
                self.stamp_ns = clock()
                self.show()

        self.timer = self.node.create_timer(1.0 / rate_hz, look)

    def end_run(self) -> None:
        """Shows itself no longer."""
        if self.timer is not None:
            self.node.destroy_timer(self.timer)
            self.timer = None
        self.frozen = False

    def steer(self, values: tuple[float, ...]) -> None:
        """Publishes what a person wants."""
        self.wish.publish(encode_command(self.embodiment, np.array(values), 0))

    @property
    def answers(self) -> dict[int, np.ndarray]:
        """Commands by the observation that they answer; a repetition is the same command."""
        return {stamp: values for values, stamp in self.commands if stamp not in (None, NO_OBSERVATION_NS)}

    def is_held(self) -> bool:
        """Whether the last command answers nothing and is a pose that the robot was in: holding still."""
        if not self.commands or self.commands[-1][1] != NO_OBSERVATION_NS:
            return False
        return any(np.allclose(self.commands[-1][0], state, atol=1e-6) for state in self.shown)

    def forget(self) -> None:
        """Empties what was received."""
        for kept in (self.commands, self.arrivals, self.steps, self.shown):
            kept.clear()

    def _commanded(self, message: Float64MultiArray) -> None:
        values, answered_ns = decode_command(self.embodiment, message)
        self.commands.append((values, answered_ns))
        self.arrivals.append(time.monotonic())
        if self.lockstep and answered_ns == self.stamp_ns:
            self.stamp_ns += self.period_ns
            self.state = np.array(values)
            self.show()


class Goal:
    """A goal that was sent: `result` comes when the act has ended."""

    def __init__(self, spinner: Spinner, robot: FakeRobot, **fields: Any) -> None:
        spinner.until(robot.act.server_is_ready, f"the action of robot '{robot.robot}'")
        sent = robot.act.send_goal_async(Act.Goal(**fields))
        spinner.until(sent.done, "the goal's acceptance")
        self.handle = sent.result()
        self._spinner = spinner
        self._future = self.handle.get_result_async()

    @property
    def done(self) -> bool:
        return self._future.done()

    def result(self) -> Act.Result:
        self._spinner.until(self._future.done, "the act's result")
        return self._future.result().result

    @property
    def status(self) -> int:
        self.result()
        return self._future.result().status

    def cancel(self) -> Act.Result:
        self.handle.cancel_goal_async()
        return self.result()


class Process:
    """A node as users start it."""

    def __init__(
        self,
        folder: Path,
        namespace: str,
        module: str = "efm_policy_node.main",
        script: str = "",
        **parameters: Any,
    ):
        self.log_file = folder / f"log-{time.monotonic_ns()}.txt"
        what = ["-c", script] if script else ["-m", module]
        arguments = ["--ros-args", "-r", f"__ns:={namespace}"]
        for name, value in parameters.items():
            arguments += ["-p", f"{name}:={json.dumps(value)}"]
        self._log = self.log_file.open("w")
        self.process = subprocess.Popen(
            [sys.executable, *what, *arguments],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "RCUTILS_LOGGING_BUFFERED_STREAM": "0"},
            start_new_session=True,
        )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def end(self, how: int = signal.SIGINT, timeout_s: float = PATIENCE_S) -> int:
        """Stops it by a signal; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(
                    f"the node did not end within {timeout_s} s; its log:\n{self.log}"
                ) from None
        self._log.close()
        return self.process.returncode


class Cell:
    """The node in a process, fake robots in this one."""

    def __init__(
        self, rclpy: Any, folder: Path, embodiment: Embodiment, robots: tuple[str, ...] = ("",)
    ) -> None:
        self.folder, self.embodiment = folder, embodiment
        self.namespace = f"/cell_{next(_numbers)}"  # Cells of several test modules live side by side.
        self.file = folder / "mini.yaml"
        self.file.write_text(yaml.safe_dump(embodiment.to_dict()))
        self.node = rclpy.create_node("fake_robots", namespace=self.namespace)
        self.spinner = Spinner(self.node)
        self.robots = {name: FakeRobot(self.node, embodiment, name) for name in robots}
        self.robot = self.robots[robots[0]]
        self.diagnostics: dict[str, Any] = {}
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnosed, 10)
        self.process: Process | None = None
        self._names = robots

    def start(self, **parameters: Any) -> Process:
        """Starts the node."""
        defaults: dict[str, Any] = {"embodiment": str(self.file)}
        if "module" not in parameters:
            defaults |= {"bundle_dir": str(self.folder / "fetched"), "seed": 1}
        if self._names != ("",):
            defaults["robots"] = list(self._names)
        self.process = Process(self.folder, self.namespace, **(defaults | parameters))
        return self.process

    def until(
        self, condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S, alive: bool = True
    ) -> None:
        """Spins; a failure shows the log, and so does a node that should be `alive` and is not."""

        def holds() -> object:
            died = alive and self.process is not None and self.process.process.poll() is not None
            result = condition()
            assert result or not died, f"the node died before {what}"
            return result

        try:
            self.spinner.until(holds, what, timeout_s)
        except AssertionError as error:
            log = self.process.log if self.process is not None else ""
            raise AssertionError(f"{error}\n{log}") from None

    def spin(self, seconds: float) -> None:
        """Spins for a time, where only time can show that nothing happens."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.spinner.executor.spin_once(timeout_sec=0.02)

    def goal(self, robot: FakeRobot | None = None, **fields: Any) -> Goal:
        """Sends a goal."""
        return Goal(self.spinner, robot or self.robot, **fields)

    def episode(self, robot: FakeRobot | None = None, **fields: Any) -> Goal:
        """Resets a robot in lockstep and lets the policy act."""
        robot = robot or self.robot
        self.until(robot.act.server_is_ready, "the node")
        robot.forget()
        start_ns = robot.reset()
        return self.goal(robot, **{"episode_id": "e", "start": ns_to_stamp(start_ns), **fields})

    def diagnosis(self, name: str) -> DiagnosticStatus:
        """Returns what /diagnostics says of a part of the node; an empty one before it says anything."""
        return self.diagnostics.get(f"policy: {name}", DiagnosticStatus())

    def close(self) -> None:
        """Ends all."""
        if self.process is not None:
            self.process.end()
        self.spinner.close()
        self.node.destroy_node()

    def _diagnosed(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.hardware_id.startswith(self.namespace[1:]):
                self.diagnostics[status.name] = status
