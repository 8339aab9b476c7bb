"""The topics on which a simulated robot shows what it sees, as a real one would, and the simulator's truth
beside them.

Left out: commands, services and the clock, which `world_loop` and `node` have.
"""

from __future__ import annotations

import array

import numpy as np
from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray, Header, MultiArrayDimension

from efm_core.embodiment import Embodiment
from efm_core.image import encode_image
from efm_msgs.msg import GroundTruth
from efm_ros.conversion import ns_to_stamp, rgb_to_image
from efm_ros.names import in_robot
from efm_ros.qos import EVENTS, IMAGES
from efm_sim.lockstep import Snapshot
from efm_sim.world import Observation


class RobotTopics:
    """Publishes snapshots of one robot; all calls come from one thread."""

    def __init__(self, node: Node, embodiment: Embodiment, robot: str) -> None:
        """Opens the topics that the embodiment names, camera_info beside every camera, and ground_truth."""
        self._node = node
        self._robot = robot
        self._embodiment = embodiment
        self._cameras: dict[str, Publisher] = {}
        self._camera_info: dict[str, Publisher] = {}
        for camera in embodiment.cameras:
            kind = Image if camera.transport == "raw" else CompressedImage
            topic = in_robot(robot, camera.subscribed_topic)
            self._cameras[camera.name] = node.create_publisher(kind, topic, IMAGES)
            folder, slash, _ = camera.topic.rpartition("/")
            info = in_robot(robot, f"{folder}{slash}camera_info")
            self._camera_info[camera.name] = node.create_publisher(CameraInfo, info, IMAGES)
        self._state: Publisher | None = None
        if embodiment.state is not None:
            joints = embodiment.state.interface == "joint_states"
            topic = in_robot(robot, embodiment.state.topic)
            self._state = node.create_publisher(JointState if joints else Float64MultiArray, topic, IMAGES)
        self._truth = node.create_publisher(GroundTruth, in_robot(robot, "ground_truth"), EVENTS)
        self._joints = _JointLayout(embodiment)

    def publish(self, snapshot: Snapshot) -> None:
        """Shows one observation, cameras last: who waits for all inputs is then woken once."""
        stamp = ns_to_stamp(snapshot.stamp_ns)
        truth = GroundTruth(success=snapshot.truth.success, distance=float(snapshot.truth.distance))
        truth.header.stamp = stamp
        self._truth.publish(truth)
        if self._state is not None:
            self._state.publish(self._state_message(snapshot))
        for camera in self._embodiment.cameras:
            header = Header(stamp=stamp, frame_id=in_robot(self._robot, f"{camera.name}_optical"))
            picture = snapshot.observation.images[camera.name]
            if self._camera_info[camera.name].get_subscription_count():
                height, width = picture.shape[:2]
                self._camera_info[camera.name].publish(CameraInfo(header=header, height=height, width=width))
            if camera.transport == "raw":
                self._cameras[camera.name].publish(rgb_to_image(picture, header))
            else:
                coded = CompressedImage(header=header, format="png", data=encode_image(picture, "png"))
                self._cameras[camera.name].publish(coded)

    def close(self) -> None:
        """Closes the topics."""
        publishers = [*self._cameras.values(), *self._camera_info.values(), self._truth]
        for publisher in [*publishers, *([self._state] if self._state is not None else [])]:
            self._node.destroy_publisher(publisher)

    def _state_message(self, snapshot: Snapshot) -> JointState | Float64MultiArray:
        observation = snapshot.observation
        if self._embodiment.state is not None and self._embodiment.state.interface == "joint_states":
            message = self._joints.message(observation)
            message.header.stamp = ns_to_stamp(snapshot.stamp_ns)
            return message
        size = len(observation.state)
        values = array.array("d", observation.state.astype(np.float64).tobytes())
        found = Float64MultiArray(data=values)
        # Arrays have no header: the stamp travels in the label, as in commands.
        found.layout.dim = [
            MultiArrayDimension(label=f"stamp_ns={snapshot.stamp_ns}", size=size, stride=size)
        ]
        return found


class _JointLayout:
    """Where each number of the state vector stands in a JointState; one joint may have a position and a
    velocity.
    """

    def __init__(self, embodiment: Embodiment) -> None:
        entries = embodiment.state.entries if embodiment.state is not None else ()
        self._names = list(dict.fromkeys(entry.joint_name for entry in entries))
        self._places = {
            field: [
                (i, self._names.index(entry.joint_name))
                for i, entry in enumerate(entries)
                if entry.field == field
            ]
            for field in ("position", "velocity", "effort")
        }

    def message(self, observation: Observation) -> JointState:
        message = JointState(name=self._names)
        for field, places in self._places.items():
            if places:
                column = np.full(len(self._names), np.nan)
                for index, joint in places:
                    column[joint] = observation.state[index]
                setattr(message, field, array.array("d", column.tobytes()))
        return message
