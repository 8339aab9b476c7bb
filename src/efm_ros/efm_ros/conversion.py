"""ROS messages to numpy arrays and back, without needless copies.

Images become uint8 [H, W, 3] RGB, stamps become integer nanoseconds, joint states become vectors in the order
of the embodiment, matched by name.
Left out: preprocessing to the model's size (`efm_core.image`) and commands (`commands`).
"""

from __future__ import annotations

import array
from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray, Header

from efm_core.embodiment import State
from efm_core.errors import ObservationInvalid, nearest
from efm_core.image import decode_compressed
from efm_core.message_values import state_values

NANOSECONDS = 1_000_000_000
# Encoding -> (bytes of a pixel, OpenCV conversion to RGB, None where it is RGB already).
ENCODINGS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
}


def stamp_to_ns(stamp: Time) -> int:
    """Gives a stamp as integer nanoseconds."""
    return stamp.sec * NANOSECONDS + stamp.nanosec


def ns_to_stamp(stamp_ns: int) -> Time:
    """Gives integer nanoseconds (not negative) as a stamp."""
    seconds, nanoseconds = divmod(int(stamp_ns), NANOSECONDS)
    return Time(sec=seconds, nanosec=nanoseconds)


def image_to_rgb(message: Image) -> np.ndarray:
    """Gives the picture of an image message as RGB.

    Args:
        message: Encoding rgb8, bgr8, mono8, rgba8 or bgra8; rows may be padded (`step`).

    Returns:
        uint8 [H, W, 3]. For rgb8 a view into the message's own memory, which it keeps alive; else a new
        array.

    Raises:
        ObservationInvalid: Unknown encoding, no pixels, or a step or data size that contradicts width and
            height.
    """
    if message.encoding not in ENCODINGS:
        raise ObservationInvalid(
            f"image of frame '{message.header.frame_id}': expected encoding {', '.join(ENCODINGS)}, found "
            f"'{message.encoding}'{nearest(message.encoding, ENCODINGS)}; convert it in the camera driver"
        )
    channels, conversion = ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    row = width * channels
    if height == 0 or width == 0 or step < row or len(message.data) != step * height:
        raise ObservationInvalid(
            f"image of frame '{message.header.frame_id}': expected {height} rows of at least {row} bytes "
            f"({width} pixels of {message.encoding}), found step {step} and {len(message.data)} bytes; the "
            "camera driver contradicts itself"
        )
    rows = np.frombuffer(message.data, np.uint8).reshape(height, step)[:, :row]
    pixels = rows.reshape(height, width, channels)  # A view, with padded rows as well.
    return pixels if conversion is None else cv2.cvtColor(np.ascontiguousarray(pixels), conversion)


def compressed_to_rgb(message: CompressedImage) -> np.ndarray:
    """Gives a JPEG or PNG message as uint8 [H, W, 3] RGB; ObservationInvalid when it does not decode."""
    return decode_compressed(message.data)


def rgb_to_image(rgb: np.ndarray, header: Header) -> Image:
    """Makes an image message.

    Args:
        rgb: uint8 [H, W, 3].
        header: Stamp and frame of the picture.

    Returns:
        A message with encoding rgb8 that owns a copy of the pixels.

    Raises:
        ObservationInvalid: The array is not uint8 [H, W, 3].
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ObservationInvalid(f"expected an image uint8 [H, W, 3], found {rgb.dtype} {list(rgb.shape)}")
    height, width = rgb.shape[:2]
    message = Image(header=header, height=height, width=width, encoding="rgb8", step=3 * width)
    set_bytes(message, "data", memoryview(np.ascontiguousarray(rgb)).cast("B"))
    return message


def set_bytes(message: Any, field: str, data: bytes | bytearray | memoryview) -> None:
    """Fills a uint8[] field past the setter, which checks every byte in Python (2 ms for one image)."""
    values = array.array("B")
    values.frombytes(data)
    setattr(message, f"_{field}", values)


def state_from_message(message: JointState | Float64MultiArray, state: State) -> np.ndarray:
    """Reads the state vector out of a message, joints by name.

    Args:
        message: Joints in any order, more of them than wanted is fine; or an array in the embodiment's order.
        state: What the embodiment wants.

    Returns:
        float64 [S] in the order of the embodiment.

    Raises:
        ObservationInvalid: A joint or one of its numbers is missing, the length is wrong, or an entry is not
            finite.
    """
    values = state_values(message, state)
    if not np.isfinite(values).all():
        bad = [
            entry.name for entry, value in zip(state.entries, values, strict=True) if not np.isfinite(value)
        ]
        raise ObservationInvalid(
            f"state on '{state.topic}': expected finite values, found NaN or infinity in {bad}"
        )
    return values
