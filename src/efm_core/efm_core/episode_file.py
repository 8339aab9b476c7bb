"""Reads the file of a recorded episode: one pass over its records in the order of writing, with checksums.

What it gives are raw messages by topic, the embodiment, and the summary. Which observation belongs to which
action is the business of episode_rows.py.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import yaml
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.reader import make_reader
from mcap.records import Channel, Chunk, McapRecord, Message, Metadata, Schema
from mcap.stream_reader import StreamReader, get_chunk_data_stream
from zstandard import ZstdError

from efm_core.embodiment import Embodiment
from efm_core.errors import EfmError, EmbodimentInvalid, EpisodeInvalid, EpisodeTruncated
from efm_core.message_values import message_stamp_ns
from efm_core.schemas import deserialize, has_header, header_stamp_ns
from efm_core.summary import SUMMARY_TYPE, Summary

FORMAT = 1  # Of the episodes that this code writes and reads.
FORMAT_KEY = "efm.format"
EMBODIMENT_KEY = "efm.embodiment"
SUMMARY_TOPIC = "episode_summary"
LATCHED_TOPICS = ("instruction", SUMMARY_TOPIC)
METADATA = "metadata.yaml"
_RECORD = struct.Struct("<BQ")  # Opcode and length of an MCAP record.
_MESSAGE = struct.Struct("<HIQQ")  # Channel, sequence, log time, publish time.
_MAGIC = b"\x89MCAP0\r\n"  # Begins and ends every MCAP file.

# What the reader's libraries raise on bytes that are no MCAP file; their checks are not complete.
_DAMAGE: tuple[type[Exception], ...] = (
    McapError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)
_DAMAGE += (struct.error, RuntimeError, EOFError, ZstdError)


class RawMessage(NamedTuple):
    """One message as it was recorded: log time [ns] and CDR bytes."""

    log_time_ns: int
    data: bytes | memoryview


@dataclass(frozen=True)
class RecordedTopic:
    """All messages of one topic in the order of writing."""

    name: str
    type_name: str
    messages: list[RawMessage]

    def decoded(self) -> Iterator[tuple[RawMessage, Any]]:
        """Yields every message with its decoded form.

        Raises:
            EpisodeInvalid: a message is not of the topic's type.
        """
        for raw in self.messages:
            yield raw, deserialize(raw.data, self.type_name)

    def stamped(self) -> Iterator[tuple[int, RawMessage]]:
        """Yields every message with its own stamp, or where it has none, its log time [ns].

        Raises:
            EpisodeInvalid: a message is not of the topic's type.
        """
        if has_header(self.type_name):
            for raw in self.messages:
                yield header_stamp_ns(raw.data) or raw.log_time_ns, raw
        else:
            for raw, message in self.decoded():
                stamp_ns = message_stamp_ns(message)
                yield raw.log_time_ns if stamp_ns is None else stamp_ns, raw


@dataclass(frozen=True)
class EpisodeFile:
    """The content of an episode's file."""

    path: Path
    embodiment: Embodiment
    summary: Summary
    topics: dict[str, RecordedTopic]

    def topic(self, name: str, type_name: str) -> RecordedTopic | None:
        """Returns a topic of the expected type; None where the episode does not have it or it is empty.

        Raises:
            EpisodeInvalid: the topic has another type.
        """
        found = self.topics.get(name)
        if found is None or not found.messages:
            return None
        if found.type_name != type_name:
            raise EpisodeInvalid(
                f"{self.path}: expected topic '{name}' of type {type_name}, found {found.type_name}"
            )
        return found


def bag_file(folder: Path | str) -> Path:
    """Returns the MCAP file of an episode's folder.

    Raises:
        EpisodeInvalid: there is no such folder, or it does not hold an episode.
        EpisodeTruncated: the folder was left by a recorder that did not finish.
    """
    path = Path(folder)
    if path.name.endswith(".partial") or path.parent.name.endswith(".partial"):
        raise EpisodeTruncated(f"{path}: the recorder did not finish this episode; it cannot be used")
    if not path.is_dir():
        raise EpisodeInvalid(f"{path}: expected an episode's folder, found {_what_is(path)}")
    for file in (path / f"{path.name}.mcap", path / METADATA):
        if not file.is_file():
            raise EpisodeInvalid(
                f"{path}: expected a file {file.name}, found none: is this an episode's folder?"
            )
    return path / f"{path.name}.mcap"


def is_episode(folder: Path) -> bool:
    """Tells whether a folder holds a whole episode, going by its name and its files' names."""
    if folder.name.startswith(".") or not folder.is_dir():
        return False
    try:
        bag_file(folder)
    except EfmError:
        return False
    return True


def list_episodes(directory: Path | str) -> list[Path]:
    """Returns the folders of the whole episodes in a directory, oldest first; none where it does not exist.

    A fleet's spool has one folder for each robot: those are looked into as well. Folders that a recorder did
    not finish have other names and are not among them.
    """
    root = Path(directory)
    if not root.is_dir():
        return []
    visible = [item for item in root.iterdir() if item.is_dir() and not item.name.startswith(".")]
    robots = [item for item in visible if not is_episode(item)]
    inside = [item for robot in robots for item in robot.iterdir() if is_episode(item)]
    return sorted([item for item in visible if is_episode(item)] + inside, key=lambda item: item.name)


def incomplete_episodes(directory: Path | str) -> list[Path]:
    """Returns the folders in a directory, or in those of a fleet, that hold a part of an episode only."""
    root = Path(directory)
    parts = itertools.chain.from_iterable(
        root.glob(pattern) for pattern in ("*/*.mcap", "*/*/*.mcap", f"*/{METADATA}", f"*/*/{METADATA}")
    )
    places = {part.parent for part in parts}
    hidden = {path for path in places if any(name.startswith(".") for name in path.relative_to(root).parts)}
    return sorted(path for path in places - hidden if not is_episode(path))


def read_episode_file(folder: Path | str, unread: Iterable[str] = ()) -> EpisodeFile:
    """Reads an episode's file as a whole.

    Args:
        folder: of the episode.
        unread: topics whose messages are left out.

    Raises:
        EpisodeTruncated: the file ends too early, or the summary is missing.
        EpisodeInvalid: the file is damaged, was made by another version, or contradicts itself.
    """
    file = bag_file(folder)
    try:
        recorded, metadata = _scan(file, frozenset(unread))
    except _DAMAGE as error:
        raise _damaged(file, error) from error
    by_name: dict[str, RecordedTopic] = {}
    for topic in recorded:
        if by_name.setdefault(topic.name, topic) is not topic:
            raise EpisodeInvalid(f"{file}: expected one type for topic '{topic.name}', found two")
    summary = _summary(file, by_name.get(SUMMARY_TOPIC))
    embodiment = _embodiment(file, metadata)
    if summary.embodiment_digest != embodiment.digest:
        raise EpisodeInvalid(
            f"{file}: the summary names embodiment {summary.embodiment_digest}, the file holds "
            f"{embodiment.digest} ('{embodiment.name}')"
        )
    return EpisodeFile(file, embodiment, summary, by_name)


def read_summary(folder: Path | str) -> Summary:
    """Reads only the summary of an episode, through the file's index, however long the episode is.

    Raises:
        EpisodeTruncated, EpisodeInvalid: as `read_episode_file`.
    """
    file = bag_file(folder)
    topic: RecordedTopic | None = None
    try:
        with file.open("rb") as stream:
            reader = make_reader(stream, validate_crcs=True)
            for schema, _, message in reader.iter_messages([SUMMARY_TOPIC, f"/{SUMMARY_TOPIC}"]):
                name = "" if schema is None else schema.name
                topic = RecordedTopic(SUMMARY_TOPIC, name, [RawMessage(message.log_time, message.data)])
    except _DAMAGE as error:
        raise _damaged(file, error) from error
    return _summary(file, topic)


def _scan(file: Path, unread: frozenset[str]) -> tuple[list[RecordedTopic], Metadata | None]:
    """Returns the topics of a file, and the record in which rosbag2 keeps its metadata."""
    schemas: dict[int, str] = {}
    topics: dict[int, RecordedTopic] = {}
    metadata: Metadata | None = None
    with file.open("rb") as stream:
        for record in _records(stream):
            if isinstance(record, tuple):
                topic = topics[record[0]]
                if topic.name not in unread:
                    topic.messages.append(record[1])
            elif isinstance(record, Schema):
                schemas[record.id] = record.name
            elif isinstance(record, Channel) and record.id not in topics:
                topics[record.id] = RecordedTopic(record.topic.lstrip("/"), schemas[record.schema_id], [])
            elif isinstance(record, Metadata) and record.name == "rosbag2":
                metadata = record
    return list(topics.values()), metadata


def _records(stream: IO[bytes]) -> Iterator[McapRecord | tuple[int, RawMessage]]:
    """Yields the records of a file in order; messages as (channel, message), which is many times faster."""
    longest = os.fstat(stream.fileno()).st_size  # A damaged length must not claim the memory of the machine.
    for record in StreamReader(stream, emit_chunks=True, record_size_limit=longest).records:
        if isinstance(record, Message):
            yield record.channel_id, RawMessage(record.log_time, record.data)
        elif isinstance(record, Chunk):
            content, size = get_chunk_data_stream(record, validate_crc=True)
            yield from _chunk_records(content.read(size))
        else:
            yield record


def _chunk_records(content: bytes) -> Iterator[McapRecord | tuple[int, RawMessage]]:
    """Yields the records in a chunk's content."""
    view, position = memoryview(content), 0
    while position < len(content):
        opcode, length = _RECORD.unpack_from(content, position)
        start, position = position + _RECORD.size, position + _RECORD.size + length
        if position > len(content):
            raise ValueError("a record goes past the end of its chunk")
        if opcode == Opcode.MESSAGE:
            channel, _, log_time, _ = _MESSAGE.unpack_from(content, start)
            yield channel, RawMessage(log_time, view[start + _MESSAGE.size : position])
        elif opcode == Opcode.SCHEMA:
            yield Schema.read(ReadDataStream(BytesIO(view[start:position])))
        elif opcode == Opcode.CHANNEL:
            yield Channel.read(ReadDataStream(BytesIO(view[start:position])))


def _summary(file: Path, topic: RecordedTopic | None) -> Summary:
    if topic is None or not topic.messages:
        raise EpisodeTruncated(f"{file}: expected a message on '{SUMMARY_TOPIC}' at the end, found none")
    if topic.type_name != SUMMARY_TYPE:
        raise EpisodeInvalid(
            f"{file}: expected '{SUMMARY_TOPIC}' of type {SUMMARY_TYPE}, found {topic.type_name}"
        )
    if len(topic.messages) != 1:
        raise EpisodeInvalid(
            f"{file}: expected one message on '{SUMMARY_TOPIC}', found {len(topic.messages)}"
        )
    summary = Summary.of(deserialize(topic.messages[0].data, SUMMARY_TYPE))
    if summary.episode_id != file.stem:
        raise EpisodeInvalid(
            f"{file}: expected the summary of episode {file.stem}, found that of '{summary.episode_id}'; "
            "an episode's folder cannot be renamed"
        )
    return summary


def _embodiment(file: Path, metadata: Metadata | None) -> Embodiment:
    """Returns the embodiment from the bag's custom data, which rosbag2 keeps as YAML in the MCAP file."""
    try:
        text = metadata.metadata["serialized_metadata"] if metadata is not None else ""
        custom = (yaml.load(text, Loader=_YAML_LOADER) or {}).get("custom_data") or {}
        version, plain = custom.get(FORMAT_KEY), str(custom.get(EMBODIMENT_KEY, ""))
    except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise EpisodeInvalid(f"{file}: expected the metadata of rosbag2, found: {error}") from error
    if version != str(FORMAT):
        raise EpisodeInvalid(
            f"{file}: expected custom data {FORMAT_KEY} = {FORMAT}, found {version!r}: the bag was not "
            "recorded by EFM, or by another version of it, or was written anew by a tool that drops "
            "custom data"
        )
    try:
        return _parsed_embodiment(plain)
    except (EmbodimentInvalid, ValueError, RecursionError) as error:
        raise EpisodeInvalid(f"{file}: custom data {EMBODIMENT_KEY}: {error}") from error


@functools.lru_cache(maxsize=16)  # Hundreds of episodes have the same few embodiments.
def _parsed_embodiment(text: str) -> Embodiment:
    return Embodiment.from_dict(json.loads(text), where="embodiment")


def _damaged(file: Path, error: Exception) -> EpisodeInvalid | EpisodeTruncated:
    """Says what is wrong with a file that could not be read to its end."""
    with file.open("rb") as stream:
        start = stream.read(len(_MAGIC))
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - len(_MAGIC), 0))
        end = stream.read()
    if not _MAGIC.startswith(start):
        return EpisodeInvalid(f"{file}: expected an MCAP file, found one that begins with {start!r}")
    if end != _MAGIC or size < 2 * len(_MAGIC):
        return EpisodeTruncated(
            f"{file}: ends after {size} bytes without the end of an MCAP file; it was cut off"
        )
    return EpisodeInvalid(f"{file}: damaged: {type(error).__name__}: {error}")


def _what_is(path: Path) -> str:
    return "a file" if path.exists() else "nothing"


_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
