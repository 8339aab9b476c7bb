"""Judges what robots show while they act: two threads between the observation topics and `steps_to_go`.

One thread takes images, states and instructions as they come, the other infers for all robots that have
something waiting, in one batch, and publishes. Neither ever waits for the other's work, and nobody waits for
either: control does not depend on the reward.
Left out: the models' coming and going (`efm_ros.model_supply`).
"""

from __future__ import annotations

import array
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.publisher import Publisher

from efm_core.embodiment import Embodiment
from efm_core.errors import BundleUnusable, EfmError, ObservationInvalid
from efm_core.reward import SuccessDetector
from efm_msgs.msg import Instruction, StepsToGo
from efm_reward_node.reward_model import Judgement, RewardModel
from efm_reward_node.robot_stream import Course, RobotStream, Task
from efm_ros.conversion import ns_to_stamp, stamp_to_ns
from efm_ros.inputs import RobotInputs
from efm_ros.intake import Intake
from efm_ros.model_supply import ModelSupply
from efm_ros.names import in_robot, robot_label
from efm_ros.qos import EVENTS, IMAGES, LATCHED, deep

LONGEST_WAIT_S = 0.5
GREATEST_BATCH = 16  # Observations that are judged at once; more than robots only when some have piled up.
COMPLAINT_PERIOD_S = 2.0
GREATEST_STAMP_NS = 1 << 63


class LiveRobot:
    """One robot: its stream, its publisher, and figures for diagnostics.

    Attributes:
        name: Entry of the node's `robots`.
        instruction: The newest one; None before the first.
        told: Id of the bundle that `model_status` says is active for this robot.
        judged: Observations judged.
        judged_s: When the newest one was, or when the episode began (steady clock).
        latency_s: From the arrival of the newest judged observation to its publication.
        complaint: What was wrong last.
        new_complaint: Whether nobody has read it yet.
    """

    def __init__(self, name: str, stream: RobotStream, publisher: Publisher) -> None:
        """Begins without an episode."""
        self.name = name
        self.stream = stream
        self.publisher = publisher
        self.instruction: Instruction | None = None
        self.told = ""
        self.judged = 0
        self.judged_s = time.monotonic()
        self.latency_s = 0.0
        self.complaint = ""
        self.new_complaint = False
        self._logged_s: float | None = None

    def complain(self, text: str) -> bool:
        """Takes what is wrong; gives whether it is time to log it: not more often than people can read."""
        self.complaint, self.new_complaint = text, True
        now_s = time.monotonic()
        if self._logged_s is not None and now_s - self._logged_s < COMPLAINT_PERIOD_S:
            return False
        self._logged_s = now_s
        return True


@dataclass(frozen=True)
class _Arrival:
    """A message that was taken from its topic, and what is to be done with it when its turn comes."""

    order: tuple[int, int]
    robot: LiveRobot
    take: Callable[[], None]


class LiveJudge:
    """Runs from construction to `close`."""

    def __init__(
        self,
        node: Node,
        embodiment: Embodiment,
        robots: Sequence[str],
        supply: ModelSupply[RewardModel],
        lockstep: bool,
        queue: int,
        fail: Callable[[BaseException], None],
    ) -> None:
        """Opens topics and starts the threads.

        Args:
            node: Node that owns the topics.
            embodiment: Of all robots.
            robots: The node's `robots`.
            supply: Has the model for the next episode.
            lockstep: Every observation counts; else the newest does.
            queue: Observations of a robot that may wait in lockstep.
            fail: Told of an exception in a thread, which then ends.
        """
        self._node = node
        self._supply = supply
        self._fail = fail
        self._changed = threading.Condition()
        self._closing = False
        self._intake = Intake(node)
        self._arrived: list[_Arrival] = []
        self.robots: list[LiveRobot] = []
        for name in robots:
            stream = RobotStream(embodiment, lockstep, queue, self._now_ns, time.monotonic)
            publisher = node.create_publisher(StepsToGo, in_robot(name, "steps_to_go"), EVENTS)
            robot = LiveRobot(name, stream, publisher)
            self.robots.append(robot)
            inputs = RobotInputs(
                embodiment,
                name,
                partial(self._image, robot),
                partial(self._state, robot),
                partial(self._complain, robot),
                self._now_ns,
                deep(IMAGES) if lockstep else IMAGES,
            )
            inputs.subscribe(self._intake.subscribe)
            topic = in_robot(name, "instruction")
            self._intake.subscribe(Instruction, topic, partial(self._instruct, robot), LATCHED)
        self._bin_width = embodiment.steps_to_go.width
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in (("observations", self._take), ("judge", self._judge))
        ]
        for thread in self._threads:
            thread.start()

    def close(self, timeout_s: float = 1.0) -> None:
        """Ends the threads and closes the topics; an inference that runs is not published any more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._intake.wake()
        for thread in self._threads:
            thread.join(timeout_s)
        self._intake.close()
        for robot in self.robots:
            self._node.destroy_publisher(robot.publisher)

    def model_is_ready(self, model: RewardModel) -> None:
        """Lets a new model judge robots that are between two episodes, or in one that had no model yet."""
        for robot in self.robots:
            if robot.stream.course is None:
                self._begin(robot, model)

    def why_nothing_new(self, robot: LiveRobot) -> str:
        """Says which input of a robot is missing or too old; empty: none is."""
        with self._changed:
            return robot.stream.why_nothing_new()

    # In the thread "observations"

    def _take(self) -> None:
        while not self._closing:
            self._intake.take(LONGEST_WAIT_S)
            # Messages come topic by topic; an observation is complete only where its parts come together.
            arrived, self._arrived = sorted(self._arrived, key=lambda arrival: arrival.order), []
            for arrival in arrived:
                try:
                    arrival.take()
                except ObservationInvalid as error:
                    self._complain(arrival.robot, "an input", error)

    def _image(self, robot: LiveRobot, camera: str, stamp_ns: int, image: np.ndarray) -> None:
        self._arrive(robot, stamp_ns, robot.stream.add_image, camera, stamp_ns, image)

    def _state(self, robot: LiveRobot, stamp_ns: int, values: np.ndarray) -> None:
        self._arrive(robot, stamp_ns, robot.stream.add_state, stamp_ns, values)

    def _arrive(self, robot: LiveRobot, stamp_ns: int, add: Callable[..., None], *values: Any) -> None:
        self._arrived.append(_Arrival((stamp_ns, 1), robot, partial(self._add, robot.stream, add, *values)))

    def _add(self, stream: RobotStream, add: Callable[..., None], *values: Any) -> None:
        with self._changed:
            add(*values)
            if stream.waiting:
                self._changed.notify_all()

    def _instruct(self, robot: LiveRobot, message: Instruction) -> None:
        # An episode begins just before its first observation; one ends after all that is here.
        stamp_ns = stamp_to_ns(message.header.stamp) if message.episode_id else GREATEST_STAMP_NS
        self._arrived.append(_Arrival((stamp_ns, 0), robot, partial(self._follow, robot, message)))

    def _follow(self, robot: LiveRobot, message: Instruction) -> None:
        course = robot.stream.course
        if course is not None and course.episode_id == message.episode_id:
            return
        if course is not None and course.judged:
            self._supply.proved(course.model)
        with self._changed:
            robot.stream.end()
            robot.instruction = message
        model = self._supply.current
        if model is not None:
            self._begin(robot, model)
        elif message.episode_id:
            self._warn(robot, f"episode {message.episode_id} waits for a first reward bundle to judge it")

    def _begin(self, robot: LiveRobot, model: RewardModel) -> None:
        """Takes up a model for a robot that no other one judges, and its episode, if one runs."""
        began_s = time.monotonic()
        with self._changed:
            message = robot.instruction
            if robot.stream.course is None and message is not None and message.episode_id:
                detector = SuccessDetector(model.threshold, model.hold)
                course = Course(message.episode_id, message.text, model, detector)
                robot.judged_s = began_s
                robot.stream.begin(course, stamp_to_ns(message.header.stamp))
                self._changed.notify_all()
        self._tell_active(robot, model, time.monotonic() - began_s)

    def _tell_active(self, robot: LiveRobot, model: RewardModel, stall_s: float) -> None:
        if robot.told != model.id:
            robot.told = model.id
            self._supply.tell_active(model.id, robot.name, stall_s)

    # In the thread "judge"

    def _judge(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or any(r.stream.waiting for r in self.robots))
                if self._closing:
                    return
                tasks = self._next_tasks()
            by_model: dict[str, list[tuple[LiveRobot, Task]]] = {}
            for robot, task in tasks:
                by_model.setdefault(task.course.model.id, []).append((robot, task))
            for group in by_model.values():
                self._judge_together(group)

    def _next_tasks(self) -> list[tuple[LiveRobot, Task]]:
        """Takes the oldest task of every robot in turn, until the batch is full or nothing waits."""
        tasks: list[tuple[LiveRobot, Task]] = []
        limit = max(GREATEST_BATCH, len(self.robots))
        while len(tasks) < limit:
            found = [(robot, task) for robot in self.robots if (task := robot.stream.pop()) is not None]
            if not found:
                break
            tasks += found
        return tasks

    def _judge_together(self, group: list[tuple[LiveRobot, Task]]) -> None:
        model = group[0][1].course.model
        outcomes = model.judge(
            [task.observation for _, task in group], [task.course.instruction for _, task in group]
        )
        for (robot, task), outcome in zip(group, outcomes, strict=True):
            if self._closing:
                return
            if isinstance(outcome, EfmError):
                robot.stream.missed += 1
                self._complain(robot, "the reward model", outcome)
                if isinstance(outcome, BundleUnusable):
                    self._supply.failed(model, outcome)
                continue
            robot.publisher.publish(self._message(task, outcome))
            robot.judged += 1
            robot.judged_s = time.monotonic()
            robot.latency_s = robot.judged_s - task.arrived_s

    def _message(self, task: Task, judgement: Judgement) -> StepsToGo:
        course = task.course
        reward = course.take(judgement)
        message = StepsToGo(
            episode_id=course.episode_id,
            bundle_id=course.model.id,
            expectation=judgement.expectation,
            spread=judgement.spread,
            disagreement=judgement.disagreement,
            probabilities=array.array("f", judgement.probabilities.astype("float32").tobytes()),
            bin_width=self._bin_width,
            reward=reward,
            threshold=course.detector.threshold,
            held=min(course.detector.held, 65535),
            success=course.detector.succeeded,
        )
        message.header.stamp = ns_to_stamp(task.observation.stamp_ns)
        return message

    # Both

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever it is, the node must not go on half dead
            if not self._closing:
                self._fail(error)

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds

    def _complain(self, robot: LiveRobot, source: str, error: EfmError) -> None:
        self._warn(robot, f"ignored what came from '{source}': {error}")

    def _warn(self, robot: LiveRobot, text: str) -> None:
        if robot.complain(text):
            self._node.get_logger().warning(f"{robot_label(self._node, robot.name) or 'robot'}: {text}")
