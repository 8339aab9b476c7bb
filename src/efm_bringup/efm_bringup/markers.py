"""What RViz shows of one robot: markers made of a `Look`, a `Scene` and the newest numbers.

Every marker stands in the frame that it is about (effector, camera or base), without a stamp, so that RViz
puts it where that frame is now. Left out: frames (`frames.py`) and when to publish (`view_node.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from geometry_msgs.msg import Point
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from efm_bringup.look import Colour, Look
from efm_bringup.scene import Effector, Scene, SceneCamera
from efm_ros.names import in_robot

Vector = npt.NDArray[np.float64]

EFFECTOR, TARGET, ARROW, TRAIL = range(4)  # Ids, 10 apart for every effector.
SPACE, TEXT, BAR, BAR_LEFT, THRESHOLD, GOAL, CAMERAS = range(100, 107)
EFFECTOR_IDS = 10
TRAIL_LENGTH = 300
BAR_WIDTH, BAR_THICKNESS, TEXT_HEIGHT, DOT = 0.5, 0.03, 0.06, 0.04  # Shares of the working space's size.


@dataclass(frozen=True)
class Frames:
    """Names of a robot's frames."""

    robot: str
    scene: Scene

    @property
    def base(self) -> str:
        """Frame that poses of the scene are in."""
        return in_robot(self.robot, self.scene.base or "base")

    def effector(self, effector: Effector) -> str:
        """Frame of an effector."""
        return in_robot(self.robot, effector.frame or effector.name)

    def camera(self, name: str) -> str:
        """Optical frame of a camera."""
        return in_robot(self.robot, f"{name}_optical")


class RobotMarkers:
    """Makes the markers of one robot; remembers where its effectors have been in this episode."""

    def __init__(self, robot: str, scene: Scene) -> None:
        self._robot = robot
        self._scene = scene
        self._frames = Frames(robot, scene)
        self._trails: dict[str, list[Vector]] = {effector.name: [] for effector in scene.effectors}
        self._trail_of = ("", 0)

    def make(
        self, look: Look, state: Mapping[str, float] | None, command: Mapping[str, float]
    ) -> list[Marker]:
        """Returns everything that is to be seen now; what is no more is deleted by a marker too.

        Args:
            look: How the robot looks.
            state: Entries of the state by name; None: not known.
            command: Last command of the running episode by name; empty: none.
        """
        if look.episode_id:
            episode_id, step = self._trail_of
            if (
                look.episode_id != episode_id or look.step < step
            ):  # A bag that is played in a loop begins anew.
                for trail in self._trails.values():
                    trail.clear()
            self._trail_of = (look.episode_id, look.step)
        markers = [self._space(look), *self._cameras()]
        for index, effector in enumerate(self._scene.effectors):
            markers += self._effector(index * EFFECTOR_IDS, effector, look, state, command)
        return [*markers, *self._goal(look, state), *self._board(look)]

    def _effector(
        self,
        first: int,
        effector: Effector,
        look: Look,
        state: Mapping[str, float] | None,
        command: Mapping[str, float],
    ) -> Iterator[Marker]:
        size = self._scene.size
        dot = self._marker(
            first + EFFECTOR, Marker.SPHERE, self._frames.effector(effector), look.control_colour
        )
        dot.scale.x = dot.scale.y = dot.scale.z = DOT * size
        yield dot
        target = None if state is None or effector.frame else effector.goal_of(state, command or {})
        if state is None or effector.frame or target is None or not command:
            yield from (self._gone(first + item) for item in (TARGET, ARROW))
        else:
            place = effector.pose(state).position
            ball = self._marker(first + TARGET, Marker.SPHERE, self._frames.base, look.control_colour, 0.5)
            ball.pose.position = _point(target)
            ball.scale.x = ball.scale.y = ball.scale.z = 0.6 * DOT * size
            arrow = self._marker(first + ARROW, Marker.ARROW, self._frames.base, look.control_colour)
            arrow.points = [_point(place), _point(target)]
            arrow.scale.x, arrow.scale.y = 0.2 * DOT * size, 0.5 * DOT * size
            yield from (ball, arrow)
        if state is not None and not effector.frame:
            yield self._trail(first + TRAIL, effector, look, state)

    def _trail(self, number: int, effector: Effector, look: Look, state: Mapping[str, float]) -> Marker:
        trail = self._trails[effector.name]
        if look.running:
            trail.append(effector.pose(state).position)
            del trail[:-TRAIL_LENGTH]
        if len(trail) < 2:
            return self._gone(number)
        line = self._marker(number, Marker.LINE_STRIP, self._frames.base, look.success_colour, 0.6)
        line.scale.x = 0.1 * DOT * self._scene.size
        line.points = [_point(place) for place in trail]
        return line

    def _space(self, look: Look) -> Marker:
        """The outline of the working space, in the colour of success."""
        (x, y, z), (far_x, far_y, _) = self._scene.low, self._scene.high
        line = self._marker(SPACE, Marker.LINE_STRIP, self._frames.base, look.success_colour, 0.8)
        line.scale.x = 0.2 * DOT * self._scene.size
        corners = ((x, y), (far_x, y), (far_x, far_y), (x, far_y), (x, y))
        line.points = [_point((*corner, z)) for corner in corners]
        return line

    def _board(self, look: Look) -> Iterator[Marker]:
        """Text and bar behind the working space: instruction, steps to go, who has control."""
        size = self._scene.size
        middle = 0.5 * (self._scene.low[1] + self._scene.high[1])
        behind = self._scene.high[0] + 0.15 * size
        foot = self._scene.low[2] + 0.1 * size
        text = self._marker(TEXT, Marker.TEXT_VIEW_FACING, self._frames.base, look.success_colour)
        text.pose.position = _point((behind, middle, foot + 0.2 * size))
        text.scale.z = TEXT_HEIGHT * size
        lines = (
            look.robot,
            look.instruction,
            look.distance,
            " - ".join(filter(None, (look.verdict, look.control))),
        )
        text.text = "\n".join(filter(None, lines))
        yield text
        if not look.judged or look.greatest <= 0:
            yield from (self._gone(item) for item in (BAR, BAR_LEFT, THRESHOLD))
            return
        # y points left: the bar's zero is on the left for who looks along x.
        full = BAR_WIDTH * size
        filled = full * min(1.0, max(0.0, look.steps_to_go / _scale_of(look)))
        for number, width, colour, alpha in (
            (BAR, full, (60, 60, 60), 0.5),
            (BAR_LEFT, filled, look.success_colour, 1.0),
        ):
            bar = self._marker(number, Marker.CUBE, self._frames.base, colour, alpha)
            bar.pose.position = _point((behind, middle + 0.5 * full - 0.5 * width, foot))
            bar.scale.x = bar.scale.z = BAR_THICKNESS * size * (1.0 if number == BAR else 1.2)
            bar.scale.y = max(width, 1e-4)
            yield bar
        if not math.isfinite(look.threshold):
            yield self._gone(THRESHOLD)
            return
        tick = self._marker(THRESHOLD, Marker.CUBE, self._frames.base, (240, 240, 240))
        share = min(1.0, max(0.0, look.threshold / _scale_of(look)))
        tick.pose.position = _point((behind, middle + 0.5 * full - share * full, foot))
        tick.scale.x = tick.scale.z = 2.0 * BAR_THICKNESS * size
        tick.scale.y = 0.2 * BAR_THICKNESS * size
        yield tick

    def _goal(self, look: Look, state: Mapping[str, float] | None) -> Iterator[Marker]:
        goal = self._scene.goal
        if goal is None:
            return
        if state is None:
            yield self._gone(GOAL)
            return
        disc = self._marker(GOAL, Marker.CYLINDER, self._frames.base, look.success_colour, 0.35)
        disc.pose.position = _point(goal.place(state))
        disc.scale.x = disc.scale.y = 2.0 * goal.radius
        disc.scale.z = 0.01 * self._scene.size
        yield disc

    def _cameras(self) -> Iterator[Marker]:
        """What each camera sees, as four lines from its eye."""
        for index, camera in enumerate(self._scene.cameras):
            lines = self._marker(
                CAMERAS + index, Marker.LINE_LIST, self._frames.camera(camera.name), (120, 160, 200), 0.5
            )
            lines.scale.x = 0.05 * DOT * self._scene.size
            lines.points = [_point(point) for point in _view_lines(camera)]
            yield lines

    def _marker(self, number: int, kind: int, frame: str, colour: Colour, alpha: float = 1.0) -> Marker:
        marker = Marker(ns=self._robot, id=number, type=kind, action=Marker.ADD, frame_locked=True)
        marker.header.frame_id = frame
        marker.pose.orientation.w = 1.0
        red, green, blue = (channel / 255.0 for channel in colour)
        marker.color = ColorRGBA(r=red, g=green, b=blue, a=alpha)
        return marker

    def _gone(self, number: int) -> Marker:
        marker = Marker(ns=self._robot, id=number, action=Marker.DELETE)
        marker.header.frame_id = self._frames.base
        return marker


def gather(markers: Sequence[Marker]) -> MarkerArray:
    """Makes one message of all markers."""
    return MarkerArray(markers=list(markers))


def _scale_of(look: Look) -> float:
    """The end of the bar: the greatest prediction of this episode, so that its fall can be seen."""
    return max(1.0, min(look.greatest, max(look.curve, default=look.greatest)))


def _view_lines(camera: SceneCamera) -> list[tuple[float, float, float]]:
    """Pairs of points, in the optical frame; square pictures are assumed."""
    depth = float(np.linalg.norm(np.subtract(camera.look_at, camera.eye)))
    half = depth * math.tan(math.radians(camera.fov_deg) / 2.0)
    corners = [(-half, -half, depth), (half, -half, depth), (half, half, depth), (-half, half, depth)]
    edges = [point for index in range(4) for point in (corners[index], corners[(index + 1) % 4])]
    return [point for corner in corners for point in ((0.0, 0.0, 0.0), corner)] + edges


def _point(values: Sequence[float] | Vector) -> Point:
    x, y, z = (float(value) for value in values)
    return Point(x=x, y=y, z=z)
