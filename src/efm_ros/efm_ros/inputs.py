"""The topics that a robot's observations are made of: its cameras and its state, as arrays.

Left out: putting them together (`efm_core.observation.ObservationAssembler`), and threads: callbacks come in
the thread of whoever takes the messages, the executor or an `Intake`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray

from efm_core.embodiment import Camera, Embodiment, State
from efm_core.errors import ObservationInvalid
from efm_core.message_values import message_stamp_ns
from efm_ros.conversion import compressed_to_rgb, image_to_rgb, stamp_to_ns, state_from_message
from efm_ros.names import in_robot
from efm_ros.qos import IMAGES


class RobotInputs:
    """Subscribes to all inputs of one robot and hands them on as arrays."""

    def __init__(
        self,
        embodiment: Embodiment,
        robot: str,
        image: Callable[[str, int, np.ndarray], object],
        state: Callable[[int, np.ndarray], object],
        invalid: Callable[[str, ObservationInvalid], object],
        now_ns: Callable[[], int],
        qos: QoSProfile = IMAGES,
    ) -> None:
        """Takes what is to be called; `subscribe` begins.

        Args:
            embodiment: Says which topics there are.
            robot: Entry of the node's `robots`.
            image: Told camera, stamp [ns] and uint8 [H, W, 3] RGB, which may be a view into the message.
            state: Told stamp [ns] and float64 [S].
            invalid: Told topic and error where a message cannot be used, or `image` or `state` raised it.
            now_ns: The robot's clock, which stamps state arrays that carry no stamp of their own.
            qos: Of all inputs; `deep(IMAGES)` for whoever may not skip any.
        """
        self._embodiment = embodiment
        self._robot = robot
        self._image = image
        self._state = state
        self._invalid = invalid
        self._now_ns = now_ns
        self._qos = qos

    def subscribe(self, subscribe: Callable[[type, str, Callable[[Any], None], Any], Any]) -> list[Any]:
        """Subscribes to everything.

        Args:
            subscribe: Called with message type, topic, callback and QoS: `Intake.subscribe`, or
                `create_subscription` of a node.

        Returns:
            What `subscribe` returned for each topic.
        """
        made = [self._subscribe_camera(subscribe, camera) for camera in self._embodiment.cameras]
        if self._embodiment.state is not None:
            made.append(self._subscribe_state(subscribe, self._embodiment.state))
        return made

    def _subscribe_camera(self, subscribe: Callable[..., Any], camera: Camera) -> Any:
        topic = in_robot(self._robot, camera.subscribed_topic)
        if camera.transport == "compressed":
            kind, convert = CompressedImage, compressed_to_rgb
        else:
            kind, convert = Image, image_to_rgb

        def take(message: Any) -> None:
            try:
                self._image(camera.name, stamp_to_ns(message.header.stamp), convert(message))
            except ObservationInvalid as error:
                self._invalid(topic, error)

        return subscribe(kind, topic, take, self._qos)

    def _subscribe_state(self, subscribe: Callable[..., Any], state: State) -> Any:
        topic = in_robot(self._robot, state.topic)
        kind = JointState if state.interface == "joint_states" else Float64MultiArray

        def take(message: Any) -> None:
            try:
                stamp_ns = message_stamp_ns(message)
                self._state(
                    self._now_ns() if stamp_ns is None else stamp_ns, state_from_message(message, state)
                )
            except ObservationInvalid as error:
                self._invalid(topic, error)

        return subscribe(kind, topic, take, self._qos)
