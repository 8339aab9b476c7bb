"""What the fleet and the learner say of themselves, gathered for commands that show it.

Left out: what is shown, and any influence on what runs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Bool

from efm_bringup.stacks import LEARNER
from efm_msgs.msg import EpisodeStatus, EpisodeSummary, LearnerStatus, ModelStatus, StepsToGo
from efm_ros.executors import SingleThreadedExecutor
from efm_ros.latched import newest_only
from efm_ros.names import in_robot
from efm_ros.qos import EVENTS, LATCHED, MODELS

HISTORY = 120  # Predictions and outcomes kept for each robot.
PACE_S = 20.0  # Time over which the pace of a robot is measured.
STALE_S = 5.0  # A report of /diagnostics that old says nothing any more; they come once a second.
STATUS_TOPIC = "episode_status"


@dataclass
class RobotView:
    """The newest that is known of one robot.

    Attributes:
        status: Of its episode node; None: not heard yet.
        heard_s: When that came (steady clock).
        spent_s: Phase of EpisodeStatus -> time that the episode node has spent in it.
        last: Summary of the last finished episode.
        steps_to_go: The newest predictions, oldest first.
        outcomes: Whether the newest finished episodes were detected successes; without discarded ones.
        finished: Episodes finished since the monitor began.
        steps: Their control steps.
        models: Node ("policy", "reward") -> the bundle that acts or judges, or what became of the newest one.
        takeover: A person has control.
        estop: The e-stop is pressed.
    """

    status: EpisodeStatus | None = None
    heard_s: float = 0.0
    spent_s: Counter[int] = field(default_factory=Counter)
    last: EpisodeSummary | None = None
    steps_to_go: deque[StepsToGo] = field(default_factory=lambda: deque(maxlen=HISTORY))
    outcomes: deque[bool] = field(default_factory=lambda: deque(maxlen=HISTORY))
    finished: int = 0
    steps: int = 0
    models: dict[str, ModelStatus] = field(default_factory=dict)
    takeover: bool = False
    estop: bool = False
    _paced: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def pace(self) -> float:
        """Control steps per second in episodes that finished lately; worlds in lockstep outrun the clock."""
        now = time.monotonic()
        while self._paced and now - self._paced[0][0] > PACE_S:
            self._paced.popleft()
        return sum(steps for _, steps in self._paced) / PACE_S

    @property
    def idle_share(self) -> float:
        """Share of the time since the monitor began in which the robot neither acted nor was reset."""
        busy = sum(
            self.spent_s[phase] for phase in (EpisodeStatus.PHASE_ACTING, EpisodeStatus.PHASE_RESETTING)
        )
        return 1.0 - busy / max(1e-9, self.spent_s.total())

    def take_status(self, message: EpisodeStatus) -> None:
        """Counts the time in the phase until now."""
        now_s = time.monotonic()
        if self.status is not None:
            self.spent_s[self.status.phase] += now_s - self.heard_s
        self.status, self.heard_s = message, now_s

    def take_summary(self, message: EpisodeSummary) -> None:
        """Counts a finished episode."""
        self.last = message
        self.finished += 1
        self.steps += message.steps
        if message.outcome in (EpisodeSummary.OUTCOME_SUCCESS, EpisodeSummary.OUTCOME_FAILURE):
            self.outcomes.append(message.outcome == EpisodeSummary.OUTCOME_SUCCESS)
        self._paced.append((time.monotonic(), message.steps))


@dataclass(frozen=True)
class Report:
    """One entry of /diagnostics; `values` as texts."""

    level: int
    message: str
    values: Mapping[str, str]
    heard_s: float


class FleetMonitor:
    """A node that listens, in a thread of its own. Use as a context manager.

    Args:
        robots: Namespaces without leading slash.
        details: Also listen to every step's prediction, to models, switches and /diagnostics.
    """

    def __init__(self, robots: Sequence[str] = (), details: bool = False) -> None:
        self.robots: dict[str, RobotView] = {}
        self.learner: LearnerStatus | None = None
        self.reports: dict[tuple[str, str], Report] = {}
        self._details = details
        self._own_context = not rclpy.ok()
        if self._own_context:
            # Ctrl+C is for the command, which ends things in order; rclpy's own handler would not wait.
            rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self.node = Node("efm_monitor")
        self.node.create_subscription(LearnerStatus, f"{LEARNER}/learner_status", self._on_learner, LATCHED)
        if details:
            self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, EVENTS)
        for robot in robots:
            self.add(robot)
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

    def add(self, robot: str) -> RobotView:
        """Begins to listen to a robot."""
        view = self.robots[robot] = RobotView()
        self._listen(f"/{robot}" if robot else "/", view)
        return view

    def discover(self) -> list[str]:
        """Begins to listen to robots that have turned up, and returns their names; all stay in order."""
        new = [robot for robot in find_robots(self.node) if robot not in self.robots]
        for robot in new:
            self.add(robot)
        if new:
            in_order = sorted(self.robots.items())
            self.robots.clear()
            self.robots.update(in_order)
        return new

    def report(self, robot: str, name: str) -> Report | None:
        """Returns what /diagnostics says of a robot under a name that begins so; None: nothing lately."""
        for (hardware, full_name), found in list(self.reports.items()):
            if hardware == robot and full_name.startswith(name) and self._is_fresh(found):
                return found
        return None

    def complaints(self) -> list[tuple[str, str, Report]]:
        """Returns what is not well, the worst first: robot, name and report.

        What statuses say as well is left out.
        """
        said = {view.status.message for view in self.robots.values() if view.status is not None}
        said |= {self.learner.message} if self.learner is not None else set()
        found = [
            (robot, name, report)
            for (robot, name), report in sorted(self.reports.items())
            if report.level and self._is_fresh(report) and report.message not in said
        ]
        return sorted(found, key=lambda entry: -entry[2].level)

    @staticmethod
    def _is_fresh(report: Report) -> bool:
        return time.monotonic() - report.heard_s < STALE_S

    def _listen(self, namespace: str, view: RobotView) -> None:
        def on_model(message: ModelStatus) -> None:
            view.models[message.node] = message

        def on_takeover(message: Bool) -> None:
            view.takeover = message.data

        def on_estop(message: Bool) -> None:
            view.estop = message.data

        def subscribe(kind, topic, callback, qos) -> None:
            self.node.create_subscription(kind, in_robot(namespace, topic), callback, qos)

        def on_prediction(message: StepsToGo) -> None:
            view.steps_to_go.append(message)

        subscribe(EpisodeStatus, STATUS_TOPIC, view.take_status, LATCHED)
        subscribe(EpisodeSummary, "episode_summary", view.take_summary, EVENTS)
        if self._details:
            subscribe(StepsToGo, "steps_to_go", on_prediction, EVENTS)
            subscribe(ModelStatus, "model_status", on_model, MODELS)
            subscribe(Bool, "takeover", newest_only(on_takeover), LATCHED)
            subscribe(Bool, "estop", newest_only(on_estop, urgent=lambda message: message.data), LATCHED)

    def _on_learner(self, message: LearnerStatus) -> None:
        self.learner = message

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.reports[status.hardware_id, status.name] = _report_of(status)

    def _spin(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(ExternalShutdownException):
                self._executor.spin_once(timeout_sec=0.5)


def find_robots(node: Node) -> list[str]:
    """Returns the robots whose episode node is in the graph, by namespace without leading slash."""
    names = [name for name, _ in node.get_topic_names_and_types() if name.endswith(f"/{STATUS_TOPIC}")]
    return sorted(name.removesuffix(STATUS_TOPIC).strip("/") for name in names if node.count_publishers(name))


def _report_of(status: DiagnosticStatus) -> Report:
    values = {pair.key: pair.value for pair in status.values}
    return Report(int.from_bytes(status.level, "little"), status.message, values, time.monotonic())
