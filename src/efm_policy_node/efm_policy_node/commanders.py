"""Who else could command a robot: other publishers on its command topic, as the graph shows them.

Two commanders on one topic fight over the robot, and neither notices. A node that also receives the topic
is the robot itself (a simulator's expert answers on it) and does not count, nor do nodes that are known to
wait for their turn (a teleoperation node). Left out: publishers that come and go between two looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rclpy.node import Node

# What the graph calls an endpoint whose node it does not know (yet).
NAMELESS = "_NODE_NAME_UNKNOWN_"


@dataclass(frozen=True)
class Rivals:
    """Other commanders.

    Attributes:
        names: Fully qualified names, sorted.
        fleeting: None of them has a name yet: a node that is just being discovered may turn out to be the
            robot itself.
    """

    names: tuple[str, ...]
    fleeting: bool


def find_rivals(node: Node, topic: str, known: Sequence[str] = ()) -> Rivals:
    """Looks for other commanders.

    Args:
        node: Our own node, which publishes once on the topic.
        topic: Command topic, resolved.
        known: Names (without namespace) of nodes that wait for their turn.
    """
    mine = node.get_fully_qualified_name()
    found = Counter(_full_name(info) for info in node.get_publishers_info_by_topic(topic))
    robots = {_full_name(info) for info in node.get_subscriptions_info_by_topic(topic)}
    found[mine] -= 1
    names = [
        name
        for name, count in found.items()
        if count > 0
        and (name not in robots or name.endswith(NAMELESS))
        and (name == mine or name.rpartition("/")[2] not in known)
    ]
    fleeting = all(name.endswith(NAMELESS) for name in names)
    return Rivals(tuple(sorted(names)), fleeting)


def _full_name(info: object) -> str:
    return f"{info.node_namespace.rstrip('/')}/{info.node_name}"  # type: ignore[attr-defined]
