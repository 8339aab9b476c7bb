"""A world for tests: a dot walks to the side of a small picture that the instruction names.

Everything is a function of its arguments. `episodes` gives arrays, `record` writes the same as bags.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from efm_core.embodiment import Embodiment
from efm_core.episode import Actor, EndReason, EpisodeWriter, Mode, Outcome, Summary
from efm_core.schemas import make_header, message_class, serialize
from efm_learner.samples import EpisodeArrays

SIZE = 16
STEP = 2
REST = 3
INSTRUCTIONS = ("go to the left side", "move towards the right side")
PERIOD_NS = 100_000_000


def embodiment(frames: int = 2, chunk: int = 1, **changes) -> Embodiment:
    plain = {
        "name": "dots",
        "control_rate_hz": 10.0,
        "max_steps": 20,
        "cameras": [
            {
                "name": "top",
                "topic": "camera/top/image_raw",
                "transport": "raw",
                "width": SIZE,
                "height": SIZE,
                "frames": frames,
            }
        ],
        "state": {
            "topic": "joint_states",
            "interface": "joint_states",
            "entries": [{"name": "x", "unit": "m", "low": 0.0, "high": 16.0}],
        },
        "action": {
            "interface": "float64_multi_array",
            "topic": "commands",
            "chunk": chunk,
            "dimensions": [
                {"name": "dx", "low": -2.0, "high": 2.0, "bins": 5, "unit": "m", "max_rate": math.inf},
                {"name": "grip", "low": 0.0, "high": 1.0, "bins": 2, "unit": "1", "max_rate": math.inf},
            ],
        },
        "steps_to_go": {"bins": 12, "width": 1},
        "reset": {"method": "none"},
    }
    return Embodiment.from_dict({**plain, **changes})


def picture(x: int) -> np.ndarray:
    """A white dot at column x, uint8 [SIZE, SIZE, 3]."""
    image = np.full((SIZE, SIZE, 3), 40, np.uint8)
    image[6:10, max(0, x - 1) : x + 2] = 255
    return image


def episode(number: int, success: bool = True) -> EpisodeArrays:
    """A walk from the middle to a side and REST steps of rest, or one that stops half way."""
    goal = 1 if number % 2 == 0 else SIZE - 2
    x, places, moves = 6 + number % 5, [], []
    for _ in range(20):
        places.append(x)
        stop = not success and len(places) > 2
        move = 0 if stop else int(np.clip(goal - x, -STEP, STEP))
        moves.append(move)
        x += move
        if (x == goal or stop) and len(places) > REST and places[-REST:] == [x] * REST:
            break
    places.append(x)
    actions = np.full((len(places), 2), np.nan, np.float32)
    actions[:-1] = np.stack([moves, np.ones(len(moves))], axis=1)
    return EpisodeArrays(
        id=f"episode_{number:03d}",
        instruction=INSTRUCTIONS[number % 2],
        images={"top": np.stack([picture(place) for place in places])},
        state=np.array(places, np.float32)[:, None],
        actions=actions,
        imitate=np.isfinite(actions[:, 0]),
        success=success,
    )


def episodes(successful: int, unsuccessful: int = 0) -> list[EpisodeArrays]:
    return [episode(number, number < successful) for number in range(successful + unsuccessful)]


def record(directory: Path, arrays: EpisodeArrays, actor: Actor = Actor.EXPERT, **changes) -> Path:
    """Writes an episode as a bag; `changes` are fields of its summary."""
    writer = EpisodeWriter(directory, arrays.id, embodiment())
    joints, step_kind = message_class("sensor_msgs/msg/JointState"), message_class("efm_msgs/msg/PolicyStep")
    for step in range(len(arrays)):
        stamp = (step + 1) * PERIOD_NS
        writer.write_image("top", stamp, arrays.images["top"][step])
        position = np.array(arrays.state[step], np.float64)
        message = joints(make_header(stamp), ["x"], position, np.zeros(0), np.zeros(0))
        writer.write("joint_states", "sensor_msgs/msg/JointState", stamp, serialize(message))
        if step == len(arrays) - 1:
            break
        command = np.array(arrays.actions[step], np.float64)
        message = step_kind(
            header=make_header(stamp), episode_id=arrays.id, bundle_id="", step=step, chunk_index=0,
            actor=int(actor), gate=0, tokens=np.zeros(0, np.uint16), log_prob=math.nan, temperature=math.nan,
            action=command, command=command, latency=math.nan,
        )  # fmt: skip
        writer.write("policy_step", "efm_msgs/msg/PolicyStep", stamp, serialize(message))
    known = {
        "episode_id": arrays.id,
        "start_ns": PERIOD_NS,
        "stamp_ns": len(arrays) * PERIOD_NS,
        "instruction": arrays.instruction,
        "mode": Mode.COLLECT,
        "outcome": Outcome.SUCCESS if arrays.success else Outcome.FAILURE,
        "end_reason": EndReason.ACTOR_DONE,
        "actor": actor,
        "steps": len(arrays) - 1,
    }
    return writer.close(Summary(**{**known, **changes}))
