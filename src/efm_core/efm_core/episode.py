"""A recorded episode as arrays: one row for every control step, and one for the last observation.

    for folder in list_episodes(directory):
        episode = read_episode(folder)
        episode.actions, episode.images["top"][history_stack(len(episode), frames=2)]

Only whole episodes are given: whatever was cut off, damaged or misaligned raises, and says where and why.
Ground truth is never read here, so that nothing that trains can see it. Writing is the business of
episode_writer.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rosbags.rosbag2 import Reader
from rosbags.rosbag2.errors import ReaderError

from efm_core.embodiment import Embodiment
from efm_core.episode_file import METADATA, EpisodeFile, list_episodes, read_episode_file, read_summary
from efm_core.episode_inputs import EpisodeInputs
from efm_core.episode_rows import EpisodeRows, align, bundle_ids
from efm_core.episode_writer import EpisodeWriter
from efm_core.errors import EfmError, EpisodeInvalid
from efm_core.lazy_images import EncodedFrames, LazyImages
from efm_core.observation import Observation
from efm_core.safety import Gate
from efm_core.schemas import SECOND_NS, stamp_to_ns
from efm_core.summary import Actor, EndReason, Mode, Outcome, Summary

__all__ = [
    "Actor",
    "EndReason",
    "Episode",
    "EpisodeWriter",
    "Gate",
    "LazyImages",
    "Mode",
    "Outcome",
    "Summary",
    "check_episode",
    "history_stack",
    "list_episodes",
    "observations_of",
    "read_episode",
    "read_summary",
]

LABEL_TOPIC = "steps_to_go"
LABEL_TYPE = "efm_msgs/msg/StepsToGo"
TRUTH_TOPIC = "ground_truth"


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode. Arrays have N rows in order of time; the last is the observation after the last action.

    Attributes:
        id: of the episode. path: its folder.
        embodiment: with which it was recorded.
        summary: what came out.
        instruction: the instruction given.
        stamps: int64 [N], of the observations, strictly increasing [ns].
        images: camera -> uint8 [N, H, W, 3] RGB at the model's size, decoded when asked for.
        state: float32 [N, S]; None where the embodiment has no state.
        actions: float32 [N, D], what the robot was sent, after the safety gate; NaN where nothing is known.
        tokens: int64 [N, D], bins that the policy drew; -1 where there are none.
        log_probs: float32 [N], log-probability of the tokens at temperature 1; NaN where there are none.
        temperatures: float32 [N], that the tokens were drawn at; NaN where there are none.
        chunk_index: int64 [N], place in the chunk that the action belongs to.
        actors: uint8 [N], Actor; UNSET where there is no action.
        gates: uint8 [N], Gate flags.
        steps_to_go: float32 [N], as the reward node labelled live; NaN where it did not.
        policy_bundle_ids: bundles that acted, in order.
        reward_bundle_ids: bundles that labelled, in order.
        topics: all that were recorded, those that are not read as well.
        notes: oddities that do not make the episode unusable, for people.
    """

    id: str
    path: Path
    embodiment: Embodiment
    summary: Summary
    instruction: str
    stamps: npt.NDArray[np.int64]
    images: LazyImages
    state: npt.NDArray[np.float32] | None
    actions: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int64]
    log_probs: npt.NDArray[np.float32]
    temperatures: npt.NDArray[np.float32]
    chunk_index: npt.NDArray[np.int64]
    actors: npt.NDArray[np.uint8]
    gates: npt.NDArray[np.uint8]
    steps_to_go: npt.NDArray[np.float32]
    policy_bundle_ids: tuple[str, ...]
    reward_bundle_ids: tuple[str, ...]
    topics: frozenset[str]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def length(self) -> int:
        """N, the number of rows: control steps and the last observation."""
        return len(self.stamps)


def read_episode(path: Path | str) -> Episode:
    """Reads an episode's folder.

    Raises:
        EpisodeTruncated: the recording was cut off.
        EpisodeInvalid: it is damaged, lacks something, or contradicts itself.
    """
    file = read_episode_file(path, unread=[TRUTH_TOPIC])
    inputs = EpisodeInputs(file)
    rows = align(file, inputs)
    stamps = rows.stamps
    frames = {
        camera.name: EncodedFrames(
            camera,
            inputs.cameras[camera.name].messages,
            inputs.images_at(camera.name, stamps),
        )
        for camera in file.embodiment.cameras
    }
    labels, reward_bundles = _labels(file, stamps)
    size = file.embodiment.action_size
    return Episode(
        id=file.summary.episode_id,
        path=file.path.parent,
        embodiment=file.embodiment,
        summary=file.summary,
        instruction=file.summary.instruction,
        stamps=stamps,
        images=LazyImages(frames, str(file.path)),
        state=None if inputs.state is None else inputs.states_at(stamps),
        actions=np.array([*(step.action for step in rows.steps), np.full(size, np.nan)], np.float32),
        tokens=np.array([*(step.tokens for step in rows.steps), np.full(size, -1)], np.int64),
        log_probs=np.array([*(step.log_prob for step in rows.steps), np.nan], np.float32),
        temperatures=np.array([*(step.temperature for step in rows.steps), np.nan], np.float32),
        chunk_index=np.array([*(step.chunk_index for step in rows.steps), 0], np.int64),
        actors=np.array([*(step.actor for step in rows.steps), Actor.UNSET], np.uint8),
        gates=np.array([*(step.gate for step in rows.steps), Gate.PASSED], np.uint8),
        steps_to_go=labels,
        policy_bundle_ids=bundle_ids(step.bundle_id for step in rows.steps),
        reward_bundle_ids=reward_bundles,
        topics=frozenset(file.topics),
        notes=tuple(_notes(file, rows)),
    )


def check_episode(path: Path | str) -> list[str]:
    """Returns everything that is wrong or odd about an episode, in words; nothing for a good one.

    Beyond `read_episode` every image is decoded, and metadata.yaml is compared with the file that it
    describes.
    """
    folder = Path(path)
    try:
        episode = read_episode(folder)
        for camera in episode.images:
            episode.images.rows(camera, np.arange(len(episode)))
    except EfmError as error:
        return [str(error)]
    problems = list(episode.notes)
    try:
        with Reader(folder) as reader:
            told = Counter({connection.topic: connection.msgcount for connection in reader.connections})
            found = Counter(connection.topic for connection, _, _ in reader.messages())
    except (ReaderError, OSError, LookupError, TypeError, AttributeError, ValueError) as error:
        return [*problems, f"{folder / METADATA}: rosbags cannot read it: {error}"]
    if told != found:
        expected = dict(told - found or told)
        problems.append(f"{folder / METADATA}: expected messages {expected}, the file holds {dict(found)}")
    if TRUTH_TOPIC in found and episode.summary.mode != Mode.EVALUATE:
        problems.append(f"holds '{TRUTH_TOPIC}', though only evaluation may record it")
    return problems


def history_stack(length: int, frames: int) -> npt.NDArray[np.int64]:
    """Returns rows int64 [length, frames]: row t names t-frames+1 .. t, with 0 for what is before the start.

    It is the rule of ObservationAssembler, so that `images[history_stack(N, T)]` is what a policy saw.
    """
    rows = np.arange(length)[:, None] + np.arange(1 - frames, 1)[None, :]
    return np.maximum(rows, 0)


def observations_of(episode: Episode, start: int, stop: int) -> list[Observation]:
    """Returns the observations of rows start .. stop - 1, as the assembler gave them to the policy.

    Only the images of these rows are decoded, and they are not kept.

    Raises:
        EpisodeInvalid: an image cannot be decoded.
    """
    stacks = {}
    for camera in episode.embodiment.cameras:
        rows = history_stack(len(episode), camera.frames)[start:stop]
        flat = episode.images.rows(camera.name, rows.reshape(-1))
        stacks[camera.name] = flat.reshape(*rows.shape, *flat.shape[1:])
    return [
        Observation(
            stamp_ns=int(episode.stamps[row]),
            images={name: stack[row - start] for name, stack in stacks.items()},
            state=None if episode.state is None else episode.state[row],
        )
        for row in range(start, stop)
    ]


def _labels(
    file: EpisodeFile, stamps: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], tuple[str, ...]]:
    """Returns the live labels float32 [N] and the bundles that gave them."""
    labels = np.full(len(stamps), np.nan, np.float32)
    topic = file.topic(LABEL_TOPIC, LABEL_TYPE)
    if topic is None:
        return labels, ()
    row_of = {int(stamp): row for row, stamp in enumerate(stamps)}
    ids: list[str] = []
    for _, message in topic.decoded():
        row = row_of.get(stamp_to_ns(message.header.stamp))
        if row is not None and message.episode_id in ("", file.summary.episode_id):
            if not np.isfinite(message.expectation):
                raise EpisodeInvalid(
                    f"{file.path}: '{LABEL_TOPIC}': expected finite numbers, found {message.expectation}"
                )
            labels[row] = message.expectation
            ids.append(message.bundle_id)
    return labels, bundle_ids(ids)


def _notes(file: EpisodeFile, rows: EpisodeRows) -> list[str]:
    """Returns the oddities of an episode that can be used all the same."""
    notes = list(rows.notes)
    taken = sum(step.actor != Actor.HOLD for step in rows.steps)
    # Whoever commands from outside has a rate of their own.
    if file.summary.steps != taken and file.summary.actor != Actor.EXTERNAL:
        notes.append(f"the summary says {file.summary.steps} control steps, the recording holds {taken}")
    period_s = 1 / file.embodiment.control_rate_hz
    gaps = np.diff(rows.stamps) / SECOND_NS
    if len(gaps) and gaps.max() > 2.5 * period_s:
        row = int(gaps.argmax())
        notes.append(
            f"{gaps[row]:.3f} s between the rows {row} and {row + 1}, where {period_s:.3f} s is usual"
        )
    return notes
