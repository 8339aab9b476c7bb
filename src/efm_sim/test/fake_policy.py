"""A process that answers the observations of point masses in lockstep, as fast as it can: the least policy
there is.

    python fake_policy.py robot_1 robot_2

It prints nothing and ends with SIGINT. Without episodes, actions and models: only observation in, command
out.
"""

from __future__ import annotations

import sys

import rclpy
from rclpy.node import Node
from sensor_msgs.msg import JointState

from efm_core.embodiment import load_embodiment
from efm_ros.commands import CommandChannel
from efm_ros.conversion import stamp_to_ns
from efm_ros.intake import Intake
from efm_ros.names import in_robot
from efm_ros.qos import IMAGES


def main() -> None:
    rclpy.init(args=[])
    node = Node("fake_policy")
    intake = Intake(node)
    embodiment = load_embodiment("pointmass")
    for robot in sys.argv[1:]:
        channel = CommandChannel(node, embodiment, robot, lockstep=True)
        intake.subscribe(
            JointState,
            in_robot(robot, "joint_states"),
            lambda message, channel=channel: channel.send([0.1, -0.1], stamp_to_ns(message.header.stamp)),
            IMAGES,
        )
    try:
        while rclpy.ok():
            intake.take(0.2)
    except KeyboardInterrupt:
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
