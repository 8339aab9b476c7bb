"""Draws a `Look` beside camera pictures: what was asked, how far it is, who acts. OpenCV, no ROS.

The pictures stay as they are; everything else stands below them, so that nothing of the scene is hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from efm_bringup.look import GREY, WHITE, Colour, Look

Image = npt.NDArray[np.uint8]

BACKGROUND: Colour = (28, 30, 34)
FAINT: Colour = (90, 94, 100)
LINES = 3  # Of text.
FONT = cv2.FONT_HERSHEY_SIMPLEX
BASE_WIDTH = 480  # Width at which letters have their plain size.
LINE_HEIGHT, MARGIN, CURVE_HEIGHT, EDGE = 22, 8, 74, 4


def annotate(pictures: Sequence[Image], look: Look, width: int) -> Image:
    """Returns the pictures side by side, with what is known of the robot below.

    Args:
        pictures: uint8 [H, W, 3] RGB, of any size; may be empty.
        look: How the robot looks.
        width: Of the result in pixels.

    Returns:
        uint8 [height, width, 3] RGB; the height follows from the pictures' shape.
    """
    scale = width / BASE_WIDTH
    panel = np.full(
        (round((LINES * LINE_HEIGHT + CURVE_HEIGHT + 3 * MARGIN) * scale), width, 3), BACKGROUND, np.uint8
    )
    _write(panel, look, scale)
    top = round((LINES * LINE_HEIGHT + 2 * MARGIN) * scale)
    margin = round(MARGIN * scale)
    _plot(panel[top:-margin, margin:-margin], look, scale)
    rows = [panel] if not pictures else [_side_by_side(pictures, width), panel]
    result = np.concatenate(rows)
    edge = max(1, round(EDGE * scale))
    cv2.rectangle(result, (0, 0), (width - 1, len(result) - 1), look.success_colour, edge)
    return result


def tile(images: Sequence[Image]) -> Image:
    """Returns images of one width as a sheet with about as many columns as rows."""
    columns = math.ceil(math.sqrt(len(images)))
    height = max(len(image) for image in images)
    width = images[0].shape[1]
    rows = math.ceil(len(images) / columns)
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet[row * height : row * height + len(image), column * width : (column + 1) * width] = image
    return sheet


def _side_by_side(pictures: Sequence[Image], width: int) -> Image:
    """All pictures at one height, together as wide as the panel."""
    aspect = sum(picture.shape[1] / picture.shape[0] for picture in pictures)
    height = max(1, round(width / aspect))
    ends = np.cumsum([0.0, *(picture.shape[1] / picture.shape[0] for picture in pictures)]) / aspect * width
    row = np.empty((height, width, 3), np.uint8)
    for picture, begin, end in zip(
        pictures, ends.round().astype(int), ends[1:].round().astype(int), strict=False
    ):
        # Small pictures are shown with their pixels, as the model gets them.
        method = cv2.INTER_NEAREST if picture.shape[0] < height else cv2.INTER_AREA
        row[:, begin:end] = cv2.resize(picture, (end - begin, height), interpolation=method)
    return row


def _write(panel: Image, look: Look, scale: float) -> None:
    """Three lines: robot and instruction; distance and verdict; control, bundle and reward."""
    reward = f"reward {look.reward:+.1f}" if math.isfinite(look.reward) else ""
    bundle = f"bundle {look.bundle_id[:8]}" if look.bundle_id else ""
    step = f"step {look.step}" if look.step else ""
    lines: list[list[tuple[str, Colour]]] = [
        [(look.robot, GREY), (look.instruction or "no instruction yet", WHITE)],
        [
            (look.distance or "not judged", look.success_colour),
            (look.verdict, look.success_colour),
            (reward, WHITE),
        ],
        [(look.control, look.control_colour), (step, GREY), (bundle, GREY), (look.message, GREY)],
    ]
    for number, parts in enumerate(lines):
        x = round(MARGIN * scale)
        y = round((MARGIN + (number + 0.75) * LINE_HEIGHT) * scale)
        for text, colour in parts:
            if text:
                x += _text(panel, text, (x, y), colour, scale) + round(1.5 * MARGIN * scale)


def _plot(area: Image, look: Look, scale: float) -> None:
    """Steps to go over the episode, with the threshold as a line; `area` is drawn into."""
    height, width = area.shape[:2]
    cv2.rectangle(area, (0, 0), (width - 1, height - 1), FAINT, 1)
    curve = np.asarray(look.curve, np.float64)
    curve = curve[np.isfinite(curve)]
    top = max(1.0, float(curve.max()) if len(curve) else look.greatest)
    if math.isfinite(look.threshold) and look.threshold <= top:
        y = _row(look.threshold, top, height)
        cv2.line(area, (0, y), (width - 1, y), look.success_colour, 1)
    if len(curve) < 2:
        return
    x = np.linspace(1, width - 2, len(curve))
    points = np.stack([x, [_row(value, top, height) for value in curve]], axis=1)
    cv2.polylines(area, [points.round().astype(np.int32)], False, WHITE, max(1, round(scale)), cv2.LINE_AA)
    _text(area, f"{top:.0f}", (3, round(12 * scale)), GREY, 0.7 * scale)


def _row(value: float, top: float, height: int) -> int:
    return round((1.0 - min(1.0, max(0.0, value / top))) * (height - 3)) + 1


def _text(area: Image, text: str, place: tuple[int, int], colour: Colour, scale: float) -> int:
    """Writes and returns the width; OpenCV's letters are ASCII."""
    plain = text.encode("ascii", "replace").decode()
    size, thickness = 0.5 * scale, max(1, round(scale))
    cv2.putText(area, plain, place, FONT, size, colour, thickness, cv2.LINE_AA)
    return int(cv2.getTextSize(plain, FONT, size, thickness)[0][0])
