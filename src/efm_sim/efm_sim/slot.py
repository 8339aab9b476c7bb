"""One robot of the simulator's process: its world, its topics, and what it is doing. Used by the worlds'
thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from rclpy.node import Node
from rclpy.publisher import Publisher

from efm_core.embodiment import Embodiment
from efm_msgs.msg import PolicyStep
from efm_ros.commands import CommandChannel
from efm_ros.names import in_robot
from efm_ros.qos import EVENTS
from efm_sim.lockstep import ExpertAct, SimulatedRobot, Snapshot
from efm_sim.recorder_wait import RecorderWait
from efm_sim.robot_topics import RobotTopics

CONNECT_S = 2.0  # For listeners to be there, and to have the first command.


@dataclass
class ActResult:
    """How an expert's act ended."""

    steps: int
    seed: int
    outcome: int
    cancelled: bool = False
    message: str = ""


class Act:
    """An expert's act as the node sees it: `result` comes when it has ended; `cancel` asks for that."""

    def __init__(self, episode_id: str, expert: ExpertAct, feedback: Callable[[int, int], None]) -> None:
        self.episode_id = episode_id
        self.expert = expert
        self.feedback = feedback  # (steps, newest stamp [ns]), about once a second
        self.result: Future[ActResult] = Future()
        self.cancelled: str | None = None
        self.fed_back_at = time.monotonic()

    def cancel(self, why: str) -> None:
        """Ends the act before its next step."""
        self.cancelled = why


class Slot:
    """One robot of the process and what it is doing."""

    def __init__(
        self, node: Node, embodiment: Embodiment, name: str, robot: SimulatedRobot, lockstep: bool
    ) -> None:
        self.name = name
        self.robot = robot
        self.topics = RobotTopics(node, embodiment, name)
        self.steps_publisher: Publisher = node.create_publisher(
            PolicyStep, in_robot(name, "policy_step"), EVENTS
        )
        self._channel: CommandChannel | None = None
        self._open_channel = lambda: CommandChannel(node, embodiment, name, lockstep)
        period_ns = round(1e9 / embodiment.control_rate_hz)
        self.recorder = RecorderWait(period_ns, node.get_logger().warning)
        self.unanswered: bytes | None = None  # A command that waits for the recorder.
        self.act: Act | None = None
        self.shown_at = 0.0
        self.command: np.ndarray | None = None
        self.command_at = 0.0
        self.expert_answered_ns = 0

    def command_robot(self, action: np.ndarray, stamp_ns: int) -> None:
        """Sends a command of the expert.

        Its topic is not opened before, since a second commander would puzzle who looks for one; the first
        command waits for those who listen, so that a recording has it.
        """
        if self._channel is not None:
            self._channel.send(action, stamp_ns)
            return
        self._channel = self._open_channel()
        self._channel.connect(CONNECT_S)
        self._channel.send(action, stamp_ns)
        self._channel.flush(CONNECT_S)

    @property
    def must_wait(self) -> bool:
        """True while whoever records the robot is too far behind."""
        pending = self.robot.pending
        return pending is not None and self.recorder.must_wait(pending.stamp_ns)

    def show(self, snapshot: Snapshot) -> None:
        """Publishes an observation."""
        self.topics.publish(snapshot)
        self.recorder.shown(sum(picture.nbytes for picture in snapshot.observation.images.values()))
        self.shown_at = time.monotonic()

    def close(self) -> None:
        """Closes the topics."""
        self.topics.close()
        if self._channel is not None:
            self._channel.destroy()
