"""Commands to a robot in the interface that its embodiment names, and their way back to vectors.

A command is one vector of the embodiment's action dimensions. Every command says which observation it
answers, so that a world in lockstep knows when to step: stamped types in `header.stamp`, Float64MultiArray in
the label of its first dimension ('stamp_ns=<int>'; controllers ignore it). Live, stamped types carry what
controllers want there instead: the time of sending, or zero ("start now") for trajectories.
Left out: all checks. The safety gate (`efm_core.safety`) comes before this and is the last to decide.
"""

from __future__ import annotations

import time

import numpy as np
from geometry_msgs.msg import TwistStamped
from rclpy.duration import Duration
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray, MultiArrayDimension
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from efm_core.embodiment import Action, Embodiment
from efm_core.errors import BadRequest, EmbodimentInvalid, ObservationInvalid
from efm_core.message_values import STAMP_LABEL, command_values, message_stamp_ns
from efm_core.safety import hold_still_values
from efm_ros.action_client import ActionClient
from efm_ros.conversion import ns_to_stamp
from efm_ros.names import in_robot
from efm_ros.qos import COMMANDS
from efm_ros.servo import ServoSwitch

Command = Float64MultiArray | JointTrajectory | TwistStamped
MESSAGE_TYPES: dict[str, type] = {
    "float64_multi_array": Float64MultiArray,
    "joint_trajectory": JointTrajectory,
    # An action's goals cannot be recorded or simulated from outside: the same trajectory also goes to a topic
    # of its name.
    "follow_joint_trajectory": JointTrajectory,
    "twist_stamped": TwistStamped,
}
SERVO_LEAST_RATE_HZ = 20.0  # MoveIt Servo stops 0.1 s after the last twist.


def message_type(action: Action) -> type[Command]:
    """Gives the message class of the command topic."""
    return MESSAGE_TYPES[action.interface]


def encode_command(embodiment: Embodiment, values: np.ndarray, stamp_ns: int) -> Command:
    """Makes the command message.

    Args:
        embodiment: Interface, names and control period.
        values: float [D] in the embodiment's units.
        stamp_ns: Stamp to put in [ns]; 0: none (an array is then not labelled).
    """
    action = embodiment.action
    numbers = [float(value) for value in values]
    if action.interface == "float64_multi_array":
        command = Float64MultiArray(data=numbers)
        label = f"{STAMP_LABEL}{int(stamp_ns)}" if stamp_ns else ""
        size = len(numbers)
        command.layout.dim = [MultiArrayDimension(label=label, size=size, stride=size)]
        return command
    if action.interface == "twist_stamped":
        twist = TwistStamped()
        twist.header.stamp, twist.header.frame_id = ns_to_stamp(stamp_ns), action.frame_id
        for dimension, number in zip(action.dimensions, numbers, strict=True):
            part, axis = dimension.name.split(".")
            setattr(getattr(twist.twist, part), axis, number)
        return twist
    trajectory = JointTrajectory(joint_names=[dimension.name for dimension in action.dimensions])
    trajectory.header.stamp, trajectory.header.frame_id = ns_to_stamp(stamp_ns), action.frame_id
    period = Duration(seconds=1.0 / embodiment.control_rate_hz)
    trajectory.points = [JointTrajectoryPoint(positions=numbers, time_from_start=period.to_msg())]
    return trajectory


def decode_command(embodiment: Embodiment, message: Command) -> tuple[np.ndarray, int | None]:
    """Reads a command back, whoever sent it.

    Returns:
        values float64 [D] in the embodiment's order, and the stamp that the command carries [ns], None
        without one.

    Raises:
        BadRequest: Wrong type, wrong number of values, or a joint that is missing or unknown.
    """
    action = embodiment.action
    wanted = message_type(action)
    if not isinstance(message, wanted):
        raise BadRequest(
            f"command on '{action.topic}': expected {wanted.__name__} ({action.interface}), found "
            f"{type(message).__name__}"
        )
    try:
        values = command_values(message, action, 1.0 / embodiment.control_rate_hz)
    except ObservationInvalid as error:
        raise BadRequest(str(error)) from error
    return values, message_stamp_ns(message)


class CommandChannel:
    """Sends a robot's commands. Not thread-safe: one thread at a time may send."""

    def __init__(self, node: Node, embodiment: Embodiment, robot: str = "", lockstep: bool = False) -> None:
        """Opens the command topic (and the action, for `follow_joint_trajectory`).

        Args:
            node: Node that sends; gives the clock.
            embodiment: Says how the robot takes commands.
            robot: Entry of the node's `robots`.
            lockstep: Stamp commands with the observation they answer, for a world that waits for them.

        Raises:
            EmbodimentInvalid: The interface needs the package control_msgs, which is not installed.
        """
        self._node = node
        self._embodiment = embodiment
        self._lockstep = lockstep
        self._last: np.ndarray | None = None
        action = embodiment.action
        _warn_of_slow_twists(node, embodiment)
        topic = in_robot(robot, action.topic)
        self._trajectories = (
            _FollowJointTrajectory(node, topic) if action.interface == "follow_joint_trajectory" else None
        )
        self._servo = ServoSwitch(node, topic) if action.interface == "twist_stamped" else None
        self._publisher = node.create_publisher(message_type(action), topic, COMMANDS)

    @property
    def last(self) -> np.ndarray | None:
        """The values sent last, float64 [D]; None before the first."""
        return self._last

    def connect(self, timeout_s: float) -> bool:
        """Waits until all who listen are connected; False if that takes too long (steady clock)."""
        deadline = time.monotonic() + timeout_s
        topic = self._publisher.topic_name
        while self._publisher.get_subscription_count() < self._node.count_subscribers(topic):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def send(self, values: np.ndarray, stamp_ns: int) -> None:
        """Sends one command.

        Args:
            values: float [D], checked and bounded by the safety gate.
            stamp_ns: Stamp of the observation that the command answers [ns].
        """
        command = encode_command(self._embodiment, values, self._stamp(stamp_ns))
        if self._servo is not None:
            self._servo.keep()
        self._publisher.publish(command)
        if self._trajectories is not None:
            self._trajectories.send(command)
        self._last = np.array(values, np.float64)

    def hold(self, stamp_ns: int = 0, measured: np.ndarray | None = None) -> np.ndarray | None:
        """Sends the command that keeps the robot where it is, as the embodiment's `hold_still` says.

        Args:
            stamp_ns: Stamp of the observation that it answers [ns]. 0: none is answered.
            measured: Where every action dimension is, float [D], NaN where unknown; see `efm_core.safety`.

        Returns:
            The values sent. None: nothing was sent, since nothing is known yet that would hold still; a robot
            that was never commanded keeps what it had.
        """
        values = self.hold_values(measured)
        if values is not None:
            self.send(values, stamp_ns)
        return values

    def hold_values(self, measured: np.ndarray | None = None) -> np.ndarray | None:
        """Gives what `hold` would send, float64 [D], or None."""
        return hold_still_values(self._embodiment.action, self._last, measured)

    def flush(self, timeout_s: float = 0.5) -> bool:
        """Waits until the robot has the last command; False if it does not confirm in time (steady clock)."""
        return self._publisher.wait_for_all_acked(Duration(seconds=timeout_s))

    def others(self) -> list[str]:
        """Names the other nodes that could command this robot, sorted: publishers on the same topic."""
        mine = self._node.get_fully_qualified_name()
        found = self._node.get_publishers_info_by_topic(self._publisher.topic_name)
        names = {f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in found}
        return sorted(names - {mine})

    def destroy(self) -> None:
        """Closes the topic and the action."""
        self._node.destroy_publisher(self._publisher)
        if self._trajectories is not None:
            self._trajectories.destroy()
        if self._servo is not None:
            self._servo.destroy()

    def _stamp(self, stamp_ns: int) -> int:
        if self._lockstep or self._embodiment.action.interface == "float64_multi_array":
            return stamp_ns
        if self._embodiment.action.interface == "twist_stamped":
            return self._node.get_clock().now().nanoseconds
        return 0


class _FollowJointTrajectory:
    """Sends trajectories as goals; a new goal replaces the running one without a stop."""

    def __init__(self, node: Node, name: str) -> None:
        try:
            from control_msgs.action import FollowJointTrajectory
        except ImportError as error:
            raise EmbodimentInvalid(
                f"action interface follow_joint_trajectory on '{name}': expected the package control_msgs, "
                "found none; install ros-jazzy-control-msgs, or use joint_trajectory"
            ) from error
        self._goal = FollowJointTrajectory.Goal
        self._logger = node.get_logger()
        self._name = name
        self._client = ActionClient(node, FollowJointTrajectory, name)

    def send(self, trajectory: JointTrajectory) -> None:
        if self._client.server_is_ready():
            self._client.send_goal_async(self._goal(trajectory=trajectory))
        else:
            self._logger.error(
                f"nobody serves the action '{self._name}': the robot does not get its commands; is the "
                "controller active?",
                throttle_duration_sec=5.0,
            )

    def destroy(self) -> None:
        self._client.destroy()


def _warn_of_slow_twists(node: Node, embodiment: Embodiment) -> None:
    if embodiment.action.interface == "twist_stamped" and embodiment.control_rate_hz < SERVO_LEAST_RATE_HZ:
        node.get_logger().warning(
            f"embodiment '{embodiment.name}' sends twists at {embodiment.control_rate_hz} Hz; MoveIt Servo "
            f"stops 0.1 s after the last one: raise control_rate_hz to {SERVO_LEAST_RATE_HZ:g} or more, or "
            "incoming_command_timeout in Servo"
        )
