"""Hears one robot: hands every message to the recorder as it came, and what decides about episodes to the
runner.

All topics are taken by one thread of its own (`efm_ros.intake`), serialised; only policy steps and judgements
are opened, and while an episode runs only they wake it. It tells now and then what the recorder holds, for
worlds that can wait for it. The simulator's truth is subscribed to while an evaluation runs and at no other
time, so that no other episode can hold it.
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Callable

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray, Header

from efm_core.embodiment import Embodiment
from efm_core.message_values import state_values
from efm_core.safety import Gate, measured_positions
from efm_core.schemas import deserialize
from efm_core.summary import Actor
from efm_episode_node.recorder import EpisodeRecorder, Stream
from efm_episode_node.run_types import Event, Judged, Stepped, TruthSeen
from efm_msgs.msg import GroundTruth, PolicyStep, StepsToGo
from efm_ros.commands import message_type
from efm_ros.conversion import image_to_rgb, ns_to_stamp, stamp_to_ns
from efm_ros.intake import Intake
from efm_ros.qos import COMMANDS, EVENTS, IMAGES, deep

WAIT_S = 0.2
# Inputs and commands of a running episode are gathered for so long: whoever is woken by an observation takes
# the processor from the policy that answers it.
GATHER_S = 0.02
# What is held is told after so many control steps, or so many bytes.
TOLD_STEPS = 10
TOLD_BYTES = 1 << 20
IMAGES_KEPT = 400  # Large messages: a second of the fastest lockstep.
IMAGE = "sensor_msgs/msg/Image"
_HEADER_STAMP = struct.Struct("<iI")
_LABEL = re.compile(rb"stamp_ns=(\d+)")
STATE_TYPES: dict[str, type] = {"joint_states": JointState, "float64_multi_array": Float64MultiArray}
JITTER = 0.4  # Share of a control period that a command may come too early or too late.


class Periods:
    """Counts control periods in commands, of which a controller may send many in one."""

    def __init__(self, period_ns: float) -> None:
        """Begins with none."""
        self._period_ns = period_ns
        self._due_ns = 0.0  # When the next period begins.

    def begins_with(self, stamp_ns: int) -> bool:
        """Whether the command of this stamp [ns] is the first one of a period."""
        early_ns = self._due_ns - stamp_ns
        if JITTER * self._period_ns < early_ns <= 2 * self._period_ns:
            return False
        # After a pause, or once the clock was set back, a period begins now.
        goes_on = abs(early_ns) <= JITTER * self._period_ns
        self._due_ns = (self._due_ns if goes_on else stamp_ns) + self._period_ns
        return True


class RobotListener:
    """Listens from `start` until `close`."""

    def __init__(
        self,
        node: Node,
        embodiment: Embodiment,
        recorder: EpisodeRecorder,
        post: Callable[[Event], None],
        fault: Callable[[BaseException], None],
    ) -> None:
        """Subscribes.

        Args:
            node: Owns the subscriptions and gives the clock.
            embodiment: Names the topics.
            recorder: Gets every message.
            post: Gets events, in the listener's thread.
            fault: Told when the thread ends with an error.
        """
        self._node = node
        self._recorder = recorder
        self._post = post
        self._fault = fault
        self._period_ns = 1e9 / embodiment.control_rate_hz
        self._intake = Intake(node)
        self._intake.take_clock()
        self._inputs: list[str] = []
        self._truth: Stream | None = None
        self._truth_heard = False
        self._subscriptions: dict[str, Subscription] = {}
        self._embodiment = embodiment
        self._state_data = b""
        self.count_commands = False
        self._periods = Periods(self._period_ns)
        for camera in embodiment.cameras:
            raw = camera.transport == "raw"
            kind, name = (Image, camera.name) if raw else (CompressedImage, "")
            stream = Stream(
                camera.recorded_topic, "sensor_msgs/msg/CompressedImage", name, True, camera.max_age_s
            )
            self._hear_input(kind, camera.subscribed_topic, stream, IMAGES_KEPT)
        if embodiment.state is not None:
            state = embodiment.state
            kind = STATE_TYPES[state.interface]
            stream = Stream(state.topic.lstrip("~/"), _type_name(kind), "", True, state.max_age_s)
            self._hear_input(kind, state.topic, stream)
            self._state_type = kind
        self._command_type = message_type(embodiment.action)
        self._command = Stream(embodiment.action.topic.lstrip("~/"), _type_name(self._command_type))
        self._hear(
            self._command_type, embodiment.action.topic, self._on_command, deep(COMMANDS), patient=True
        )
        self._step = Stream("policy_step", _type_name(PolicyStep))
        self._hear(PolicyStep, "policy_step", self._on_step, deep(EVENTS))
        self._judgement = Stream("steps_to_go", _type_name(StepsToGo))
        self._hear(StepsToGo, "steps_to_go", self._on_judgement, deep(EVENTS))
        self._held = node.create_publisher(Header, "recorded", COMMANDS)
        self._told_ns = self._untold_bytes = 0
        self._ending = False
        self._thread = threading.Thread(target=self._main, name="listener", daemon=True)

    def start(self) -> None:
        """Begins to take messages."""
        self._thread.start()

    def missing(self, judged: bool, end_on_truth: bool) -> str:
        """Names the topics and the clock that an episode needs and that do not arrive."""
        silent = [self._silent(topic) for topic in self._inputs]
        if judged:
            silent.append(self._silent("steps_to_go", " (is the reward node running and active?)"))
        if self._truth is not None and (end_on_truth or self._node.count_publishers("ground_truth")):
            silent.append(self._silent_truth())
        if not self._now_ns():
            silent.append("topic /clock (use_sim_time is set, and nobody publishes it)")
        return ", ".join(filter(None, silent))

    def _silent(self, topic: str, hint: str = "") -> str:
        """Names a topic that no publisher is connected to."""
        if self._subscriptions[topic].get_publisher_count():
            return ""
        if self._node.count_publishers(topic):
            hint = " (published, but not connected yet; if that lasts, its QoS does not match)"
        return f"topic {self._node.resolve_topic_name(topic)}{hint}"

    def _silent_truth(self) -> str:
        """Names the truth until a message of it came: we may know the simulator before it knows us."""
        silent = self._silent("ground_truth")
        self._truth_heard = self._truth_heard and not silent
        if silent or self._truth_heard:
            return silent
        return f"a message on topic {self._node.resolve_topic_name('ground_truth')}"

    def measured(self) -> np.ndarray | None:
        """Gives where every action dimension is now, float64 [D]; None where that is not measured."""
        if not self._state_data or self._embodiment.state is None:
            return None
        message = deserialize_message(self._state_data, self._state_type)
        return measured_positions(self._embodiment, state_values(message, self._embodiment.state))

    def hear_truth(self, wanted: bool) -> None:
        """Subscribes to the simulator's truth, or no longer."""
        if wanted and self._truth is None:
            self._truth, self._truth_heard = Stream("ground_truth", _type_name(GroundTruth)), False
            self._hear(GroundTruth, "ground_truth", self._on_truth, deep(EVENTS))
        elif not wanted and self._truth is not None:
            self._truth = None
            self._intake.unsubscribe(self._subscriptions.pop("ground_truth"))

    def close(self) -> None:
        """Ends the thread and the subscriptions."""
        self._ending = True
        self._intake.wake()
        if self._thread.is_alive():
            self._thread.join(5.0)
        self._intake.close()
        self._node.destroy_publisher(self._held)

    def _main(self) -> None:
        try:
            while not self._ending:
                recording = self._told_ns > 0
                self._intake.take(GATHER_S if recording else WAIT_S, patiently=recording)
                self._tell_held()
        except Exception as error:  # noqa: BLE001 handed to the node, which ends with it
            self._fault(error)

    def _tell_held(self) -> None:
        held_ns = self._recorder.held_ns()
        begins_or_ends = not held_ns or not self._told_ns
        if begins_or_ends or self._untold_bytes > TOLD_BYTES:
            is_due = held_ns != self._told_ns
        else:
            is_due = held_ns - self._told_ns >= TOLD_STEPS * self._period_ns
        if is_due:
            self._told_ns, self._untold_bytes = held_ns, 0
            self._held.publish(Header(stamp=ns_to_stamp(held_ns)))

    def _hear(
        self,
        kind: type,
        topic: str,
        callback: Callable[[bytes], None],
        qos: QoSProfile,
        patient: bool = False,
    ) -> None:
        self._subscriptions[topic] = self._intake.subscribe(
            kind, topic, callback, qos, raw=True, patient=patient
        )

    def _hear_input(self, kind: type, topic: str, stream: Stream, depth: int = 0) -> None:
        self._recorder.add_input(stream)
        self._inputs.append(topic)
        qos = deep(IMAGES, depth) if depth else deep(IMAGES)
        labelled = kind is Float64MultiArray

        def take(data: bytes) -> None:
            stamp_ns = self._labelled_ns(data) if labelled else header_stamp_ns(data)
            self._untold_bytes += len(data)
            self._recorder.put(stream, stamp_ns, data)

        def take_state(data: bytes) -> None:
            self._state_data = data
            take(data)

        self._hear(kind, topic, take if kind in (Image, CompressedImage) else take_state, qos, patient=True)

    def _on_command(self, data: bytes) -> None:
        labelled = self._command_type is Float64MultiArray
        stamp_ns = self._labelled_ns(data) if labelled else header_stamp_ns(data) or self._now_ns()
        self._recorder.put(self._command, stamp_ns, data)
        if self.count_commands and self._periods.begins_with(stamp_ns):
            self._post(Stepped(stamp_ns, ""))

    def _on_step(self, data: bytes) -> None:
        step: PolicyStep = deserialize_message(data, PolicyStep)
        stamp_ns = stamp_to_ns(step.header.stamp)
        moved = step.actor != Actor.HOLD and not step.gate & Gate.DRY_RUN
        self._recorder.put(self._step, stamp_ns, data, is_step=moved)
        due_ns = stamp_ns + int(step.chunk_index * self._period_ns)
        self._post(Stepped(due_ns, step.episode_id, step.bundle_id, moved))

    def _on_judgement(self, data: bytes) -> None:
        judged: StepsToGo = deserialize_message(data, StepsToGo)
        stamp_ns = stamp_to_ns(judged.header.stamp)
        self._recorder.put(self._judgement, stamp_ns, data)
        self._post(
            Judged(
                stamp_ns, judged.episode_id, judged.bundle_id, judged.expectation, judged.held, judged.success
            )
        )

    def _on_truth(self, data: bytes) -> None:
        stream = self._truth
        if stream is None:
            return
        self._truth_heard = True
        truth: GroundTruth = deserialize_message(data, GroundTruth)
        stamp_ns = stamp_to_ns(truth.header.stamp)
        self._recorder.put(stream, stamp_ns, data)
        self._post(TruthSeen(stamp_ns, truth.success))

    def _labelled_ns(self, data: bytes) -> int:
        """Gives the stamp in an array's label, or the time of arrival where there is none."""
        found = _LABEL.search(data[:64])
        return int(found[1]) if found else self._now_ns()

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds


def header_stamp_ns(data: bytes) -> int:
    """Gives header.stamp of a serialised message whose first field is a header [ns]."""
    if data[1] != 1:  # Big endian: no ROS 2 that we know of sends it.
        raise ValueError(f"expected a little-endian CDR message, found encapsulation {data[:2].hex()}")
    seconds, nanoseconds = _HEADER_STAMP.unpack_from(data, 4)
    return seconds * 1_000_000_000 + nanoseconds


def decode_image(data: bytes) -> tuple[np.ndarray, str]:
    """Opens a serialised sensor_msgs/Image: RGB uint8 [H, W, 3] and its frame."""
    # Not rclpy's: for an image of 640 x 480 that takes a millisecond, with all other threads stopped.
    message = deserialize(data, IMAGE)
    return image_to_rgb(message), message.header.frame_id


def _type_name(kind: type) -> str:
    package, _, name = kind.__module__.split(".")[0], "", kind.__name__
    return f"{package}/msg/{name}"
