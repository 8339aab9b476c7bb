"""The control steps of a recorded episode: which observation, which action, who decided.

With PolicyStep messages there is one row for each of them, and one more for the last observation. Without
them (something outside EFM commanded the robot) rows are made of the commands: where commands name the
observation that they answer, one row each; else at the control rate, from the observation nearest to each
tick, with the command that was in force when the next row began. A row that was not fully recorded is left
out, never filled with something older.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from efm_core.episode_file import EpisodeFile
from efm_core.episode_inputs import EpisodeInputs, Stamps
from efm_core.errors import EpisodeInvalid, ObservationInvalid
from efm_core.message_values import COMMAND_TYPES, command_values, message_stamp_ns
from efm_core.safety import Gate
from efm_core.schemas import SECOND_NS, stamp_to_ns
from efm_core.summary import Actor

STEP_TOPIC = "policy_step"
STEP_TYPE = "efm_msgs/msg/PolicyStep"
# Greatest share of control steps whose observation the recorder may have missed.
MOST_LOST = 0.1


@dataclass(eq=False)
class Step:
    """One control step: the stamp of its observation [ns] and what was decided."""

    stamp_ns: int
    action: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int64]
    log_prob: float = np.nan
    temperature: float = np.nan
    actor: int = Actor.EXTERNAL
    gate: int = Gate.PASSED
    chunk_index: int = 0
    bundle_id: str = ""


@dataclass(eq=False)
class EpisodeRows:
    """The steps of an episode in order, the stamp of its last observation, and what a checker should know."""

    steps: list[Step]
    end_ns: int
    notes: list[str] = field(default_factory=list)

    @property
    def stamps(self) -> Stamps:
        """Stamps int64 [N] of all rows."""
        return np.array([*(step.stamp_ns for step in self.steps), self.end_ns], np.int64)


def align(file: EpisodeFile, inputs: EpisodeInputs) -> EpisodeRows:
    """Finds the control steps of an episode.

    Raises:
        EpisodeInvalid: nothing commanded the robot, stamps go back, a step does not fit the embodiment, or
            too many observations are missing.
    """
    rows = EpisodeRows([], int(inputs.stamps[-1]))
    policy_steps = _policy_steps(file, inputs, rows)
    if policy_steps:
        rows.steps = _with_observations(file, inputs, policy_steps, rows)
    elif commands := _commands(file):
        rows.steps = _external_steps(file, inputs, commands)
    elif file.summary.steps > 0 and STEP_TOPIC not in file.topics:
        raise EpisodeInvalid(
            f"{file.path}: expected control steps on '{STEP_TOPIC}' or commands on "
            f"'{_command_topic(file)}', found neither; there are {', '.join(sorted(file.topics))}"
        )
    return rows


def _policy_steps(file: EpisodeFile, inputs: EpisodeInputs, rows: EpisodeRows) -> list[Step]:
    """Returns the steps that were sent to the robot, in order, with the stamps that the messages carry."""
    topic = file.topic(STEP_TOPIC, STEP_TYPE)
    if topic is None:
        return []
    where = f"{file.path}: '{STEP_TOPIC}'"
    decided = [
        message
        for _, message in topic.decoded()
        if message.episode_id in ("", file.summary.episode_id)
        and file.summary.start_ns <= stamp_to_ns(message.header.stamp)
    ]
    messages = [message for message in decided if not message.gate & Gate.DRY_RUN]
    if decided and not messages and not _commands(file):
        rows.notes.append(
            f"'{STEP_TOPIC}': none of the {len(decided)} steps that were decided was sent: a dry run, or "
            "stage shadow"
        )
    answered = {_key(message) for message in messages if message.actor != Actor.HOLD}
    known = set(inputs.stamps.tolist())
    period_ns = SECOND_NS / file.embodiment.control_rate_hz
    steps: list[Step] = []
    seen: set[tuple[int, int]] = set()
    last_ns = 0.0
    for message in messages:
        key = _key(message)
        # Holding still answers an observation only where nobody else did; else it is the node's own doing.
        if message.actor == Actor.HOLD and (key in answered or key[0] not in known):
            continue
        moment_ns = key[0] + key[1] * period_ns
        if moment_ns < last_ns - period_ns / 2:
            raise EpisodeInvalid(
                f"{where}: expected stamps that rise, found {key[0]} ns (chunk index {key[1]}) after "
                f"{last_ns:.0f} ns: the clock was set back, or two nodes act on one robot"
            )
        if key in seen:
            rows.notes.append(
                f"'{STEP_TOPIC}': two steps answer the observation of {key[0]} ns; the first one counts"
            )
        else:
            steps.append(_step(file, message, where))
        seen.add(key)
        last_ns = moment_ns
    return steps


def _with_observations(
    file: EpisodeFile, inputs: EpisodeInputs, steps: list[Step], rows: EpisodeRows
) -> list[Step]:
    """Returns the steps before the last observation, each with the stamp of its own observation."""
    period_ns = SECOND_NS / file.embodiment.control_rate_hz
    known = set(inputs.stamps.tolist())
    found: list[Step] = []
    lost = 0
    for step in steps:
        before = found[-1].stamp_ns if found else file.summary.start_ns - 1
        if step.chunk_index > 0:  # Its stamp is that of the chunk's inference; it was executed later.
            moment_ns = round(step.stamp_ns + step.chunk_index * period_ns)
            nearest_ns = int(inputs.nearest_stamps(np.array([moment_ns]))[0])
            is_its_own = nearest_ns > before and abs(nearest_ns - moment_ns) <= period_ns / 2
            step.stamp_ns = nearest_ns if is_its_own else moment_ns
        if step.stamp_ns >= rows.end_ns:
            continue
        if step.stamp_ns <= before or (step.chunk_index == 0 and step.stamp_ns not in known):
            lost += 1
            continue
        found.append(step)
    if lost:
        text = f"the recording lacks the observations of {lost} of {len(steps)} control steps"
        if lost > MOST_LOST * len(steps):
            raise EpisodeInvalid(
                f"{file.path}: {text}, more than {MOST_LOST:.0%}: the recorder could not keep up"
            )
        rows.notes.append(f"{text}; they are left out")
    return found


def _external_steps(
    file: EpisodeFile, inputs: EpisodeInputs, commands: list[tuple[int, int | None, Any]]
) -> list[Step]:
    """Returns the steps of something outside EFM that commanded the robot."""
    end_ns, start_ns = int(inputs.stamps[-1]), file.summary.start_ns
    known = set(inputs.stamps.tolist())
    answers = {
        answered: message
        for _, answered, message in reversed(commands)  # The first command is the one that was executed.
        if answered is not None and answered < end_ns and answered in known
    }
    inside = [answered for time, answered, _ in commands if start_ns <= time <= end_ns]
    if answers and sum(answered not in known for answered in inside) <= MOST_LOST * len(inside):
        return [_external_step(file, stamp_ns, answers[stamp_ns]) for stamp_ns in sorted(answers)]
    period_ns = SECOND_NS / file.embodiment.control_rate_hz
    count = int((end_ns - inputs.stamps[0]) // period_ns) + 1
    # Nearest, since a camera that runs at the control rate is now a little before its tick and now after it.
    ticks = inputs.stamps[0] + np.round(np.arange(count) * period_ns).astype(np.int64)
    stamps = np.unique(inputs.nearest_stamps(ticks))
    stamps = stamps[stamps < end_ns]
    until = np.append(stamps[1:], end_ns)
    times = np.maximum.accumulate([time for time, _, _ in commands])
    newest = np.searchsorted(times, until, side="left") - 1
    return [
        _external_step(
            file, int(stamp), commands[index][2] if index >= 0 and times[index] >= start_ns else None
        )
        for stamp, index in zip(stamps, newest, strict=True)
    ]


def _external_step(file: EpisodeFile, stamp_ns: int, message: Any | None) -> Step:
    size = file.embodiment.action_size
    values = np.full(size, np.nan, np.float32)
    if message is not None:
        try:
            period = 1 / file.embodiment.control_rate_hz
            values = command_values(message, file.embodiment.action, period).astype(np.float32)
        except ObservationInvalid as error:
            raise EpisodeInvalid(f"{file.path}: {error}") from error
        if not np.isfinite(values).all():
            raise EpisodeInvalid(f"{file.path}: expected finite commands, found {values} at {stamp_ns} ns")
    actor = Actor.UNSET if message is None else Actor.EXTERNAL
    return Step(stamp_ns, values, np.full(size, -1, np.int64), actor=actor)


def _step(file: EpisodeFile, message: Any, where: str) -> Step:
    """Returns a PolicyStep that fits the embodiment."""
    dimensions = file.embodiment.action.dimensions
    size, number = len(dimensions), message.step
    values = message.command if len(message.command) else message.action
    action = np.array(values if len(values) else [np.nan] * size, np.float32)
    tokens = np.array(message.tokens if len(message.tokens) else [-1] * size, np.int64)
    if action.shape != (size,) or tokens.shape != (size,):
        raise EpisodeInvalid(
            f"{where}: expected {size} numbers a step, found {len(action)} in the command and "
            f"{len(tokens)} tokens in step {number}"
        )
    if len(values) and not np.isfinite(action).all():
        raise EpisodeInvalid(f"{where}: expected finite commands, found {action} in step {number}")
    if (tokens >= [dimension.bins for dimension in dimensions]).any():
        raise EpisodeInvalid(
            f"{where}: expected tokens within the embodiment's bins, found {tokens} in step {number}"
        )
    return Step(
        stamp_to_ns(message.header.stamp),
        action,
        tokens,
        float(message.log_prob),
        float(message.temperature),
        int(message.actor),
        int(message.gate),
        int(message.chunk_index),
        message.bundle_id,
    )


def _commands(file: EpisodeFile) -> list[tuple[int, int | None, Any]]:
    """Returns the commands on the embodiment's topic: log time, stamp that the message carries, message."""
    topic = file.topic(_command_topic(file), COMMAND_TYPES[file.embodiment.action.interface])
    if topic is None:
        return []
    return [(raw.log_time_ns, message_stamp_ns(message), message) for raw, message in topic.decoded()]


def _command_topic(file: EpisodeFile) -> str:
    return file.embodiment.action.topic.lstrip("~/")


def _key(message: Any) -> tuple[int, int]:
    return stamp_to_ns(message.header.stamp), int(message.chunk_index)


def bundle_ids(ids: Iterable[str]) -> tuple[str, ...]:
    """Returns the ids that are not empty, each once, in the order in which they appear."""
    return tuple(dict.fromkeys(item for item in ids if item))
