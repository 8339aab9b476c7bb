"""Frames of a fleet as tf2 messages: bases side by side, cameras where they stand, effectors where they are.

Published with plain publishers, since tf2_ros is not to be had on a bare machine. Left out: frames of robots
that publish their own, and one for every link of an arm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TransformStamped

from efm_bringup.markers import Frames
from efm_bringup.scene import Pose, Scene

WORLD = "world"


def fixed_frames(
    robots: tuple[str, ...], scene: Scene, spacing: float, stamp: Time
) -> list[TransformStamped]:
    """Returns the frames of a fleet that never move.

    Args:
        robots: Entries of the node's `robots`.
        scene: That all of them share.
        spacing: Distance of their bases [m], in a grid.
        stamp: Of the messages.
    """
    found = []
    columns = math.ceil(math.sqrt(len(robots)))
    for index, robot in enumerate(robots):
        frames = Frames(robot, scene)
        if not scene.base:
            row, column = divmod(index, columns)
            place = Pose(np.array([-row * spacing, -column * spacing, 0.0]), np.eye(3))
            found.append(_transform(WORLD, frames.base, place, stamp))
        found += [
            _transform(frames.base, frames.camera(camera.name), camera.pose(), stamp)
            for camera in scene.cameras
        ]
    return found


def moving_frames(
    robot: str, scene: Scene, state: Mapping[str, float], stamp: Time
) -> list[TransformStamped]:
    """Returns the frames of a robot's effectors in a state."""
    frames = Frames(robot, scene)
    return [
        _transform(frames.base, frames.effector(effector), effector.pose(state), stamp)
        for effector in scene.effectors
        if not effector.frame
    ]


def _transform(parent: str, child: str, pose: Pose, stamp: Time) -> TransformStamped:
    message = TransformStamped(child_frame_id=child)
    message.header.stamp = stamp
    message.header.frame_id = parent
    move, turn = message.transform.translation, message.transform.rotation
    move.x, move.y, move.z = (float(value) for value in pose.position)
    turn.x, turn.y, turn.z, turn.w = (float(value) for value in pose.quaternion())
    return message
