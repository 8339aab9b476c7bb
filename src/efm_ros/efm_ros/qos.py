"""The four QoS profiles of EFM, each for one kind of traffic.

A topic's kind decides its profile; nodes never build a QoSProfile of their own. Deployments can still change
a profile for one topic with ROS parameters, since `OVERRIDES` is passed where a topic is created for users'
devices (cameras).
Left out: deadlines, lifespans and liveliness. Age is judged from stamps, where simulated time counts too.
"""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions


def _profile(depth: int, reliability: ReliabilityPolicy, durability: DurabilityPolicy) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=reliability, durability=durability
    )


IMAGES = _profile(5, ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE)
"""Sensor streams (cameras, joint states): a lost message is replaced by the next one, an old one helps
nobody."""

COMMANDS = _profile(1, ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE)
"""Commands to a robot: they arrive, and only the newest counts."""

LATCHED = _profile(1, ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)
"""State that late joiners need: instruction, statuses, e-stop, takeover."""

EVENTS = _profile(50, ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE)
"""Per-step records of which none may be lost: policy_step, steps_to_go, ground_truth."""

MODELS = _profile(10, ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)
"""LATCHED for `models` and `model_status`: a late joiner sees the last ten words, not only the last one, and
those of several nodes."""

OVERRIDES = QoSOverridingOptions.with_default_policies()
"""Pass as `qos_overriding_options` to let a deployment change history, depth and reliability of that
topic."""

DEEP = 500


def deep(profile: QoSProfile, depth: int = DEEP) -> QoSProfile:
    """Gives the same profile with a long queue, for recorders, which may not skip what a loop may."""
    return _profile(depth, profile.reliability, profile.durability)
