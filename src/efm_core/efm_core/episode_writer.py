"""Records one episode into a rosbag2 folder (MCAP), from any thread, onto the disk as it comes.

    writer = EpisodeWriter(spool, new_episode_id(...), embodiment)
    writer.write_image("top", stamp_ns, rgb)
    writer.write("joint_states", "sensor_msgs/msg/JointState", stamp_ns, cdr_bytes)
    folder = writer.close(summary)

Until `close` the files are in `<spool>/.<id>.partial/`; `close` syncs them and renames the folder to
`<spool>/<id>`, so that whatever has the final name is whole. A process that dies leaves the partial folder,
which spool.py puts aside. The embodiment (JSON) and the format's version are custom data of the bag, both
in metadata.yaml and in the MCAP file. This module encodes images but subscribes to nothing and starts no
thread.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rosbags.interfaces import Connection

from efm_core.bag_writer import BagWriter
from efm_core.embodiment import Embodiment
from efm_core.episode_file import EMBODIMENT_KEY, FORMAT, FORMAT_KEY, LATCHED_TOPICS, SUMMARY_TOPIC
from efm_core.errors import EpisodeDuplicate, EpisodeInvalid, SpoolFull
from efm_core.files import disk_full_is_told, sync
from efm_core.ids import check_name
from efm_core.image import encode_image
from efm_core.schemas import IMAGE_TYPE, make_header, message_class, serialize
from efm_core.summary import SUMMARY_TYPE, Summary

# Greatest log time that every reader takes [ns]: MCAP has 64 bits without a sign, most readers 63.
_LATEST_NS = 2**63 - 1


class EpisodeWriter:
    """Writes one episode. Any thread may call its methods; a message is written as a whole or not at all."""

    def __init__(self, spool_dir: Path | str, episode_id: str, embodiment: Embodiment) -> None:
        """Opens the partial folder.

        Raises:
            BadRequest: the id is no safe name. EpisodeDuplicate: the id is in use. SpoolFull: the disk is
                full. EpisodeInvalid: the disk cannot be written otherwise.
        """
        self.id = check_name(episode_id, "episode id")
        self.embodiment = embodiment
        self.path = Path(spool_dir) / self.id
        self._partial = self.path.with_name(f".{self.id}.partial")
        self._connections: dict[str, Connection] = {}
        self._lock = threading.Lock()
        self._open = False
        if self.path.exists():
            raise EpisodeDuplicate(f"{self.path}: an episode of this id is here already; use a new id")
        with self._dropped_on_error():
            try:
                self._partial.mkdir(parents=True)
            except FileExistsError as error:
                raise EpisodeDuplicate(
                    f"{self._partial}: an episode of this id is being recorded, or was cut off; use a new id"
                ) from error
            # rosbags names the MCAP file after its folder: the bag gets its final name inside the partial.
            bag = self._partial / self.id
            self._bag = BagWriter(bag)
            self._bag.set_custom_data(FORMAT_KEY, str(FORMAT))
            self._bag.set_custom_data(EMBODIMENT_KEY, json.dumps(embodiment.to_dict(), sort_keys=True))
            self._open = True
            self._bag.open()

    def write(self, topic: str, type_name: str, stamp_ns: int, cdr_bytes: bytes | memoryview) -> None:
        """Writes one serialised message.

        Args:
            topic: relative to the robot's namespace; a leading "/" or "~/" is dropped.
            type_name: such as sensor_msgs/msg/JointState.
            stamp_ns: of the message's header, else when it was received; becomes the bag's log time [ns].
            cdr_bytes: the message as it came over the wire.

        Raises:
            SpoolFull: the disk is full; the episode was dropped from the disk and the writer is closed.
            EpisodeInvalid: unknown type, the topic has another type, no such time, the writer is closed, or
                the disk failed otherwise, and the episode was dropped from it.
        """
        with self._lock:
            self._write(topic, type_name, stamp_ns, cdr_bytes)

    def write_image(
        self,
        camera: str,
        stamp_ns: int,
        image: np.ndarray | bytes | memoryview,
        image_format: Literal["png", "jpeg"] = "png",
        quality: int = 95,
        frame_id: str = "",
    ) -> None:
        """Writes one image of a camera of the embodiment.

        Args:
            camera: name in the embodiment.
            stamp_ns: when it was taken [ns].
            image: uint8 [H, W, 3] RGB, encoded here; or the bytes of an image in `image_format`.
            image_format: png (exact) or jpeg (smaller).
            quality: of jpeg, 1 to 100.
            frame_id: of the image.

        Raises:
            EmbodimentInvalid: no such camera.
            ObservationInvalid: no RGB image. Otherwise as `write`.
        """
        topic = self.embodiment.camera(camera).recorded_topic
        encoded = encode_image(image, image_format, quality) if isinstance(image, np.ndarray) else image
        data = np.frombuffer(encoded, np.uint8)
        message = message_class(IMAGE_TYPE)(
            header=make_header(stamp_ns, frame_id), format=image_format, data=data
        )
        self.write(topic, IMAGE_TYPE, stamp_ns, serialize(message))

    def close(self, summary: Summary | Mapping[str, Any] | Any) -> Path:
        """Writes the summary as the last message, syncs everything to the disk and gives it its final name.

        Args:
            summary: a Summary, a mapping of its fields, or an EpisodeSummary message. An empty
                embodiment_digest is filled in.

        Returns:
            The episode's folder.

        Raises:
            EpisodeInvalid: the summary contradicts the episode; the writer stays open, and can be closed
                again.
            SpoolFull: the disk is full; the episode was dropped from the disk.
        """
        value = self._checked(Summary.of(summary))
        with self._lock:
            last_ns = max(self._bag.max_timestamp, value.stamp_ns)
            self._write(SUMMARY_TOPIC, SUMMARY_TYPE, last_ns, serialize(value.to_message()))
            with self._dropped_on_error():
                bag = self._partial / self.id
                self._bag.close()
                for path in (*bag.iterdir(), bag):
                    sync(path)
                bag.rename(self.path)
                sync(self.path.parent)
            self._open = False
            self._partial.rmdir()
        return self.path

    def abort(self) -> None:
        """Drops the episode from the disk; does nothing where it is closed already."""
        with self._lock:
            self._drop()

    def _write(self, topic: str, type_name: str, stamp_ns: int, data: bytes | memoryview) -> None:
        if not self._open:
            raise EpisodeInvalid(f"episode {self.id}: cannot write '{topic}', the episode is closed")
        if not 0 <= stamp_ns <= _LATEST_NS:
            raise EpisodeInvalid(
                f"episode {self.id}: '{topic}': expected a stamp of 0 or more ns, found {stamp_ns}"
            )
        name = relative_topic(topic)
        with self._dropped_on_error():
            connection = self._connections.get(name)
            if connection is None:
                connection = self._bag.add_topic(name, type_name, latched=name in LATCHED_TOPICS)
                self._connections[name] = connection
            elif connection.msgtype != type_name:
                raise EpisodeInvalid(
                    f"episode {self.id}: topic '{name}' is of type {connection.msgtype}, found {type_name}"
                )
            self._bag.write(connection, stamp_ns, data)

    def _checked(self, summary: Summary) -> Summary:
        """Returns the summary with the embodiment's digest."""
        digest = self.embodiment.digest
        where = f"summary of episode {self.id}"
        if summary.episode_id != self.id:
            raise EpisodeInvalid(f"{where}: expected episode_id {self.id}, found '{summary.episode_id}'")
        if summary.embodiment_digest not in ("", digest):
            raise EpisodeInvalid(
                f"{where}: expected embodiment_digest {digest}, found {summary.embodiment_digest}"
            )
        if not 0 <= summary.start_ns <= summary.stamp_ns:
            raise EpisodeInvalid(
                f"{where}: expected 0 <= start <= header.stamp, found {summary.start_ns} and "
                f"{summary.stamp_ns} ns"
            )
        return dataclasses.replace(summary, embodiment_digest=digest)

    @contextmanager
    def _dropped_on_error(self) -> Iterator[None]:
        """Drops the episode where the disk fails: half an episode is worth nothing and takes space."""
        try:
            with disk_full_is_told(f"episode {self.id}", self._partial):
                yield
        except SpoolFull:
            self._drop()
            raise
        except OSError as error:
            self._drop()
            raise EpisodeInvalid(
                f"episode {self.id} cannot be written to {self._partial}: {error.strerror or error}; it is "
                "dropped"
            ) from error

    def _drop(self) -> None:
        if self._open:
            self._open = False
            with suppress(OSError):  # Closing flushes what is left, and fails again on a full disk.
                self._bag.abort()
            shutil.rmtree(self._partial, ignore_errors=True)


def relative_topic(topic: str) -> str:
    """Returns a topic as episodes name it: without a leading "/" or "~/"."""
    return topic.removeprefix("~").lstrip("/")
