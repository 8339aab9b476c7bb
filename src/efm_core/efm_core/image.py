"""Images on their way to a model: decoding, encoding, and the one resizing that training and serving share.

All images are uint8 [H, W, 3] in RGB. Normalisation to floats is inside the model; nothing here crops.
"""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from efm_core.errors import ObservationInvalid

ImageArray = npt.NDArray[np.uint8]

# The recorder must keep up: run lengths and one filter for all rows take half the time of the smallest files,
# which save a few percent of a camera's images. OpenCV before 4.12 cannot be told the filter.
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
if hasattr(cv2, "IMWRITE_PNG_FILTER"):
    _PNG_OPTIONS += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB]


def check_image(image: npt.NDArray[Any], where: str = "image") -> None:
    """Raises ObservationInvalid unless `image` is uint8 [H, W, 3] and not empty."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = (
            f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        )
        raise ObservationInvalid(f"{where}: expected uint8 [height, width, 3] in RGB, found {found}")
    if image.size == 0:
        raise ObservationInvalid(f"{where}: expected at least one pixel, found the shape {list(image.shape)}")


def prepare_image(image: ImageArray, height: int, width: int) -> ImageArray:
    """Makes an image fit for a model: stretched to the size, rows one after the other in memory.

    Args:
        image: uint8 [H, W, 3], RGB.
        height: of the model's input [px].
        width: of the model's input [px].

    Returns:
        uint8 [height, width, 3]; the very array that came in where it fits already, so do not write into it.

    Raises:
        ObservationInvalid: wrong shape or dtype.
    """
    check_image(image)
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    # Areas do not alias when an image shrinks; when it grows, cv2 makes blocks of them.
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: ImageArray = cv2.resize(image, (width, height), interpolation=interpolation)
    return resized


def decode_compressed(data: bytes | bytearray | memoryview | ImageArray) -> ImageArray:
    """Decodes a PNG, JPEG or other image file that OpenCV knows.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        ObservationInvalid: the bytes are no image.
    """
    buffer = np.frombuffer(data, dtype=np.uint8)
    # A camera's mount is not a matter of the viewer: orientation tags are ignored.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(buffer, flags) if buffer.size else None
    except cv2.error:
        image = None
    if image is None:
        start = bytes(buffer[:8]).hex(" ") or "nothing"
        raise ObservationInvalid(
            f"compressed image: expected PNG or JPEG, found {buffer.size} bytes that begin with {start}"
        )
    rgb: ImageArray = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return rgb


def encode_image(image: ImageArray, format: Literal["png", "jpeg"], jpeg_quality: int = 95) -> bytes:
    """Encodes an image as a file: png keeps every pixel, jpeg is smaller.

    Args:
        image: uint8 [H, W, 3], RGB.
        format: "png" or "jpeg".
        jpeg_quality: 1 (smallest) to 100 (best); without effect on png.

    Raises:
        ObservationInvalid: wrong shape or dtype.
        ValueError: unknown format, or a quality out of range.
    """
    check_image(image)
    if format not in ("png", "jpeg"):
        raise ValueError(f"image format: expected 'png' or 'jpeg', found '{format}'")
    if not 1 <= jpeg_quality <= 100:
        raise ValueError(f"JPEG quality: expected 1 .. 100, found {jpeg_quality}")
    options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality] if format == "jpeg" else _PNG_OPTIONS
    done, data = cv2.imencode(f".{format}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ObservationInvalid(f"image of shape {list(image.shape)} cannot be encoded as {format}")
    return bytes(data.tobytes())
