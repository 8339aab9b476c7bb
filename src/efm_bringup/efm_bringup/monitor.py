"""What the fleet and the learner say of themselves, gathered for commands that show it."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from efm_bringup.stacks import LEARNER
from efm_msgs.msg import EpisodeStatus, EpisodeSummary, LearnerStatus, StepsToGo
from efm_ros.qos import EVENTS, LATCHED

HISTORY = 120  # Predictions and outcomes kept for each robot.


@dataclass
class RobotView:
    """The newest that is known of one robot.

    Attributes:
        status: Of its episode node; None: not heard yet.
        steps_to_go: The newest predictions, oldest first.
        outcomes: Whether the newest finished episodes were detected successes.
        finished: Episodes finished since the monitor began.
        steps: Their control steps.
    """

    status: EpisodeStatus | None = None
    steps_to_go: deque[StepsToGo] = field(default_factory=lambda: deque(maxlen=HISTORY))
    outcomes: deque[bool] = field(default_factory=lambda: deque(maxlen=HISTORY))
    finished: int = 0
    steps: int = 0


class FleetMonitor:
    """A node that listens, in a thread of its own. Use as a context manager.

    Args:
        robots: Namespaces without leading slash.
        predictions: Also listen to every step's prediction.
    """

    def __init__(self, robots: Sequence[str], predictions: bool = False) -> None:
        self.robots = {robot: RobotView() for robot in robots}
        self.learner: LearnerStatus | None = None
        self._own_context = not rclpy.ok()
        if self._own_context:
            rclpy.init(args=[])
        self.node = Node("efm_monitor")
        self.node.create_subscription(LearnerStatus, f"{LEARNER}/learner_status", self._on_learner, LATCHED)
        for robot, view in self.robots.items():
            self._listen(f"/{robot}" if robot else "", view, predictions)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._spin, name="monitor", daemon=True)

    def __enter__(self) -> FleetMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._executor.wake()
        self._thread.join(5.0)
        self._executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()
        if self._own_context:
            rclpy.try_shutdown()

    @property
    def finished(self) -> int:
        """Episodes that all robots finished."""
        return sum(view.finished for view in self.robots.values())

    @property
    def steps(self) -> int:
        """Control steps of these."""
        return sum(view.steps for view in self.robots.values())

    def _listen(self, namespace: str, view: RobotView, predictions: bool) -> None:
        def on_status(message: EpisodeStatus) -> None:
            view.status = message

        def on_summary(message: EpisodeSummary) -> None:
            view.finished += 1
            view.steps += message.steps
            view.outcomes.append(message.outcome == EpisodeSummary.OUTCOME_SUCCESS)

        node = self.node
        node.create_subscription(EpisodeStatus, f"{namespace}/episode_status", on_status, LATCHED)
        node.create_subscription(EpisodeSummary, f"{namespace}/episode_summary", on_summary, EVENTS)
        if predictions:
            node.create_subscription(StepsToGo, f"{namespace}/steps_to_go", view.steps_to_go.append, EVENTS)

    def _on_learner(self, message: LearnerStatus) -> None:
        self.learner = message

    def _spin(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(ExternalShutdownException):
                self._executor.spin_once(timeout_sec=0.5)
