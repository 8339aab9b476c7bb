"""Embodiments for tests, as the plain values that YAML gives, and as embodiments."""

from __future__ import annotations

import copy
from typing import Any

from efm_core.embodiment import Embodiment

TABLE: dict[str, Any] = {
    "name": "table",
    "control_rate_hz": 10.0,
    "max_steps": 200,
    "dry_run": False,
    "cameras": [
        {
            "name": "top",
            "topic": "camera/top/image_raw",
            "transport": "raw",
            "width": 8,
            "height": 6,
            "frames": 2,
        }
    ],
    "state": {
        "topic": "joint_states",
        "interface": "joint_states",
        "entries": [
            {"name": "x", "unit": "m", "low": -0.3, "high": 0.3},
            {"name": "y", "unit": "m", "low": -0.3, "high": 0.3},
        ],
    },
    "action": {
        "interface": "float64_multi_array",
        "topic": "commands",
        "hold_still": "zero",
        "dimensions": [
            {"name": "dx", "low": -0.03, "high": 0.03, "bins": 21, "unit": "m", "max_rate": float("inf")},
            {
                "name": "grip",
                "low": 0.0,
                "high": 1.0,
                "bins": 2,
                "unit": "1",
                "max_rate": 1.0,
                "gripper": True,
            },
        ],
    },
    "steps_to_go": {"bins": 50, "width": 4},
    "reset": {"method": "service", "service": "reset"},
}
NOTHING = object()


def table(**changes: Any) -> dict[str, Any]:
    """TABLE with values changed at keys such as cameras__0__width=9; NOTHING removes a key."""
    plain = copy.deepcopy(TABLE)
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("__")]
        place: Any = plain
        for part in parents:
            place = place[part]
        if value is NOTHING:
            del place[last]
        else:
            place[last] = value
    return plain


def table_robot(**changes: Any) -> Embodiment:
    return Embodiment.from_dict(table(**changes), where="table.yaml")


def arm_robot(*, hold_still: str = "measured", **limits: Any) -> Embodiment:
    """Two joints by position and a gripper whose position is not measured."""
    joint = {"low": -1.0, "high": 1.0, "bins": 5, "unit": "rad", "max_rate": 2.0, **limits}
    gripper = {"name": "gripper", "low": 0.0, "high": 1.0, "bins": 2, "unit": "1", "max_rate": 100.0}
    return Embodiment.from_dict(
        {
            "name": "arm",
            "control_rate_hz": 10,
            "max_steps": 10,
            "state": {
                "topic": "joint_states",
                "interface": "joint_states",
                "entries": [
                    {"name": "elbow_position", "joint": "elbow", "unit": "rad", "low": -1, "high": 1},
                    {"name": "shoulder", "unit": "rad", "low": -1, "high": 1},
                ],
            },
            "action": {
                "interface": "joint_trajectory",
                "topic": "arm/joint_trajectory",
                "hold_still": hold_still,
                "dimensions": [
                    {"name": "shoulder", **joint},
                    {"name": "elbow", **joint},
                    {**gripper, "gripper": True},
                ],
            },
            "steps_to_go": {"bins": 5, "width": 1},
            "reset": {"method": "person"},
        }
    )
