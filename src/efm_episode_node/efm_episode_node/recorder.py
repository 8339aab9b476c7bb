"""Writes one episode at a time, in a thread of its own, so that encoding images and waiting for the disk slow
nobody down.

Whoever hears messages calls `put` with their bytes, which never waits. Inputs that came shortly before the
beginning are kept, since a simulator shows the first observation of an episode before anybody knows that the
episode has begun. What comes twice (an observation that is shown again) is written once. Silence of a camera,
a clock that was set back, a disk that is full and a queue that grows without end are told as faults, not left
for a reader to find. Left out: topics and their types, which `listener` knows, and the meaning of messages,
which `episode_watch` knows.
"""

from __future__ import annotations

import collections
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from efm_core.embodiment import Embodiment
from efm_core.episode_writer import EpisodeWriter
from efm_core.errors import EfmError, EpisodeInvalid, WaitTimeout
from efm_core.summary import EndReason, Mode, Summary

SECOND_NS = 1_000_000_000
# A stamp that is older than the last one by more was made by a clock that was set back.
CLOCK_JUMP_NS = SECOND_NS
SILENCE_S = 1.0  # An input may be older than its own limit by so much before the episode is given up.
# Up to here exact pictures cost little; beyond, JPEG is several times smaller and faster.
PNG_LARGEST_PX = 128 * 128
LAST_STATE_S = 5.0  # For the inputs of an episode's last observation to come.
# Messages are gathered for so long: to be woken for each of them costs more than to write it.
GATHER_S = 0.02
RECENT = 8
LARGEST_LOSS = 0.1  # Share of steps whose observation may be missing; readers refuse more.


@dataclass(frozen=True)
class Stream:
    """One topic of an episode.

    Attributes:
        topic: Name in the episode.
        type_name: Type as recorded.
        camera: Name of the camera whose raw images these are, to be encoded; empty for anything else.
        is_input: Part of the observation: stamped, and shown again at times.
        max_age_s: Of an input.
    """

    topic: str
    type_name: str
    camera: str = ""
    is_input: bool = False
    max_age_s: float = 0.0


@dataclass(frozen=True)
class RecorderSettings:
    """How episodes are written.

    Attributes:
        image_format: auto (png for small images, else jpeg), png or jpeg.
        jpeg_quality: 1 to 100.
        settle_s: For the inputs of the last observation to come, and for the file to be closed (steady
            clock).
        queue_bytes: What may wait to be written.
    """

    image_format: str = "auto"
    jpeg_quality: int = 90
    settle_s: float = 30.0
    queue_bytes: int = 512 << 20


@dataclass
class _Running:
    """The episode that is being recorded, why it cannot be any more, and its last stamp (0: not known)."""

    writer: EpisodeWriter
    failed: str = ""
    end_ns: int = 0


@dataclass(frozen=True)
class _Item:
    """One message on its way to the disk."""

    episode: _Running
    stream: Stream
    stamp_ns: int
    data: bytes


class RecorderClosing:
    """The `Closing` of `ports`."""

    def __init__(self, episode_id: str, timeout_s: float) -> None:
        self.future: Future[Path] = Future()
        self._episode_id = episode_id
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s

    def done(self) -> bool:
        """Returns whether the episode is on the disk, or failed."""
        return self.future.done()

    def result(self) -> Path:
        """Waits for the episode's folder.

        Raises:
            EpisodeInvalid: Too many observations were lost, or the recording failed; the episode is dropped.
            SpoolFull: The disk is full; the episode is dropped.
            WaitTimeout: The disk does not come back; the episode is dropped.
        """
        try:
            return self.future.result(max(0.0, self._deadline - time.monotonic()))
        except FutureTimeout as error:
            self.future.cancel()  # The thread then drops it, unless it is closing it at this very moment.
            raise WaitTimeout(
                f"episode {self._episode_id}: not on the disk within {self._timeout_s:g} s; it is dropped"
            ) from error


class EpisodeRecorder:
    """The `Recording` of `runner`: `put` may be called from any thread, the rest comes from one."""

    def __init__(
        self,
        folder_of: Callable[[Mode], Path],
        embodiment: Embodiment,
        settings: RecorderSettings,
        decode: Callable[[bytes], tuple[np.ndarray, str]],
        fault: Callable[[str], None],
    ) -> None:
        """Starts the thread.

        Args:
            folder_of: Where episodes of a mode are written.
            embodiment: Stored in every episode.
            settings: See there.
            decode: Makes an RGB image uint8 [H, W, 3] and its frame out of the bytes of an image message.
            fault: Told in words when the running episode cannot be recorded any more; from any thread.
        """
        self._folder_of = folder_of
        self._embodiment = embodiment
        self._settings = settings
        self._decode = decode
        self._fault = fault
        self._changed = threading.Condition()
        self._recent: dict[Stream, collections.deque[tuple[int, bytes]]] = {}
        self._queue: queue.SimpleQueue[_Item | Callable[[], None] | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._running: _Running | None = None
        self._start_ns = self._held_ns = 0
        self._newest: dict[Stream, int] = {}
        self._arrived: dict[Stream, float] = {}
        self._began = 0.0
        self._seen: dict[Stream, set[int]] = {}
        self._steps: set[int] = set()
        self._thread = threading.Thread(target=self._main, name="recorder", daemon=True)
        self._thread.start()

    # From whoever hears -------------------------------------------------------------------------------------

    def add_input(self, stream: Stream) -> None:
        """Makes an input known, so that its absence is noticed."""
        self._recent[stream] = collections.deque(maxlen=RECENT)

    def put(self, stream: Stream, stamp_ns: int, data: bytes, is_step: bool = False) -> None:
        """Takes one message as it came over the wire (CDR); `is_step`: an actor answered that observation."""
        with self._changed:
            if stream.is_input:
                recent = self._recent[stream]
                if recent and stamp_ns < recent[-1][0] - CLOCK_JUMP_NS:
                    recent.clear()  # What was stamped before the clock was set back is of no later episode.
                if not recent or stamp_ns != recent[-1][0]:
                    recent.append((stamp_ns, data))
            if self._running is None or self._running.failed:
                return
            if is_step and stamp_ns >= self._start_ns:
                self._steps.add(stamp_ns)
            self._take(self._running, stream, stamp_ns, data)
            self._changed.notify_all()

    def _take(self, episode: _Running, stream: Stream, stamp_ns: int, data: bytes) -> None:
        """Queues a message of the running episode; the lock is held."""
        if stream.is_input:
            newest = self._newest.get(stream, 0)
            if stamp_ns < newest - CLOCK_JUMP_NS:
                self._fail(
                    episode,
                    f"'{stream.topic}': the clock was set back by {(newest - stamp_ns) / SECOND_NS:.1f} s",
                )
                return
        if stamp_ns < self._start_ns:
            return
        if episode.end_ns and stamp_ns > episode.end_ns:
            if stream.is_input:
                self._newest[stream] = stamp_ns  # Nothing older is to come.
            return
        if stream.is_input:
            if stamp_ns <= newest:
                return
            if gap := self._gap(stream, stamp_ns):
                self._fail(episode, gap)
                return
            self._newest[stream] = stamp_ns
            self._arrived[stream] = time.monotonic()
            self._seen[stream].add(stamp_ns)
        if silent := self._silent(stamp_ns):
            self._fail(episode, silent)
            return
        self._queued_bytes += len(data)
        if self._queued_bytes > self._settings.queue_bytes:
            self._fail(
                episode,
                f"the recorder cannot keep up: {self._queued_bytes >> 20} MiB wait to be written; use "
                "smaller images, jpeg, or a faster disk",
            )
            return
        self._queue.put(_Item(episode, stream, stamp_ns, data))

    def _silent(self, stamp_ns: int) -> str:
        """Names an input that others have left behind, on the robot's clock and on ours: in lockstep the
        robot's clock runs ahead while messages wait for us.
        """
        for stream in self._recent:
            late = time.monotonic() - self._arrived.get(stream, self._began) > SILENCE_S
            if late and (gap := self._gap(stream, stamp_ns)):
                return gap
        return ""

    def _gap(self, stream: Stream, stamp_ns: int) -> str:
        """Says how long an input was silent before this moment of the robot's clock, if it was too long."""
        age_ns = stamp_ns - self._newest.get(stream, self._start_ns)
        if age_ns <= (stream.max_age_s + SILENCE_S) * SECOND_NS:
            return ""
        silent = f"{age_ns / SECOND_NS:.1f} s of the robot's clock"
        return f"expected messages on '{stream.topic}', found none for {silent}"

    def _fail(self, episode: _Running, message: str) -> None:
        """Gives an episode up; the lock is held."""
        if not episode.failed:
            episode.failed = message
            if episode is self._running:
                self._fault(message)

    def held_ns(self) -> int:
        """Returns up to which stamp observations are held, for a world that can wait; 0: nothing is recorded.

        It stands still while much waits to be written.
        """
        with self._changed:
            if self._running is None or self._running.failed:
                return 0
            if self._queued_bytes <= self._settings.queue_bytes // 2:
                self._held_ns = max(self._held_ns, self._newest_ns())
            return self._held_ns

    # From the runner ----------------------------------------------------------------------------------------

    def begin(self, episode_id: str, start_ns: int, mode: Mode) -> None:
        """Records from the observation of `start_ns` on.

        Raises:
            SpoolFull: The disk is full.
            EpisodeDuplicate: The id is in use.
        """
        self.abort()
        writer = EpisodeWriter(self._folder_of(mode), episode_id, self._embodiment)
        with self._changed:
            self._running = episode = _Running(writer)
            self._start_ns = self._held_ns = start_ns
            self._newest.clear()
            self._arrived.clear()
            self._began = time.monotonic()
            self._seen = {stream: set() for stream in self._recent}
            self._steps.clear()
            for stream, recent in self._recent.items():
                for stamp_ns, data in recent:
                    self._take(episode, stream, stamp_ns, data)

    def newest_ns(self) -> int:
        """Returns the stamp of the newest observation that every input has reached; 0 before the first."""
        with self._changed:
            return self._newest_ns()

    def write(self, topic: str, type_name: str, stamp_ns: int, data: bytes) -> None:
        """Records a message of the node's own."""
        self.put(Stream(topic, type_name), stamp_ns, data)

    def finish(self, summary: Summary) -> RecorderClosing:
        """Waits for the last observation and lets the episode be closed after what is queued for it."""
        with self._changed:
            episode = self._running
            if episode is not None:
                # The state of the last observation may come a moment later than its image.
                episode.end_ns = summary.stamp_ns
                self._changed.wait_for(
                    lambda: episode.failed or self._has_all_until(summary.stamp_ns), timeout=LAST_STATE_S
                )
            self._running = None
            lost = self._losses(summary)
        closing = RecorderClosing(summary.episode_id, self._settings.settle_s)
        if episode is None:
            closing.future.set_exception(
                EpisodeInvalid(f"episode {summary.episode_id}: nothing is being recorded")
            )
            return closing

        def close() -> None:
            if not closing.future.set_running_or_notify_cancel():
                episode.writer.abort()
                return
            # What a fault cut short is kept as far as it goes; anything else has to be whole.
            failed = (episode.failed or lost) if summary.end_reason is not EndReason.FAULT else ""
            try:
                if failed:
                    raise EpisodeInvalid(f"episode {summary.episode_id}: {failed}")
                closing.future.set_result(episode.writer.close(summary))
            except EfmError as error:
                episode.writer.abort()
                closing.future.set_exception(error)

        self._queue.put(close)
        return closing

    def abort(self) -> None:
        """Drops the running episode; does nothing when there is none."""
        with self._changed:
            episode, self._running = self._running, None
        if episode is not None:
            # After what is queued for it, so that nothing is written into a closed file.
            self._queue.put(episode.writer.abort)

    def close(self) -> None:
        """Drops a running episode and ends the thread."""
        self.abort()
        self._queue.put(None)
        self._thread.join(self._settings.settle_s)

    def _newest_ns(self) -> int:
        if any(stream not in self._newest for stream in self._recent):
            return 0
        return min(self._newest[stream] for stream in self._paced())

    def _has_all_until(self, stamp_ns: int) -> bool:
        return all(self._newest.get(stream, 0) >= stamp_ns for stream in self._recent)

    def _paced(self) -> list[Stream]:
        """Returns the inputs of which each message is a new observation: the cameras, else the state."""
        cameras = [stream for stream in self._recent if stream.type_name.endswith("Image")]
        return cameras or list(self._recent)

    def _losses(self, summary: Summary) -> str:
        """Says how many observations of the episode's steps are missing, if they are too many."""
        steps = {stamp_ns for stamp_ns in self._steps if summary.start_ns <= stamp_ns < summary.stamp_ns}
        lost = len(steps.difference(*(self._seen.get(stream, ()) for stream in self._paced())))
        if lost <= LARGEST_LOSS * len(steps):
            return ""
        return f"the observations of {lost} of {len(steps)} steps are missing: the recorder could not keep up"

    # The thread ---------------------------------------------------------------------------------------------

    def _main(self) -> None:
        while (item := self._queue.get()) is not None:
            if not isinstance(item, _Item):
                item()
            else:
                with self._changed:
                    self._queued_bytes -= len(item.data)
                try:
                    self._write(item)
                except Exception as error:  # noqa: BLE001 the thread outlives whatever one episode meets
                    with self._changed:
                        self._fail(item.episode, str(error) or type(error).__name__)
            if self._queue.empty():
                time.sleep(GATHER_S)

    def _write(self, item: _Item) -> None:
        if not item.stream.camera:
            item.episode.writer.write(item.stream.topic, item.stream.type_name, item.stamp_ns, item.data)
            return
        image, frame_id = self._decode(item.data)
        kind: Literal["png", "jpeg"]
        small = image.shape[0] * image.shape[1] <= PNG_LARGEST_PX
        kind = (
            "png"
            if self._settings.image_format == "png" or (self._settings.image_format == "auto" and small)
            else "jpeg"
        )
        quality = self._settings.jpeg_quality
        item.episode.writer.write_image(item.stream.camera, item.stamp_ns, image, kind, quality, frame_id)
