"""Names of robots, topics and services, for nodes that serve one robot or many.

A node's parameter `robots` lists robots by namespace below the node's own; [''] is the one robot whose
namespace the node lives in. Names stay relative, so that remapping and namespaces work.
"""

from __future__ import annotations

from rclpy.node import Node


def in_robot(robot: str, name: str) -> str:
    """Gives the name of a robot's topic or service as seen from a node, for example ('robot_1', 'command').

    Absolute (`/x`) and private (`~/x`) names are left as they are.
    """
    if not robot or name.startswith(("/", "~")):
        return name
    return f"{robot.rstrip('/')}/{name}"


def robot_label(node: Node, robot: str) -> str:
    """Gives a robot's full namespace without leading slash, as messages name it; '' for none."""
    return "/".join(part.strip("/") for part in (node.get_namespace(), robot) if part.strip("/"))
