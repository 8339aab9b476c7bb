"""The message types of recorded episodes, without ROS: definitions, and bytes to messages and back.

Built on `rosbags`: the common interfaces of Jazzy come with it, those of efm_msgs are read from their .msg
files, so that there is one definition of each. Messages are plain objects with the same fields as in rclpy.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
from pathlib import Path
from typing import Any

from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from efm_core.errors import EpisodeInvalid, nearest

SECOND_NS = 1_000_000_000
IMAGE_TYPE = "sensor_msgs/msg/CompressedImage"  # How every image is recorded.


@functools.cache
def typestore() -> Typestore:
    """Returns the one store of message types: Jazzy's common interfaces and efm_msgs.

    Raises:
        EpisodeInvalid: the definitions of efm_msgs are nowhere; lists where they were looked for.
    """
    store = get_typestore(Stores.ROS2_JAZZY)
    types: dict[str, Any] = {}
    for path in sorted(_definitions_folder().glob("*.msg")):
        types.update(get_types_from_msg(path.read_text(encoding="utf-8"), f"efm_msgs/msg/{path.stem}"))
    store.register(types)
    return store


def message_class(type_name: str) -> Any:
    """Returns the class of a message type such as std_msgs/msg/String.

    Raises:
        EpisodeInvalid: the type is unknown.
    """
    types = typestore().types
    if type_name not in types:
        raise EpisodeInvalid(f"unknown message type '{type_name}'{nearest(type_name, types)}")
    return types[type_name]


def serialize(message: Any) -> bytes:
    """Returns a message of `message_class` as CDR.

    Raises:
        EpisodeInvalid: a field has a value that its type does not take.
    """
    try:
        return bytes(typestore().serialize_cdr(message, message.__msgtype__))
    except (struct.error, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise EpisodeInvalid(
            f"{message.__msgtype__}: a field has a value of the wrong kind: {error}"
        ) from error


def deserialize(data: bytes | memoryview, type_name: str) -> Any:
    """Returns the message in CDR bytes.

    Raises:
        EpisodeInvalid: the bytes are no message of that type.
    """
    message_class(type_name)
    try:
        return typestore().deserialize_cdr(data, type_name)
    except (SerdeError, IndexError, AssertionError) as error:
        raise EpisodeInvalid(f"expected a message of type {type_name}, found other bytes: {error}") from error


@functools.cache
def has_header(type_name: str) -> bool:
    """Tells whether messages of a type begin with a std_msgs/Header."""
    message_class(type_name)
    _, fields = typestore().fielddefs[type_name]
    return fields[0][0] == "header"


def header_stamp_ns(data: bytes | memoryview) -> int:
    """Returns the stamp of a message that begins with a header, from its CDR bytes alone [ns].

    Raises:
        EpisodeInvalid: the bytes are too few.
    """
    if len(data) < 12:
        raise EpisodeInvalid(f"expected a message with a header, found {len(data)} bytes")
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(seconds) * SECOND_NS + int(nanoseconds)


def stamp_to_ns(stamp: Any) -> int:
    """Returns a builtin_interfaces/Time in nanoseconds."""
    return int(stamp.sec) * SECOND_NS + int(stamp.nanosec)


def make_time(stamp_ns: int) -> Any:
    """Returns a builtin_interfaces/Time."""
    seconds, nanoseconds = divmod(int(stamp_ns), SECOND_NS)
    return message_class("builtin_interfaces/msg/Time")(sec=seconds, nanosec=nanoseconds)


def make_header(stamp_ns: int, frame_id: str = "") -> Any:
    """Returns a std_msgs/Header."""
    return message_class("std_msgs/msg/Header")(stamp=make_time(stamp_ns), frame_id=frame_id)


def _definitions_folder() -> Path:
    """Returns the folder with the .msg files of efm_msgs: installed, else of the source tree."""
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)), sys.prefix]
    folders = [Path(prefix) / "share/efm_msgs/msg" for prefix in prefixes]
    folders += [parent / "efm_msgs/msg" for parent in Path(__file__).resolve().parents]
    for folder in folders:
        if (folder / "EpisodeSummary.msg").is_file():
            return folder
    places = ", ".join(map(str, folders[: len(prefixes)]))
    raise EpisodeInvalid(
        f"expected the message definitions of efm_msgs in {places}, found none: build efm_msgs"
    )
