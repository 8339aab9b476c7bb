"""Writes rosbag2 folders with MCAP storage: the writer of `rosbags`, with checksums and without its delays.

`rosbags` leaves the checksums of chunks empty, computes the definition of a message type anew for every bag,
and writes the metadata, and the QoS of every topic, with a YAML library in pure Python. The latter take 60 ms
of Python for each bag, which a recorder would take from the messages of the next one.
"""

from __future__ import annotations

import functools
import textwrap
import zlib
from pathlib import Path
from typing import Any, Literal

import yaml
from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.metadata import dump_qos_v9
from rosbags.rosbag2.storage_mcap import McapWriter

from efm_core.schemas import message_class, typestore

VERSION: Literal[9] = 9  # Of rosbag2's metadata, as in Jazzy.
# Where a chunk record has the checksum of its content: after opcode, length, two times and a size.
_CHUNK_CHECKSUM_AT = 9 + 24
_FOREVER = QosTime(9223372036, 854775807)
# What nodes publish with of which late joiners hear the last message too.
_LATCHED = Qos(
    QosHistory.KEEP_LAST,
    1,
    QosReliability.RELIABLE,
    QosDurability.TRANSIENT_LOCAL,
    _FOREVER,
    _FOREVER,
    QosLiveliness.AUTOMATIC,
    _FOREVER,
    avoid_ros_namespace_conventions=False,
)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Storage(McapWriter):
    """The MCAP storage of rosbags with the checksums of chunks."""

    def close_chunk(self) -> None:
        start, checksum = self.bio.tell(), zlib.crc32(self.chunk.bio.getvalue())
        super().close_chunk()
        end = self.bio.tell()
        self.bio.seek(start + _CHUNK_CHECKSUM_AT)
        self.bio.write(checksum.to_bytes(4, "little"))
        self.bio.seek(end)


class BagWriter(Writer):
    """One bag. Made for one thread at a time; `open` first, then topics, messages (`write`) and `close`."""

    STORAGE_PLUGINS = {**Writer.STORAGE_PLUGINS, StoragePlugin.MCAP: _Storage}

    def __init__(self, path: Path) -> None:
        """Takes the folder, which `open` makes."""
        super().__init__(path, version=VERSION, storage_plugin=StoragePlugin.MCAP)

    def add_topic(self, topic: str, type_name: str, latched: bool = False) -> Connection:
        """Adds a topic.

        Args:
            topic: its name.
            type_name: such as sensor_msgs/msg/JointState.
            latched: `ros2 bag play` sends it transient local, as the node did: whoever listens to the node's
                topic would not hear it otherwise.

        Raises:
            EpisodeInvalid: the type is unknown.
        """
        definition, digest = _definition(type_name)
        if self.storage is None:
            raise ValueError(f"{self.path}: the bag is not open")
        connection = Connection(
            id=len(self.connections) + 1,
            topic=topic,
            msgtype=type_name,
            msgdef=MessageDefinition(MessageDefinitionFormat.MSG, definition),
            digest=digest,
            msgcount=0,
            ext=ConnectionExtRosbag2("cdr", [_LATCHED] if latched else []),
            owner=self,
        )
        if type_name not in self.added_types:
            self.storage.add_msgtype(connection)
            self.added_types.add(type_name)
        self.storage.add_connection(connection, _qos_text(latched))
        self.connections.append(connection)
        self.counts[connection.id] = 0
        return connection

    def close(self) -> None:
        """Writes what is left, and the metadata into the MCAP file and beside it."""
        if self.storage is None:
            raise ValueError(f"{self.path}: the bag is not open")
        file = self.storage.path.name
        information = {
            "version": VERSION,
            "storage_identifier": "mcap",
            "relative_file_paths": [file],
            **self._span(),
            "topics_with_message_count": [self._topic(connection) for connection in self.connections],
            "compression_format": "",
            "compression_mode": "",
            "files": [{"path": file, **self._span()}],
            "custom_data": self.custom_data,
            "ros_distro": "rosbags",
        }
        text = yaml.dump(information, Dumper=_DUMPER, sort_keys=False, width=2**31 - 1)
        self.storage.close(VERSION, text)
        self.storage = None
        self.metapath.write_text(f"rosbag2_bagfile_information:\n{textwrap.indent(text, '  ')}", "utf-8")

    def _span(self) -> dict[str, Any]:
        return {
            "starting_time": {"nanoseconds_since_epoch": self.min_timestamp},
            "duration": {"nanoseconds": max(0, self.max_timestamp - self.min_timestamp)},
            "message_count": sum(self.counts.values()),
        }

    def _topic(self, connection: Connection) -> dict[str, Any]:
        return {
            "topic_metadata": {
                "name": connection.topic,
                "type": connection.msgtype,
                "serialization_format": "cdr",
                "offered_qos_profiles": dump_qos_v9(getattr(connection.ext, "offered_qos_profiles", [])),
                "type_description_hash": connection.digest,
            },
            "message_count": self.counts[connection.id],
        }


@functools.cache
def _qos_text(latched: bool) -> str:
    """Returns the QoS that a topic is recorded with, as the MCAP file keeps it."""
    offered = dump_qos_v9([_LATCHED] if latched else [])
    text: str = yaml.dump(offered, Dumper=_DUMPER, default_flow_style=False)
    return text.strip()


@functools.cache
def _definition(type_name: str) -> tuple[str, str]:
    """Returns a type's definition with all that it is made of, and its hash."""
    message_class(type_name)
    definition, _ = typestore().generate_msgdef(type_name, ros_version=2)
    return definition, typestore().hash_rihs01(type_name)
