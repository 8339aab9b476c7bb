"""Writes an episode out of arrays, with the messages that a recorder would have heard."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from efm_core.embodiment import Embodiment
from efm_core.episode_writer import EpisodeWriter
from efm_core.message_values import COMMAND_TYPES, STATE_TYPES, command_message, state_message
from efm_core.schemas import make_header, message_class, serialize
from efm_core.summary import Summary

STEP_TYPE = "efm_msgs/msg/PolicyStep"
INSTRUCTION_TYPE = "efm_msgs/msg/Instruction"
PNG_LARGEST_PX = 128 * 128  # As the recorder does.
JPEG_QUALITY = 95


def make_episode(
    folder: Path,
    embodiment: Embodiment,
    summary: Summary,
    state: np.ndarray | None,
    actions: np.ndarray,
    actors: np.ndarray,
    images: Mapping[str, Iterator[np.ndarray]],
) -> Path:
    """Writes an episode and returns its folder.

    Args:
        folder: Where its folder is made.
        embodiment: Of the arrays.
        summary: Its stamps are those of the first and the last observation; the others stand between them.
        state: float32 [N + 1, S]; None where the embodiment has none.
        actions: float32 [N, D], what the robot was sent.
        actors: [N], who decided.
        images: Camera -> N + 1 images uint8 [H, W, 3].

    Raises:
        EfmError: As EpisodeWriter; nothing is left then.
    """
    steps = len(actions)
    stamps = np.linspace(summary.start_ns, summary.stamp_ns, steps + 1)
    stamps = summary.start_ns + np.rint(stamps - summary.start_ns).astype(np.int64)
    writer = EpisodeWriter(folder, summary.episode_id, embodiment)
    try:
        header = make_header(summary.start_ns)
        text = message_class(INSTRUCTION_TYPE)(header, summary.episode_id, summary.instruction)
        writer.write("instruction", INSTRUCTION_TYPE, summary.start_ns, serialize(text))
        for index in range(steps + 1):
            stamp_ns = int(stamps[index])
            for camera, pictures in images.items():
                picture = next(pictures)
                small = picture.shape[0] * picture.shape[1] <= PNG_LARGEST_PX
                writer.write_image(camera, stamp_ns, picture, "png" if small else "jpeg", JPEG_QUALITY)
            if state is not None and embodiment.state is not None:
                data = serialize(state_message(state[index], embodiment.state, stamp_ns))
                writer.write(embodiment.state.topic, STATE_TYPES[embodiment.state.interface], stamp_ns, data)
            if index < steps:
                period = 1.0 / embodiment.control_rate_hz
                command = serialize(command_message(actions[index], embodiment.action, stamp_ns, period))
                writer.write(
                    embodiment.action.topic, COMMAND_TYPES[embodiment.action.interface], stamp_ns, command
                )
                step = _step(summary, index, stamp_ns, actions[index], int(actors[index]))
                writer.write("policy_step", STEP_TYPE, stamp_ns, step)
        for pictures in images.values():
            next(pictures, None)  # Says so where the video is too short, and closes it.
        return writer.close(summary)
    except BaseException:
        writer.abort()
        raise


def _step(summary: Summary, index: int, stamp_ns: int, action: np.ndarray, actor: int) -> bytes:
    values = np.asarray(action, np.float64)
    return serialize(
        message_class(STEP_TYPE)(
            header=make_header(stamp_ns),
            episode_id=summary.episode_id,
            bundle_id=summary.policy_bundle_id,
            step=index,
            chunk_index=0,
            actor=actor,
            gate=0,
            tokens=np.zeros(0, np.uint16),
            log_prob=math.nan,
            temperature=math.nan,
            action=values,
            command=values,
            latency=math.nan,
        )
    )
