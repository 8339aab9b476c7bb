"""What one robot says of itself, gathered as a `Look` for those who draw it.

Messages are kept as they came and read only when somebody asks: a world in lockstep sends hundreds a second,
and people see 20 of them. Left out: images, and any reaction.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray

from efm_bringup.look import Look
from efm_core.embodiment import Embodiment
from efm_core.errors import ObservationInvalid
from efm_core.message_values import message_stamp_ns
from efm_core.summary import Actor, Mode, Outcome
from efm_msgs.msg import EpisodeStatus, EpisodeSummary, Instruction, PolicyStep, StepsToGo
from efm_ros.conversion import stamp_to_ns, state_from_message
from efm_ros.latched import newest_only
from efm_ros.names import in_robot
from efm_ros.qos import EVENTS, IMAGES, LATCHED

CURVE_LENGTH = 2000  # Predictions kept of one episode.


class _Newest:
    """The newest message of a topic, read when asked for."""

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self._data: bytes | None = None
        self._message: Any = None

    def take(self, data: bytes) -> None:
        self._data = data

    @property
    def message(self) -> Any:
        if self._data is not None:
            data, self._data = self._data, None
            self._message = deserialize_message(data, self._kind)
        return self._message


class RobotFeed:
    """Subscribes to everything that one robot tells; all methods in the executor's thread.

    Args:
        node: Node that owns the subscriptions.
        embodiment: Of the robot.
        robot: Entry of the node's `robots`.
    """

    def __init__(self, node: Node, embodiment: Embodiment, robot: str) -> None:
        self.robot = robot
        self._node = node
        self._embodiment = embodiment
        self._subscriptions: list[Subscription] = []
        self._curve: deque[float] = deque(maxlen=CURVE_LENGTH)
        self._curve_of = ("", 0)
        bins = embodiment.steps_to_go
        self._greatest = float(bins.bins * bins.width)
        self._step = self._newest(PolicyStep, "policy_step", IMAGES)
        self._instruction = self._newest(Instruction, "instruction", LATCHED)
        self._status = self._newest(EpisodeStatus, "episode_status", LATCHED)
        self._summary = self._newest(EpisodeSummary, "episode_summary", LATCHED)
        self._takeover = self._newest(Bool, "takeover", LATCHED)
        self._estop = self._newest(Bool, "estop", LATCHED)
        self._prediction: StepsToGo | None = None
        self._subscribe(StepsToGo, "steps_to_go", self._on_prediction, EVENTS)
        self._state: _Newest | None = None
        self._told = ""
        if embodiment.state is not None:
            joints = embodiment.state.interface == "joint_states"
            self._state = self._newest(
                JointState if joints else Float64MultiArray, embodiment.state.topic, IMAGES
            )

    def close(self) -> None:
        """Ends the subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def state(self) -> tuple[int, dict[str, float]] | None:
        """Returns stamp [ns] and entries by name of the newest state; None before the first that is valid."""
        message = self._state.message if self._state is not None else None
        if message is None:
            return None
        assert self._embodiment.state is not None
        try:
            values = state_from_message(message, self._embodiment.state)
        except ObservationInvalid as error:
            self._node.get_logger().warning(f"{self.robot}: {error}", throttle_duration_sec=10.0)
            return None
        stamp_ns = message_stamp_ns(message)
        now_ns = self._node.get_clock().now().nanoseconds
        names = (entry.name for entry in self._embodiment.state.entries)
        return now_ns if stamp_ns is None else stamp_ns, dict(zip(names, values.tolist(), strict=True))

    def command(self) -> dict[str, float]:
        """Returns the last command by name of its dimensions; empty while none is sent."""
        step: PolicyStep | None = self._step.message
        if step is None or not self._is_of_this_episode(step.episode_id):
            return {}
        names = [dimension.name for dimension in self._embodiment.action.dimensions]
        values = np.asarray(step.command, np.float64)
        return dict(zip(names, values.tolist(), strict=True)) if len(values) == len(names) else {}

    def look(self) -> Look:
        """Returns how the robot looks now."""
        instruction: Instruction | None = self._instruction.message
        status: EpisodeStatus | None = self._status.message
        summary: EpisodeSummary | None = self._summary.message
        step: PolicyStep | None = self._step.message
        episode_id = instruction.episode_id if instruction is not None else ""
        if instruction is not None and instruction.text:
            self._told = instruction.text
        of_step = step if step is not None and self._shows(step.episode_id) else None
        ended = summary is not None and not episode_id
        seen = self._prediction if self._prediction and self._shows(self._prediction.episode_id) else None
        return Look(
            robot=self.robot,
            instruction=self._told or (summary.instruction if summary is not None else ""),
            episode_id=episode_id,
            step=of_step.step + 1 if of_step is not None else 0,
            actor=_enum(Actor, of_step.actor) if of_step is not None else Actor.UNSET,
            takeover=self._takeover.message is not None and self._takeover.message.data,
            estop=self._estop.message is not None and self._estop.message.data,
            steps_to_go=seen.expectation if seen is not None else math.nan,
            spread=seen.spread if seen is not None else math.nan,
            threshold=seen.threshold if seen is not None else math.nan,
            reward=seen.reward if seen is not None else math.nan,
            held=seen.held if seen is not None else 0,
            success=seen is not None and seen.success,
            curve=tuple(self._curve) if seen is not None else (),
            greatest=self._greatest,
            bundle_id=of_step.bundle_id if of_step is not None else "",
            outcome=_enum(Outcome, summary.outcome) if ended else Outcome.UNSET,
            mode=_enum(Mode, status.mode) if status is not None else Mode.UNSET,
            message=status.message if status is not None else "",
        )

    def _is_of_this_episode(self, episode_id: str) -> bool:
        instruction = self._instruction.message
        return bool(episode_id) and instruction is not None and instruction.episode_id == episode_id

    def _shows(self, episode_id: str) -> bool:
        """Whether it belongs to the running episode, or to the last one while none runs."""
        instruction = self._instruction.message
        return instruction is None or instruction.episode_id in ("", episode_id)

    def _on_prediction(self, data: bytes) -> None:
        prediction: StepsToGo = deserialize_message(data, StepsToGo)
        stamp_ns = stamp_to_ns(prediction.header.stamp)
        episode_id, newest_ns = self._curve_of
        if prediction.episode_id != episode_id or stamp_ns < newest_ns:  # A bag that is played in a loop.
            self._curve.clear()
        self._curve_of = (prediction.episode_id, stamp_ns)
        self._curve.append(prediction.expectation)
        self._prediction = prediction

    def _newest(self, kind: type, topic: str, qos: Any) -> _Newest:
        newest = _Newest(kind)
        # Switches have several publishers.
        self._subscribe(kind, topic, newest_only(newest.take) if kind is Bool else newest.take, qos)
        return newest

    def _subscribe(self, kind: type, topic: str, take: Callable[..., None], qos: Any) -> None:
        name = in_robot(self.robot, topic)
        self._subscriptions.append(self._node.create_subscription(kind, name, take, qos, raw=True))


def _enum(kind: Any, value: int) -> Any:
    """The constant of that number; UNSET for one that is newer than this code."""
    return kind(value) if value in kind._value2member_map_ else kind(0)
