"""What a recorded episode showed and when: the images and states that count, found by stamp.

The rule is that of observation.py: an observation has the stamp of its newest image (of its state where
there are no cameras), shows of every camera the newest image until then, and the newest state until then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efm_core.episode_file import EpisodeFile, RawMessage
from efm_core.errors import EpisodeInvalid, ObservationInvalid
from efm_core.message_values import STATE_TYPES, state_values
from efm_core.schemas import IMAGE_TYPE, SECOND_NS, deserialize

Stamps = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Stream:
    """One input within the episode: `stamps` [M], strictly increasing, and the messages in CDR."""

    what: str
    type_name: str
    max_age_s: float
    stamps: Stamps
    messages: list[bytes | memoryview]

    def newest(self, stamps: Stamps) -> Stamps:
        """Returns for each stamp the index of the newest message until then; -1 where there is none."""
        return np.searchsorted(self.stamps, stamps, side="right") - 1


class EpisodeInputs:
    """The inputs of an episode from its start to its last observation.

    Attributes:
        cameras: name -> stream of CompressedImage messages.
        state: stream of state messages; None where the embodiment has no state.
        stamps: of all observations that could be made, strictly increasing; the last is the terminal one.
    """

    def __init__(self, file: EpisodeFile) -> None:
        """Finds the inputs.

        Raises:
            EpisodeInvalid: an input is missing, its stamps go back, or it cannot be decoded.
        """
        self._file = file
        embodiment = file.embodiment
        self.cameras: dict[str, Stream] = {}
        for camera in embodiment.cameras:
            self.cameras[camera.name] = self._stream(
                f"camera '{camera.name}'", camera.recorded_topic, IMAGE_TYPE, camera.max_age_s
            )
        self.state: Stream | None = None
        if embodiment.state is not None:
            state = embodiment.state
            topic = state.topic.lstrip("~/")
            self.state = self._stream("the state", topic, STATE_TYPES[state.interface], state.max_age_s)
        self.stamps = self._observation_stamps()

    def nearest_stamps(self, moments: Stamps) -> Stamps:
        """Returns the stamp of the observation that is nearest to each moment; the earlier one of two."""
        after = np.searchsorted(self.stamps, moments)
        around = self.stamps[np.clip([after - 1, after], 0, len(self.stamps) - 1)]
        before_ns, after_ns = np.abs(around - moments)
        return np.where(before_ns <= after_ns, *around)

    def images_at(self, camera: str, stamps: Stamps) -> Stamps:
        """Returns which message of a camera each observation shows.

        Raises:
            EpisodeInvalid: the image is older than the camera's max_age_s.
        """
        return self._index(self.cameras[camera], stamps)

    def states_at(self, stamps: Stamps) -> npt.NDArray[np.float32]:
        """Returns the states float32 [N, S] of observations.

        Raises:
            EpisodeInvalid: a state is too old, lacks a joint, or is not finite.
        """
        state = self._file.embodiment.state
        assert state is not None and self.state is not None
        index = self._index(self.state, stamps)
        values = np.empty((len(stamps), len(state.entries)), np.float32)
        for row, number in enumerate(index):
            try:
                message = deserialize(self.state.messages[number], self.state.type_name)
                values[row] = state_values(message, state)
            except ObservationInvalid as error:
                raise EpisodeInvalid(f"{self._file.path}: message {number}: {error}") from error
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values).all(axis=1)))
            raise EpisodeInvalid(
                f"{self._file.path}: expected finite states, found {values[row]} in row {row}"
            )
        return values

    def _stream(self, what: str, topic: str, type_name: str, max_age_s: float) -> Stream:
        found = self._file.topic(topic, type_name)
        if found is None:
            there = ", ".join(sorted(self._file.topics))
            raise EpisodeInvalid(
                f"{self._file.path}: expected {what} on topic '{topic}', found no message; there are {there}"
            )
        summary = self._file.summary
        stamps: list[int] = []
        messages: list[bytes | memoryview] = []
        for stamp_ns, raw in in_order(found.stamped(), f"{self._file.path}: {what}"):
            if summary.start_ns <= stamp_ns <= summary.stamp_ns:
                stamps.append(stamp_ns)
                messages.append(raw.data)
        if not stamps:
            raise EpisodeInvalid(
                f"{self._file.path}: expected {what} between the episode's start at {summary.start_ns} ns "
                f"and its end at {summary.stamp_ns} ns, found none of {len(found.messages)} messages there"
            )
        return Stream(what, type_name, max_age_s, np.array(stamps, np.int64), messages)

    def _observation_stamps(self) -> Stamps:
        if not self.cameras:
            assert self.state is not None
            return self.state.stamps
        first = max(stream.stamps[0] for stream in self.cameras.values())
        stamps = np.unique(np.concatenate([stream.stamps for stream in self.cameras.values()]))
        return stamps[stamps >= first]

    def _index(self, stream: Stream, stamps: Stamps) -> Stamps:
        # The first state may be a little younger than the first image.
        index = np.maximum(stream.newest(stamps), 0)
        ages = np.abs(stamps - stream.stamps[index]) / SECOND_NS
        if len(ages) and ages.max() > stream.max_age_s:
            row = int(ages.argmax())
            raise EpisodeInvalid(
                f"{self._file.path}: expected {stream.what} at most {stream.max_age_s} s from the "
                f"observation at {stamps[row]} ns (row {row} of {len(stamps)}), found {ages[row]:.3f} s: "
                "it stopped or was lost"
            )
        return index


def in_order(messages: Iterator[tuple[int, RawMessage]], where: str) -> Iterator[tuple[int, RawMessage]]:
    """Yields messages with their stamps, each stamp once; `where` names the source in errors.

    Raises:
        EpisodeInvalid: a stamp is older than the one before.
    """
    last: int | None = None
    for stamp_ns, raw in messages:
        if last is not None and stamp_ns < last:
            raise EpisodeInvalid(
                f"{where}: expected stamps that rise, found {stamp_ns} ns after {last} ns: the clock was "
                "set back"
            )
        if stamp_ns != last:
            yield stamp_ns, raw
        last = stamp_ns
