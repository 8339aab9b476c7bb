"""The annotate node: pictures with instruction, steps-to-go and who acts, on `annotated` of every robot.

All robots together are on `~/fleet`. Nothing is received, drawn or sent while nobody subscribes. Left out:
more pictures a second than people can see, and anything that acts.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.publisher import Publisher
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from rclpy.timer import Timer
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from efm_bringup.annotation import annotate, tile
from efm_bringup.robot_feed import RobotFeed
from efm_core.embodiment import Camera, Embodiment, load_embodiment
from efm_core.errors import EfmError
from efm_ros.conversion import compressed_to_rgb, image_to_rgb, rgb_to_image
from efm_ros.lifecycle import OK, EfmLifecycleNode, NodeParameters, run_node
from efm_ros.names import in_robot
from efm_ros.parameters import param
from efm_ros.qos import COMMANDS, IMAGES

LOOK_PERIOD_S = 0.5  # How often it is checked whether somebody subscribes.


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotateParameters(NodeParameters):
    """Parameters of the node."""

    robots: tuple[str, ...] = param(
        ("",), description="Namespaces of the robots; '' is the node's own namespace."
    )
    embodiment: str = param(description="Embodiment of the robots, by name or path.")
    width: int = param(480, low=160, high=3840, unit="px", description="Of a robot's picture.")
    rate: float = param(30.0, low=0.1, high=200.0, unit="Hz", description="Greatest rate (wall time).")


class _Eye:
    """The newest picture of one camera: live, or as an episode that is played back has it."""

    def __init__(self, node: EfmLifecycleNode, robot: str, camera: Camera) -> None:
        self._node = node
        self._live = in_robot(robot, camera.subscribed_topic)
        self._played = in_robot(robot, camera.recorded_topic)
        self._compressed = camera.transport == "compressed"
        self._subscription: Subscription | None = None
        self._topic = ""
        self._data: bytes | None = None
        self.picture: np.ndarray | None = None
        self.fresh = False

    def choose(self) -> None:
        """Subscribes to what is published."""
        count = self._node.count_publishers
        topic = self._live if count(self._live) or not count(self._played) else self._played
        if topic == self._topic:
            return
        self.close()
        self._topic = topic
        kind = CompressedImage if self._compressed or topic == self._played else Image
        self._subscription = self._node.create_subscription(kind, topic, self._take, IMAGES, raw=True)
        self._kind = kind

    def read(self) -> None:
        """Decodes what has come; a picture that cannot be read is left out."""
        data, self._data = self._data, None
        self.fresh = False
        if data is None:
            return
        message = deserialize_message(data, self._kind)
        try:
            self.picture = image_to_rgb(message) if self._kind is Image else compressed_to_rgb(message)
            self.fresh = True
        except EfmError as error:
            self._node.get_logger().warning(f"{self._topic}: {error}", throttle_duration_sec=10.0)

    def close(self) -> None:
        """Ends the subscription."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None
        self._topic = ""

    def _take(self, data: bytes) -> None:
        self._data = data


class _Watched:
    """One robot that somebody looks at."""

    def __init__(self, node: EfmLifecycleNode, embodiment: Embodiment, robot: str) -> None:
        self.feed = RobotFeed(node, embodiment, robot)
        self.eyes = [_Eye(node, robot, camera) for camera in embodiment.cameras]
        self.last: np.ndarray | None = None
        self.choose()

    def choose(self) -> None:
        for eye in self.eyes:
            eye.choose()

    def draw(self, width: int) -> bool:
        """Draws anew where there is a new picture, or no camera at all; returns whether it did."""
        for eye in self.eyes:
            eye.read()
        if self.eyes and not any(eye.fresh for eye in self.eyes):
            return False
        pictures = [eye.picture for eye in self.eyes if eye.picture is not None]
        self.last = annotate(pictures, self.feed.look(), width)
        return True

    def close(self) -> None:
        self.feed.close()
        for eye in self.eyes:
            eye.close()


class AnnotateNode(EfmLifecycleNode):
    """See the file's description."""

    Parameters = AnnotateParameters
    parameters: AnnotateParameters

    def __init__(self, **options: Any) -> None:
        """Declares the parameters."""
        super().__init__("annotate", **options)
        self._outlets: dict[str, Publisher] = {}
        self._fleet: Publisher | None = None
        self._watched: dict[str, _Watched] = {}
        self._beats: list[Timer] = []
        self._drawn = 0

    def acquire(self) -> None:
        """Offers the topics."""
        self._embodiment = load_embodiment(self.parameters.embodiment)
        for robot in self.parameters.robots:
            self._outlets[robot] = self.create_publisher(Image, in_robot(robot, "annotated"), COMMANDS)
        self._fleet = self.create_publisher(Image, "~/fleet", COMMANDS)

    def start(self) -> None:
        """Begins to look for subscribers."""
        # Steady: simulated time stands still while robots rest.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._beats = [
            self.create_timer(LOOK_PERIOD_S, self._look_for_watchers, clock=steady),
            self.create_timer(1.0 / self.parameters.rate, self._draw, clock=steady),
        ]

    def stop(self) -> None:
        """Draws no more."""
        for timer in self._beats:
            self.destroy_timer(timer)
        self._beats.clear()
        for watched in self._watched.values():
            watched.close()
        self._watched.clear()

    def release(self) -> None:
        """Closes the topics."""
        for publisher in self._outlets.values():
            self.destroy_publisher(publisher)
        self._outlets.clear()
        if self._fleet is not None:
            self.destroy_publisher(self._fleet)
            self._fleet = None

    def update_diagnostics(self) -> None:
        """Tells who is looked at."""
        names = ", ".join(robot or "the robot" for robot in self._watched)
        self.diagnose(
            "annotated", OK, f"somebody looks at {names}" if names else "nobody looks", drawn=self._drawn
        )

    def _look_for_watchers(self) -> None:
        assert self._fleet is not None
        all_of_them = self._fleet.get_subscription_count() > 0
        for robot, publisher in self._outlets.items():
            if not all_of_them and publisher.get_subscription_count() == 0:
                if (ended := self._watched.pop(robot, None)) is not None:
                    ended.close()
            elif robot in self._watched:
                self._watched[robot].choose()
            else:
                self._watched[robot] = _Watched(self, self._embodiment, robot)

    def _draw(self) -> None:
        assert self._fleet is not None
        stamp = self.get_clock().now().to_msg()
        anything = False
        for robot, watched in self._watched.items():
            if not watched.draw(self.parameters.width):
                continue
            anything = True
            self._drawn += 1
            assert watched.last is not None
            if self._outlets[robot].get_subscription_count():
                header = Header(stamp=stamp, frame_id=in_robot(robot, "annotated"))
                self._outlets[robot].publish(rgb_to_image(watched.last, header))
        if anything and self._fleet.get_subscription_count():
            images = [watched.last for watched in self._watched.values() if watched.last is not None]
            self._fleet.publish(rgb_to_image(tile(images), Header(stamp=stamp, frame_id="annotated")))


def main(args: Sequence[str] | None = None) -> int:
    """Runs until SIGINT or SIGTERM; returns the exit code."""
    return run_node(AnnotateNode, args)


if __name__ == "__main__":
    sys.exit(main())
