"""The view node: a fleet in RViz. Markers on `~/markers`, frames on /tf and /tf_static.

It looks at topics and commands nothing. A world in lockstep may send hundreds of states a second; this node
shows `rate` of them. Without tf2_msgs, which a bare machine lacks, there are no frames. Left out: images,
which RViz and `annotate_node` show.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.publisher import Publisher
from rclpy.timer import Timer
from visualization_msgs.msg import MarkerArray

from efm_bringup.frames import fixed_frames, moving_frames
from efm_bringup.markers import RobotMarkers, gather
from efm_bringup.robot_feed import RobotFeed
from efm_bringup.scene import Scene, load_scene
from efm_core.embodiment import load_embodiment
from efm_ros.conversion import ns_to_stamp
from efm_ros.lifecycle import OK, EfmLifecycleNode, NodeParameters, run_node
from efm_ros.parameters import param
from efm_ros.qos import COMMANDS, EVENTS, LATCHED

try:
    from tf2_msgs.msg import TFMessage
except ImportError:  # No wheel of it: bare machines have nothing that reads frames either.
    TFMessage = None

JOINING_S = 0.5  # From the first sight of a listener until it surely hears.
SPACING = 1.6  # Distance of two robots without a given one, in sizes of their working space.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewParameters(NodeParameters):
    """Parameters of the node."""

    robots: tuple[str, ...] = param(
        ("",), description="Namespaces of the robots; '' is the node's own namespace."
    )
    embodiment: str = param(description="Embodiment of the robots, by name or path.")
    scene: str = param(
        "", description="Path of the scene. Empty: the one in config/scenes named like the embodiment."
    )
    rate: float = param(
        20.0, low=0.1, high=200.0, unit="Hz", description="Of markers and frames (wall time)."
    )
    spacing: float = param(
        0.0, low=0.0, unit="m", description="Distance of robots without a place of their own. 0: as fits."
    )


class ViewNode(EfmLifecycleNode):
    """See the file's description."""

    Parameters = ViewParameters
    parameters: ViewParameters

    def __init__(self, **options: Any) -> None:
        """Declares the parameters."""
        super().__init__("view", **options)
        self._feeds: list[RobotFeed] = []
        self._drawn: dict[str, RobotMarkers] = {}
        self._outlets: list[Publisher] = []
        self._frames: Publisher | None = None
        self._timer: Timer | None = None
        self._shown: dict[str, int] = {}
        self._listeners = 0
        self._joined_s = math.inf
        self._scene = Scene()

    def acquire(self) -> None:
        """Reads the scene and listens to the robots."""
        settings = self.parameters
        embodiment = load_embodiment(settings.embodiment)
        self._scene = load_scene(settings.scene, embodiment)
        self._feeds = [RobotFeed(self, embodiment, robot) for robot in settings.robots]
        self._drawn = {robot: RobotMarkers(robot, self._scene) for robot in settings.robots}
        self._markers = self.create_publisher(MarkerArray, "~/markers", COMMANDS)
        self._outlets = [self._markers]
        if TFMessage is None:
            self.get_logger().warning(
                "no frames on /tf: tf2_msgs is not installed; it comes with a full ROS 2"
            )
            return
        self._frames = self.create_publisher(TFMessage, "/tf", EVENTS)
        self._fixed = self.create_publisher(TFMessage, "/tf_static", LATCHED)
        self._outlets += [self._frames, self._fixed]

    def start(self) -> None:
        """Shows what stands still, and from now on what moves."""
        if self._frames is not None:
            spacing = self.parameters.spacing or SPACING * self._scene.size
            stamp = self.get_clock().now().to_msg()
            fixed = fixed_frames(self.parameters.robots, self._scene, spacing, stamp)
            self._fixed.publish(TFMessage(transforms=fixed))
        # Steady: simulated time stands still while robots rest, and RViz may join then.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(1.0 / self.parameters.rate, self._show, clock=steady)

    def stop(self) -> None:
        """Shows no more."""
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None

    def release(self) -> None:
        """Closes the topics."""
        for feed in self._feeds:
            feed.close()
        for publisher in self._outlets:
            self.destroy_publisher(publisher)
        self._feeds, self._outlets, self._frames = [], [], None
        self._shown.clear()

    def update_diagnostics(self) -> None:
        """Tells of which robots there is something to show."""
        silent = [feed.robot or "the robot" for feed in self._feeds if feed.robot not in self._shown]
        message = f"no state yet of {', '.join(silent)}" if silent and self._scene.effectors else "shows"
        self.diagnose("view", OK, message, robots=len(self._feeds))

    def _show(self) -> None:
        self._greet_new_listeners()
        markers, transforms = [], []
        watched = self._markers.get_subscription_count() > 0
        for feed in self._feeds:
            found = feed.state()
            stamp_ns, state = found if found is not None else (0, None)
            if state is not None and self._shown.get(feed.robot) != stamp_ns:
                # tf2 warns of the same stamp twice, and a state that stands still needs no second one.
                self._shown[feed.robot] = stamp_ns
                transforms += moving_frames(feed.robot, self._scene, state, ns_to_stamp(stamp_ns))
            if watched:
                markers += self._drawn[feed.robot].make(feed.look(), state, feed.command())
        if transforms and self._frames is not None:
            self._frames.publish(TFMessage(transforms=transforms))
        if markers:
            self._markers.publish(gather(markers))

    def _greet_new_listeners(self) -> None:
        """Shows a newcomer where robots are that rest."""
        if self._frames is None:
            return
        listeners, now_s = self._frames.get_subscription_count(), time.monotonic()
        if listeners > self._listeners:
            self._joined_s = now_s
        elif now_s - self._joined_s > JOINING_S:
            self._joined_s = math.inf
            self._shown.clear()
        self._listeners = listeners


def main(args: Sequence[str] | None = None) -> int:
    """Runs until SIGINT or SIGTERM; returns the exit code."""
    return run_node(ViewNode, args)


if __name__ == "__main__":
    sys.exit(main())
