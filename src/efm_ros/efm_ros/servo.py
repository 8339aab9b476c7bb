"""Tells MoveIt Servo that twists will come: without that, which each of its starts undoes, it ignores them.

Left out: twists themselves (`commands`), and everything else that Servo offers.
"""

from __future__ import annotations

from typing import Any

from rclpy.node import Node

SERVICE = "switch_command_type"  # Beside the topic of twists, as in `servo_node/delta_twist_cmds`.
SERVO_TOPIC = "delta_twist_cmds"


class ServoSwitch:
    """Asks once for every start of Servo. Not thread-safe: one thread at a time calls `keep`."""

    def __init__(self, node: Node, topic: str) -> None:
        """Looks for the service beside a topic of twists; without moveit_msgs it can only warn."""
        self._node = node
        self._name = topic.removesuffix(topic.rpartition("/")[2]) + SERVICE
        self._client: Any = None
        self._asked = False
        try:
            from moveit_msgs.srv import ServoCommandType
        except ImportError:
            if topic.endswith(SERVO_TOPIC):
                node.get_logger().warning(
                    f"cannot call '{self._name}': expected the package moveit_msgs, found none; MoveIt Servo "
                    "ignores twists until somebody does: install ros-jazzy-moveit-msgs, or call it by hand"
                )
            return
        self._request = ServoCommandType.Request(command_type=ServoCommandType.Request.TWIST)
        self._client = node.create_client(ServoCommandType, self._name)

    def keep(self) -> None:
        """Called before every twist; asks if Servo has started since the last time."""
        if self._client is None:
            return
        if not self._client.service_is_ready():
            self._asked = False
        elif not self._asked:
            self._asked = True
            self._client.call_async(self._request).add_done_callback(self._answered)

    def destroy(self) -> None:
        """Gives the client back."""
        if self._client is not None:
            self._node.destroy_client(self._client)

    def _answered(self, future: Any) -> None:
        answer = future.result()
        if answer is not None and answer.success:
            self._node.get_logger().info(f"'{self._name}': twists are taken from now on")
        else:
            self._node.get_logger().error(f"'{self._name}' refused: the robot does not take twists")
