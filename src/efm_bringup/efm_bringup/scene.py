"""Where things are in the world of an embodiment: effectors, targets, cameras, goal; as numbers, without ROS.

`config/scenes/<embodiment>.yaml` says how poses follow from the state and from commands. It is for people who
look on; nothing acts or learns by it. Frames as in REP 103: x forward, y left, z up; a camera's optical frame
has z forward, x right, y down. Left out: robots that publish their own frames, whose scene only names them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from efm_bringup.config import share_folder
from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest
from efm_core.strict_record import Fault, read_record, read_yaml, setting

Vector = npt.NDArray[np.float64]
Values = Mapping[str, float]


@dataclass(frozen=True)
class Pose:
    """A frame in another: `position` [3] in metres, `rotation` [3, 3] whose columns are the frame's axes."""

    position: Vector
    rotation: Vector

    def quaternion(self) -> tuple[float, float, float, float]:
        """Returns the rotation as (x, y, z, w), w not negative."""
        m = self.rotation
        # The largest component is computed first: nothing is then divided by a small number.
        squares = np.array(
            [
                1 + m[0, 0] - m[1, 1] - m[2, 2],
                1 - m[0, 0] + m[1, 1] - m[2, 2],
                1 - m[0, 0] - m[1, 1] + m[2, 2],
                1 + m[0, 0] + m[1, 1] + m[2, 2],
            ]
        )
        largest = int(np.argmax(squares))
        x, y, z, w = range(4)
        products = {
            frozenset((x, y)): m[1, 0] + m[0, 1],
            frozenset((x, z)): m[0, 2] + m[2, 0],
            frozenset((y, z)): m[2, 1] + m[1, 2],
            frozenset((w, x)): m[2, 1] - m[1, 2],
            frozenset((w, y)): m[0, 2] - m[2, 0],
            frozenset((w, z)): m[1, 0] - m[0, 1],
        }
        scale = 2.0 * math.sqrt(squares[largest])
        found = [
            squares[largest] / scale if index == largest else products[frozenset((index, largest))] / scale
            for index in range(4)
        ]
        sign = -1.0 if found[w] < 0 else 1.0
        return tuple(sign * value for value in found)  # type: ignore[return-value]


@dataclass(frozen=True)
class Link:
    """One link of an arm: where it begins on the one before, and the joint that turns it.

    Attributes:
        at: from the link before [m], three numbers.
        joint: name of the state entry and action dimension [rad]; empty: it is fixed.
        axis: that it turns about, in the frame of the link before.
        angle: added to the joint's [rad].
    """

    at: tuple[float, ...] = setting((0.0, 0.0, 0.0))
    joint: str = setting("")
    axis: tuple[float, ...] = setting((0.0, 0.0, 1.0))
    angle: float = setting(0.0)

    def contradictions(self) -> Iterator[Fault]:
        """Yields the faults of values that do not go together."""
        yield from _not_three(self, "at", "axis")


@dataclass(frozen=True)
class Effector:
    """What a robot moves.

    Attributes:
        name: of its frame.
        frame: a frame that others publish, which is then used instead; empty: made from the rest.
        position: names of the state entries that are its x, y and z; empty: 0.
        offset: added to these [m].
        target: names of the action dimensions that move it along x, y and z; empty: none.
        gain: metres that a target is off the effector, for one unit of the command.
        links: of an arm, instead of `position` and `target`: poses follow from joints, targets from
            commanded joints.
    """

    name: str = setting("effector")
    frame: str = setting("")
    position: tuple[str, ...] = setting(("", "", ""))
    offset: tuple[float, ...] = setting((0.0, 0.0, 0.0))
    target: tuple[str, ...] = setting(("", "", ""))
    gain: float = setting(1.0)
    links: tuple[Link, ...] = setting(())

    def contradictions(self) -> Iterator[Fault]:
        """Yields the faults of values that do not go together."""
        yield from _not_three(self, "position", "offset", "target")

    def pose(self, state: Values) -> Pose:
        """Returns where it is in the base frame; `state` gives every entry by name."""
        if self.links:
            return self._along(state)
        return Pose(_pick(self.position, state) + np.array(self.offset), np.eye(3))

    def goal_of(self, state: Values, command: Values) -> Vector | None:
        """Returns where a command sends it, [3] in the base frame; None where it says nothing of that."""
        if self.links:
            joints = [link.joint for link in self.links if link.joint]
            return self._along(command).position if all(joint in command for joint in joints) else None
        if not any(self.target):
            return None
        return self.pose(state).position + self.gain * _pick(self.target, command)

    def names(self) -> tuple[set[str], set[str]]:
        """Returns the names of the state entries and of the action dimensions that it looks at."""
        joints = {link.joint for link in self.links if link.joint}
        return ({*self.position, *joints} - {""}), ({*self.target, *joints} - {""})

    def _along(self, joints: Values) -> Pose:
        position, rotation = np.zeros(3), np.eye(3)
        for link in self.links:
            position = position + rotation @ np.array(link.at)
            angle = link.angle + (joints[link.joint] if link.joint else 0.0)
            rotation = rotation @ _turn(np.array(link.axis), angle)
        return Pose(position, rotation)


@dataclass(frozen=True)
class SceneCamera:
    """Where a camera of the embodiment stands.

    Attributes:
        name: as in the embodiment.
        eye: its place [m].
        look_at: a point in the middle of its picture.
        up: what is up in the picture, roughly.
        fov_deg: vertical field of view.
    """

    name: str = setting()
    eye: tuple[float, ...] = setting()
    look_at: tuple[float, ...] = setting()
    up: tuple[float, ...] = setting((0.0, 0.0, 1.0))
    fov_deg: float = setting(45.0, above=0.0, high=170.0)

    def contradictions(self) -> Iterator[Fault]:
        """Yields the faults of values that do not go together."""
        yield from _not_three(self, "eye", "look_at", "up")
        if len(self.eye) == len(self.look_at) == len(self.up) == 3:
            forward = np.subtract(self.look_at, self.eye)
            if np.linalg.norm(np.cross(forward, self.up)) < 1e-9:
                yield Fault("up", "expected another direction than that of the view, found the same")

    def pose(self) -> Pose:
        """Returns the optical frame in the base frame."""
        forward = np.subtract(self.look_at, self.eye)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, np.array(self.up))
        right = right / np.linalg.norm(right)
        return Pose(np.array(self.eye), np.stack([right, np.cross(forward, right), forward], axis=1))


@dataclass(frozen=True)
class Goal:
    """A place that the state tells of; `position` as in `Effector`, `radius` [m]: near enough."""

    position: tuple[str, ...] = setting()
    radius: float = setting(above=0.0)

    def contradictions(self) -> Iterator[Fault]:
        """Yields the faults of values that do not go together."""
        yield from _not_three(self, "position")

    def place(self, state: Values) -> Vector:
        """Returns where it is, [3] in the base frame."""
        return _pick(self.position, state)


@dataclass(frozen=True)
class Scene:
    """What is where around one robot.

    Attributes:
        base: a frame that others publish for the robot's base; empty: it is called `base` and stands beside
            the bases of the other robots.
        low: corner of the space that the robot works in [m].
        high: the opposite corner.
        effectors: may be empty.
        cameras: those of the embodiment whose place is known.
        goal: may be None.
    """

    base: str = setting("")
    low: tuple[float, ...] = setting((-0.5, -0.5, 0.0))
    high: tuple[float, ...] = setting((0.5, 0.5, 0.5))
    effectors: tuple[Effector, ...] = setting(())
    cameras: tuple[SceneCamera, ...] = setting(())
    goal: Goal | None = setting(None)

    def contradictions(self) -> Iterator[Fault]:
        """Yields the faults of values that do not go together."""
        yield from _not_three(self, "low", "high")
        if len(self.low) == len(self.high) == 3 and np.any(np.subtract(self.high, self.low) < 0):
            yield Fault("high", f"expected at least low = {list(self.low)}, found {list(self.high)}")
        names = [effector.name for effector in self.effectors]
        if len(set(names)) != len(names):
            yield Fault("effectors", f"expected different names, found {names}")

    @property
    def size(self) -> float:
        """The longest edge of the working space [m]; what is drawn is sized by it."""
        return float(np.max(np.subtract(self.high, self.low))) or 1.0

    def misfits(self, embodiment: Embodiment) -> list[str]:
        """Returns what it names and the embodiment lacks, in words."""
        entries = {entry.name for entry in embodiment.state.entries} if embodiment.state else set()
        dimensions = {dimension.name for dimension in embodiment.action.dimensions}
        cameras = {camera.name for camera in embodiment.cameras}
        state, action = set(self.goal.position if self.goal else ()) - {""}, set()
        for effector in self.effectors:
            state, action = state | effector.names()[0], action | effector.names()[1]
        return [
            *(f"no state entry '{name}'" for name in sorted(state - entries)),
            *(f"no action dimension '{name}'" for name in sorted(action - dimensions)),
            *(f"no camera '{camera.name}'" for camera in self.cameras if camera.name not in cameras),
        ]


def load_scene(path: str, embodiment: Embodiment) -> Scene:
    """Reads the scene of an embodiment.

    Args:
        path: Of a file; empty: `config/scenes/<name of the embodiment>.yaml`, or an empty scene without one.
        embodiment: What the scene is for.

    Raises:
        BadRequest: The file cannot be read, has faults, or does not fit the embodiment.
    """
    file = Path(path).expanduser() if path else share_folder("config") / "scenes" / f"{embodiment.name}.yaml"
    if not path and not file.exists():
        return Scene()
    faults: list[Fault] = []
    try:
        scene = read_record(Scene, read_yaml(file), "", faults)
    except ValueError as error:
        raise BadRequest(str(error)) from error
    if scene is None:
        raise BadRequest("; ".join(f"{file}: {fault.key}: {fault.text}" for fault in faults))
    if misfits := scene.misfits(embodiment):
        raise BadRequest(f"{file} does not fit embodiment '{embodiment.name}': {', '.join(misfits)}")
    return scene


def _pick(names: tuple[str, ...], values: Values) -> Vector:
    return np.array([values.get(name, 0.0) for name in names], np.float64)


def _turn(axis: Vector, angle: float) -> Vector:
    """Returns the rotation by an angle [rad] about an axis, [3, 3]."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + math.sin(angle) * cross + (1.0 - math.cos(angle)) * cross @ cross


def _not_three(record: object, *keys: str) -> Iterator[Fault]:
    for key in keys:
        found = getattr(record, key)
        if len(found) != 3:
            yield Fault(key, f"expected three values (x, y, z), found {len(found)}")
