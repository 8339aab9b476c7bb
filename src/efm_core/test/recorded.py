"""Makes episodes for tests: a recorder without ROS that shows the same numbers every time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from efm_core.embodiment import Embodiment
from efm_core.episode import Actor, EndReason, EpisodeWriter, Mode, Outcome, Summary
from efm_core.schemas import make_header, message_class, serialize

START_NS = 1_000_000_000
PERIOD_NS = 100_000_000


def embodiment(**changes: Any) -> Embodiment:
    """A camera 32x24 with two frames, two joints, two action dimensions, 10 Hz."""
    plain: dict[str, Any] = {
        "name": "table",
        "control_rate_hz": 10.0,
        "max_steps": 200,
        "cameras": [camera()],
        "state": {
            "topic": "joint_states",
            "interface": "joint_states",
            "entries": [
                {"name": "x", "unit": "m", "low": -1.0, "high": 1.0},
                {"name": "y_speed", "unit": "m/s", "low": -1, "high": 1, "joint": "y", "field": "velocity"},
            ],
        },
        "action": {
            "interface": "float64_multi_array",
            "topic": "commands",
            "dimensions": [
                {"name": "dx", "low": -1.0, "high": 1.0, "bins": 21, "unit": "m", "max_rate": "inf"},
                {"name": "dy", "low": -1.0, "high": 1.0, "bins": 21, "unit": "m", "max_rate": 1.0},
            ],
        },
        "steps_to_go": {"bins": 50, "width": 4},
        "reset": {"method": "service"},
    }
    return Embodiment.from_dict({**plain, **changes})


def camera(name: str = "top", width: int = 32, height: int = 24) -> dict[str, Any]:
    topic = f"camera/{name}/image_raw"
    known = {"name": name, "topic": topic, "transport": "raw", "width": width, "height": height}
    return {**known, "frames": 2}


def stamp(step: float) -> int:
    """Stamp of a control step [ns]."""
    return START_NS + round(step * PERIOD_NS)


def picture(step: int, width: int = 32, height: int = 24) -> np.ndarray:
    """An image in which every step looks different."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(width)
    image[..., 1] = step % 256
    image[..., 2] = np.arange(height)[:, None] * 5
    return image


def summary(episode_id: str, steps: int, **changes: Any) -> Summary:
    known: dict[str, Any] = {
        "episode_id": episode_id,
        "start_ns": stamp(0),
        "stamp_ns": stamp(steps),
        "instruction": "push the red block",
        "mode": Mode.PRACTICE,
        "outcome": Outcome.SUCCESS,
        "end_reason": EndReason.SUCCESS_DETECTED,
        "actor": Actor.POLICY,
        "steps": steps,
        "seed": 7,
    }
    return Summary(**{**known, **changes})


def joint_state(stamp_ns: int, x: float, y_speed: float) -> bytes:
    """Joints in another order than the embodiment's, and one too many."""
    kind = message_class("sensor_msgs/msg/JointState")
    numbers = [np.array(values, np.float64) for values in ([9, 9, x], [9, y_speed, 9], [])]
    message = kind(make_header(stamp_ns), ["other", "y", "x"], *numbers)
    return serialize(message)


def policy_step(stamp_ns: int, step: int, **changes: Any) -> bytes:
    values: dict[str, Any] = {
        "episode_id": "",
        "bundle_id": "0123456789abcdef",
        "step": step,
        "chunk_index": 0,
        "actor": int(Actor.POLICY),
        "gate": 0,
        "tokens": np.array([step % 21, 10], np.uint16),
        "log_prob": -0.25 * step,
        "temperature": 1.0,
        "action": np.array([9.0, 9.0]),
        "command": np.array([0.01 * step, -0.5]),
        "latency": math.nan,
    }
    values |= changes
    return serialize(message_class("efm_msgs/msg/PolicyStep")(header=make_header(stamp_ns), **values))


def steps_to_go(stamp_ns: int, expectation: float) -> bytes:
    values: dict[str, Any] = {
        "episode_id": "",
        "bundle_id": "fedcba9876543210",
        "expectation": expectation,
        "spread": 1.0,
        "disagreement": 0.0,
        "probabilities": np.zeros(50, np.float32),
        "bin_width": 4,
        "reward": 0.0,
        "threshold": 2.0,
        "held": 0,
        "success": False,
    }
    return serialize(message_class("efm_msgs/msg/StepsToGo")(header=make_header(stamp_ns), **values))


def array(values: Any, label: str = "") -> bytes:
    """A Float64MultiArray."""
    layout = message_class("std_msgs/msg/MultiArrayLayout")
    dimension = message_class("std_msgs/msg/MultiArrayDimension")(label=label, size=2, stride=2)
    data = np.array(values, np.float64)
    return serialize(message_class("std_msgs/msg/Float64MultiArray")(layout([dimension], 0), data))


ARRAY = "std_msgs/msg/Float64MultiArray"
STATE = ("joint_states", "sensor_msgs/msg/JointState")
STEP = ("policy_step", "efm_msgs/msg/PolicyStep")
LABEL = ("steps_to_go", "efm_msgs/msg/StepsToGo")


def write_observation(writer: EpisodeWriter, step: float) -> None:
    """Writes the image and the state of one control step."""
    for item in writer.embodiment.cameras:
        writer.write_image(item.name, stamp(step), picture(int(step), item.width, item.height))
    writer.write(*STATE, stamp(step), joint_state(stamp(step), 0.1 * step, -0.1 * step))


def record(directory: Path, episode_id: str = "ep", steps: int = 10, **changes: Any) -> Path:
    """Records a whole episode with a policy that acts, all but the last two observations labelled."""
    writer = EpisodeWriter(directory, episode_id, embodiment())
    for step in range(steps):
        write_observation(writer, step)
        writer.write(*STEP, stamp(step), policy_step(stamp(step), step))
        writer.write("commands", ARRAY, stamp(step), array([0.01 * step, -0.5], f"stamp_ns={stamp(step)}"))
        if step < steps - 1:
            writer.write(*LABEL, stamp(step), steps_to_go(stamp(step), 100.0 - step))
    write_observation(writer, steps)
    return writer.close(summary(episode_id, steps, **changes))


def write_steps(writer: EpisodeWriter, numbers: Any = range(4), **changes: Any) -> None:
    """Writes control steps of these numbers."""
    for step in numbers:
        stamp_ns = stamp(step)
        writer.write(*STEP, stamp_ns, policy_step(stamp_ns, int(step), **changes))
