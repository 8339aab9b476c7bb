"""The parts of an embodiment: cameras, state, action, steps-to-go and reset, each with its own rules.

A field is declared once, with its type and bounds; values that contradict one another are found by
`contradictions`. Rules between the parts, reading and hashing are in `embodiment`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from efm_core.errors import nearest
from efm_core.strict_record import Fault, setting

# Units of states and actions: SI and radians; "1" is a number without a unit.
Unit = Literal[
    "1", "m", "rad", "s", "kg", "m/s", "rad/s", "m/s^2", "rad/s^2", "N", "N*m", "A", "V", "K", "px"
]
Interface = Literal["joint_trajectory", "follow_joint_trajectory", "float64_multi_array", "twist_stamped"]
# Names of action dimensions for the interface twist_stamped: the six fields of geometry_msgs/Twist.
TWIST_AXES = ("linear.x", "linear.y", "linear.z", "angular.x", "angular.y", "angular.z")

_WORD = r"[A-Za-z][A-Za-z0-9_]*"
_ROS_NAME = r"(~?/)?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*"


def word() -> Any:
    """Declares a required field for a name that becomes a part of other names."""
    return setting(pattern=_WORD, meaning="a name of letters, digits and _ that begins with a letter")


def _topic() -> Any:
    return setting(pattern=_ROS_NAME, meaning="a ROS name such as camera/top/image_raw")


def _filled() -> Any:
    return setting(pattern=r"\S(.*\S)?", meaning="a text that is not empty and has no blanks around it")


@dataclass(frozen=True)
class Camera:
    """One camera, as the model sees it.

    Attributes:
        name: part of the model's input name `observation.images.<name>`.
        topic: base name of the image topic, without "/compressed".
        transport: raw (sensor_msgs/Image on `topic`) or compressed (CompressedImage on `<topic>/compressed`).
        width: of the image given to the model [px].
        height: likewise.
        frames: T, images at successive control ticks given to the model, the newest last.
        max_age_s: an image older than this is no observation [s].
    """

    name: str = word()
    topic: str = _topic()
    transport: Literal["raw", "compressed"] = setting()
    width: int = setting(low=1, high=4096)
    height: int = setting(low=1, high=4096)
    frames: int = setting(1, low=1, high=64)
    max_age_s: float = setting(0.2, above=0)

    @property
    def subscribed_topic(self) -> str:
        """The topic that carries the images live."""
        return self.topic + ("/compressed" if self.transport == "compressed" else "")

    @property
    def recorded_topic(self) -> str:
        """The topic that carries the images in an episode: always compressed, always relative."""
        return self.topic.lstrip("~/") + "/compressed"

    def contradictions(self) -> Iterator[Fault]:
        """Yields the faults of values that do not go together."""
        if self.topic.endswith("/compressed"):
            yield Fault("topic", f"expected the base name, found '{self.topic}': leave out '/compressed'")


@dataclass(frozen=True)
class StateEntry:
    """One number of the state vector.

    Attributes:
        name: what it is called in models and datasets.
        unit: one of Unit.
        low: value that the model takes as -1.
        high: value that the model takes as +1. Values beyond are allowed.
        joint: name in sensor_msgs/JointState; None: `name`. Joints are found by name, never by index.
        field: which of the joint's numbers it is.
    """

    name: str = _filled()
    unit: Unit = setting()
    low: float = setting()
    high: float = setting()
    joint: str | None = setting(None, pattern=r"\S(.*\S)?", meaning="the name of a joint")
    field: Literal["position", "velocity", "effort"] = setting("position")

    @property
    def joint_name(self) -> str:
        """The name to look for in sensor_msgs/JointState."""
        return self.name if self.joint is None else self.joint

    def contradictions(self) -> Iterator[Fault]:
        """Yields the faults of values that do not go together."""
        yield from _crossed_bounds(self)


@dataclass(frozen=True)
class State:
    """The state vector [S], its order and where it comes from.

    Attributes:
        topic: of the messages.
        interface: sensor_msgs/JointState, or std_msgs/Float64MultiArray in the order of the entries.
        entries: in the order of the state vector.
        max_age_s: a state older than this is no observation [s].
    """

    topic: str = _topic()
    interface: Literal["joint_states", "float64_multi_array"] = setting()
    entries: tuple[StateEntry, ...] = setting()
    max_age_s: float = setting(0.2, above=0)

    def contradictions(self) -> Iterator[Fault]:
        """Yields the faults of values that do not go together."""
        if not self.entries:
            yield Fault("entries", "expected at least one entry, found none: leave out `state` altogether")
        yield from repeated("entries", "name", (entry.name for entry in self.entries))
        if self.interface == "joint_states":
            pairs = (f"{entry.joint_name} ({entry.field})" for entry in self.entries)
            yield from repeated("entries", "joint", pairs)
            return
        for index, entry in enumerate(self.entries):
            if entry.joint is not None or entry.field != "position":
                text = "has a meaning only with joint_states: an array goes by its order; leave it out"
                yield Fault(f"entries[{index}].{'field' if entry.joint is None else 'joint'}", text)


@dataclass(frozen=True)
class ActionDimension:
    """One number of the action vector.

    Attributes:
        name: of the joint (joint_trajectory, follow_joint_trajectory), of the axis (TWIST_AXES), or free.
        low: least value, exactly that of the first bin.
        high: greatest value, exactly that of the last bin.
        bins: number of values that a policy chooses from, evenly spaced from low to high.
        unit: one of Unit.
        max_rate: greatest change per second [unit/s]; .inf: no limit.
        gripper: opens or closes: two bins. Holding still keeps its last command, so that nothing is dropped.
    """

    name: str = _filled()
    low: float = setting()
    high: float = setting()
    bins: int = setting(low=2, high=65535)
    unit: Unit = setting()
    max_rate: float = setting(above=0, infinite=True)
    gripper: bool = setting(False)

    def contradictions(self) -> Iterator[Fault]:
        """Yields the faults of values that do not go together."""
        yield from _crossed_bounds(self)
        step = (self.high - self.low) / (self.bins - 1)
        if 0 < step < 1e-12 * max(abs(self.low), abs(self.high)):
            yield Fault("bins", f"expected bins that differ, found steps of {step:g} near {self.high:g}")
        if self.gripper and self.bins != 2:
            text = (
                f"expected 2 for a gripper (closed, open), found {self.bins}; leave out `gripper` otherwise"
            )
            yield Fault("bins", text)


@dataclass(frozen=True)
class Action:
    """The action vector [D] and the interface that takes it.

    Attributes:
        interface: trajectory_msgs/JointTrajectory on a topic, the FollowJointTrajectory action,
            std_msgs/Float64MultiArray, or geometry_msgs/TwistStamped.
        topic: of the commands; the action's name for follow_joint_trajectory.
        dimensions: in the order of the action vector.
        frame_id: of the commands; required for twist_stamped.
        hold_still: what stops the robot. zero: all zeros (velocities, steps); measured: the measured
            positions; last: the last command once more (position targets).
        chunk: C, successive actions that the model infers at once.
        execute: how many of a chunk are executed before the next inference.
    """

    interface: Interface = setting()
    topic: str = _topic()
    dimensions: tuple[ActionDimension, ...] = setting()
    frame_id: str = setting("", pattern=r"\S*", meaning="a frame's name without blanks")
    hold_still: Literal["zero", "measured", "last"] = setting("zero")
    chunk: int = setting(1, low=1, high=1000)
    execute: int = setting(1, low=1, high=1000)

    def contradictions(self) -> Iterator[Fault]:
        """Yields the faults of values that do not go together."""
        if not self.dimensions:
            yield Fault("dimensions", "expected at least one dimension, found none")
        yield from repeated("dimensions", "name", (dimension.name for dimension in self.dimensions))
        if self.execute > self.chunk:
            yield Fault("execute", f"expected at most chunk = {self.chunk}, found {self.execute}")
        yield from self._hold_still_faults()
        if self.interface == "twist_stamped":
            if not self.frame_id:
                yield Fault("frame_id", "expected a frame such as base_link for twist_stamped, found none")
            for index, dimension in enumerate(self.dimensions):
                if dimension.name not in TWIST_AXES:
                    near = nearest(dimension.name, TWIST_AXES)
                    text = f"expected one of {', '.join(TWIST_AXES)}, found the text '{dimension.name}'{near}"
                    yield Fault(f"dimensions[{index}].name", text)

    def _hold_still_faults(self) -> Iterator[Fault]:
        """A wrong way of holding still moves the robot at the very moment it must stop."""
        if self.interface == "twist_stamped" and self.hold_still != "zero":
            yield Fault("hold_still", f"expected zero for velocities, found the text '{self.hold_still}'")
        if self.interface in ("joint_trajectory", "follow_joint_trajectory") and self.hold_still == "zero":
            text = "expected measured or last for joint positions, found zero, a pose to go to"
            yield Fault("hold_still", text)
        for index, dimension in enumerate(self.dimensions):
            if dimension.gripper:
                continue
            if self.hold_still == "zero" and not dimension.low <= 0 <= dimension.high:
                bounds = f"{dimension.low:g} .. {dimension.high:g}"
                text = f"expected bounds with 0 between them, as hold_still is zero; found {bounds}"
                yield Fault(f"dimensions[{index}].low", text)
            if self.hold_still != "zero" and "/s" in dimension.unit:
                text = f"expected zero, as '{dimension.name}' is in {dimension.unit}; found the text"
                yield Fault("hold_still", f"{text} '{self.hold_still}', with which it would go on moving")


@dataclass(frozen=True)
class StepsToGo:
    """Bins of the steps-to-go prediction.

    Attributes:
        bins: their number.
        width: control steps that each spans.
    """

    bins: int = setting(low=2, high=10000)
    width: int = setting(low=1, high=10000)


@dataclass(frozen=True)
class Reset:
    """How the scene is made ready for an episode.

    Attributes:
        method: service (efm_msgs/ResetWorld), person (somebody does it and says so), trajectory (`points` are
            driven through), policy (a policy is asked to undo the task) or none.
        service: name of the service.
        topic: of the trajectory's commands; empty: the action's topic.
        points: action vectors [D] of the trajectory.
    """

    method: Literal["service", "person", "trajectory", "policy", "none"] = setting()
    service: str = setting("reset", pattern=_ROS_NAME, meaning="a ROS name such as reset")
    topic: str = setting("", pattern=f"({_ROS_NAME})?", meaning="a ROS name or an empty text")
    points: tuple[tuple[float, ...], ...] = setting(())


def _crossed_bounds(item: StateEntry | ActionDimension) -> Iterator[Fault]:
    if not item.low < item.high:
        yield Fault("low", f"expected low < high, found low {item.low:g}, high {item.high:g} ('{item.name}')")


def repeated(key: str, what: str, names: Iterable[str]) -> Iterator[Fault]:
    """Yields a fault for every name that an earlier element has too."""
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            yield Fault(f"{key}[{index}].{what}", f"duplicate: '{name}' is {key}[{first[name]}] already")
