"""Numbers out of ROS messages: state vectors and action vectors, matched by name.

Works on messages of rclpy and on those that episodes are read with: only the fields are looked at, so that
a node and a training run cannot understand a message differently. Stamps come from the message where it has
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from efm_core.embodiment import Action, State
from efm_core.errors import ObservationInvalid, nearest
from efm_core.schemas import SECOND_NS, make_header, message_class, stamp_to_ns

# A Float64MultiArray has no header: layout.dim[0].label carries the stamp of the observation that it
# belongs to.
STAMP_LABEL = "stamp_ns="
STATE_TYPES = {
    "joint_states": "sensor_msgs/msg/JointState",
    "float64_multi_array": "std_msgs/msg/Float64MultiArray",
}
COMMAND_TYPES = {
    "joint_trajectory": "trajectory_msgs/msg/JointTrajectory",
    # Goals of an action cannot be recorded: the same trajectory also goes to a topic of the action's name.
    "follow_joint_trajectory": "trajectory_msgs/msg/JointTrajectory",
    "float64_multi_array": "std_msgs/msg/Float64MultiArray",
    "twist_stamped": "geometry_msgs/msg/TwistStamped",
}


def message_stamp_ns(message: Any) -> int | None:
    """Returns the stamp in a message's header or, of a Float64MultiArray, in its label [ns]; None without."""
    if hasattr(message, "header"):
        return stamp_to_ns(message.header.stamp) or None
    dimensions = message.layout.dim
    label = dimensions[0].label if dimensions else ""
    number = label.removeprefix(STAMP_LABEL)
    return int(number) if number != label and number.isdecimal() else None


def state_values(message: Any, state: State) -> npt.NDArray[np.float64]:
    """Returns the state vector float64 [S] of a message of the state's topic.

    Raises:
        ObservationInvalid: a joint or one of its numbers is missing, or the length is wrong.
    """
    if state.interface == "float64_multi_array":
        return _vector(message.data, len(state.entries), f"state on '{state.topic}'")
    place = {name: index for index, name in enumerate(message.name)}
    values = np.empty(len(state.entries), np.float64)
    for index, entry in enumerate(state.entries):
        numbers = getattr(message, entry.field)
        joint = place.get(entry.joint_name, -1)
        if joint < 0:
            near = nearest(entry.joint_name, place) or f", the joints are {list(place)}"
            raise ObservationInvalid(f"state on '{state.topic}': no joint '{entry.joint_name}'{near}")
        if joint >= len(numbers):
            raise ObservationInvalid(
                f"state on '{state.topic}': expected the {entry.field} of '{entry.joint_name}', found none"
            )
        values[index] = numbers[joint]
    return values


def state_message(values: npt.NDArray[np.floating], state: State, stamp_ns: int) -> Any:
    """Returns the message of the state's topic that `state_values` reads `values` [S] from."""
    kind = message_class(STATE_TYPES[state.interface])
    if state.interface == "float64_multi_array":
        layout = _labelled_layout(len(state.entries), stamp_ns)
        return kind(layout, np.asarray(values, np.float64))
    joints = list(dict.fromkeys(entry.joint_name for entry in state.entries))
    numbers: dict[str, npt.NDArray[np.float64]] = {}
    for entry, value in zip(state.entries, values, strict=True):
        column = numbers.setdefault(entry.field, np.full(len(joints), np.nan))
        column[joints.index(entry.joint_name)] = value
    fields = [numbers.get(field, np.zeros(0)) for field in ("position", "velocity", "effort")]
    return kind(make_header(stamp_ns), joints, *fields)


def command_values(message: Any, action: Action, period: float) -> npt.NDArray[np.float64]:
    """Returns the action vector float64 [D] that a message of the command topic asks for.

    Args:
        message: JointTrajectory, Float64MultiArray or TwistStamped.
        action: of the embodiment.
        period: of control [s]. Of a trajectory the first point at or after it counts, else the last one.

    Raises:
        ObservationInvalid: a joint is missing, the length is wrong, or the trajectory is empty.
    """
    where = f"command on '{action.topic}'"
    names = [dimension.name for dimension in action.dimensions]
    if action.interface == "float64_multi_array":
        return _vector(message.data, len(names), where)
    if action.interface == "twist_stamped":
        axes = [name.split(".") for name in names]
        return np.array([getattr(getattr(message.twist, part), axis) for part, axis in axes], np.float64)
    if not message.points:
        raise ObservationInvalid(f"{where}: expected at least one trajectory point, found none")
    point = next((item for item in message.points if _seconds(item) >= 0.99 * period), message.points[-1])
    place = {name: index for index, name in enumerate(message.joint_names)}
    if missing := [name for name in names if place.get(name, len(point.positions)) >= len(point.positions)]:
        raise ObservationInvalid(
            f"{where}: expected a position of '{missing[0]}', found the joints {list(place)} with "
            f"{len(point.positions)} positions"
        )
    return np.array([point.positions[place[name]] for name in names], np.float64)


def command_message(values: npt.NDArray[np.floating], action: Action, stamp_ns: int, period: float) -> Any:
    """Returns the message of the command topic that `command_values` reads `values` [D] from.

    Args:
        values: of the action dimensions.
        action: of the embodiment.
        stamp_ns: of the observation that it answers [ns].
        period: of control [s]; when a trajectory's point is reached.
    """
    kind = message_class(COMMAND_TYPES[action.interface])
    numbers = np.asarray(values, np.float64)
    if action.interface == "float64_multi_array":
        return kind(_labelled_layout(len(numbers), stamp_ns), numbers)
    header = make_header(stamp_ns, action.frame_id)
    if action.interface == "twist_stamped":
        vector = message_class("geometry_msgs/msg/Vector3")
        parts = {"linear": vector(0.0, 0.0, 0.0), "angular": vector(0.0, 0.0, 0.0)}
        for dimension, number in zip(action.dimensions, numbers, strict=True):
            part, axis = dimension.name.split(".")
            setattr(parts[part], axis, float(number))
        return kind(header, message_class("geometry_msgs/msg/Twist")(**parts))
    empty = np.zeros(0)
    seconds, nanoseconds = divmod(round(period * SECOND_NS), SECOND_NS)
    reached = message_class("builtin_interfaces/msg/Duration")(seconds, nanoseconds)
    point = message_class("trajectory_msgs/msg/JointTrajectoryPoint")(numbers, empty, empty, empty, reached)
    return kind(header, [dimension.name for dimension in action.dimensions], [point])


def _labelled_layout(size: int, stamp_ns: int) -> Any:
    dimension = message_class("std_msgs/msg/MultiArrayDimension")
    label = f"{STAMP_LABEL}{stamp_ns}"
    return message_class("std_msgs/msg/MultiArrayLayout")([dimension(label, size, size)], 0)


def _seconds(point: Any) -> float:
    return float(point.time_from_start.sec + point.time_from_start.nanosec / SECOND_NS)


def _vector(data: Sequence[float], size: int, where: str) -> npt.NDArray[np.float64]:
    if len(data) != size:
        raise ObservationInvalid(f"{where}: expected {size} numbers, found {len(data)}")
    return np.asarray(data, np.float64)
