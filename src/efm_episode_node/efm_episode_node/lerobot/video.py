"""Videos of LeRobot data sets: written episode after episode, and read by time.

H.264 changes pixels a little; frames stand at multiples of the frame's time. Left out: depth, and sound.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from efm_core.errors import BadRequest
from efm_episode_node.lerobot.format import IMAGES, VIDEO_FILE_MB, VIDEO_PATH, FileRoll

CODEC = "libx264"
QUALITY = "18"  # Constant rate factor: hardly to be told from the original.
SPEED = "veryfast"  # A third of the time of x264's own choice, and files no larger.
FULL_COLOUR_PX = 128 * 128  # Up to here colours keep their resolution; recorders keep such images exactly.
KEY_FRAMES = "2"  # Close together, since training reads single frames.


class VideoFiles:
    """The videos of one camera; episodes follow one another within a file."""

    def __init__(self, root: Path, camera: str, fps: int, limit_mb: float = VIDEO_FILE_MB) -> None:
        """Begins; a file is made with the first image."""
        self.key = f"{IMAGES}{camera}"
        self.size: tuple[int, int] | None = None
        self._fps = fps
        self._roll = FileRoll(root, VIDEO_PATH, limit_mb, video_key=self.key)
        self._container: Any = None
        self._stream: Any = None
        self._frames = self._first = self._bytes = 0

    def begin(self) -> None:
        """Begins an episode."""
        if self._roll.is_full(self._bytes):
            self.close()
            self._roll.next()
        self._first = self._frames

    def write(self, image: np.ndarray) -> None:
        """Adds an image uint8 [H, W, 3].

        Raises:
            BadRequest: It has another size than those before.
        """
        size = (int(image.shape[0]), int(image.shape[1]))
        self.size = self.size or size
        if size != self.size:
            raise BadRequest(
                f"camera '{self.key.removeprefix(IMAGES)}': expected images of {self.size[1]} x "
                f"{self.size[0]} pixels like the first ones, found {size[1]} x {size[0]}; export them apart"
            )
        if self._container is None:
            self._open()
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = self._frames, Fraction(1, self._fps)
        for packet in self._stream.encode(frame):
            self._bytes += packet.size
            self._container.mux(packet)
        self._frames += 1

    def place(self, length: int) -> dict[str, Any]:
        """Says where the `length` first images of the present episode are."""
        return {
            f"videos/{self.key}/chunk_index": self._roll.chunk,
            f"videos/{self.key}/file_index": self._roll.file,
            f"videos/{self.key}/from_timestamp": self._first / self._fps,
            f"videos/{self.key}/to_timestamp": (self._first + length) / self._fps,
        }

    def close(self) -> None:
        """Finishes the present file."""
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()
            self._container = None
            self._frames = self._bytes = 0

    def feature(self) -> dict[str, Any]:
        """Describes the camera as info.json does."""
        assert self.size is not None
        height, width = self.size
        return {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": self._pixels(),
                "video.is_depth_map": False,
                "video.fps": self._fps,
                "video.channels": 3,
                "has_audio": False,
            },
        }

    def _pixels(self) -> str:
        """Returns how pixels are stored: with half the colours' resolution, as players want it, where sizes
        are even and it does no harm; the coloured things of a small picture would bleed by 170 of 255.
        """
        assert self.size is not None
        height, width = self.size
        is_small = height * width <= FULL_COLOUR_PX
        return "yuv444p" if is_small or height % 2 or width % 2 else "yuv420p"

    def _open(self) -> None:
        assert self.size is not None
        self._container = av.open(str(self._roll.path()), "w")
        self._stream = self._container.add_stream(CODEC, rate=self._fps)
        self._stream.height, self._stream.width = self.size
        self._stream.pix_fmt = self._pixels()
        self._stream.time_base = Fraction(1, self._fps)
        options = {"crf": QUALITY, "preset": SPEED, "g": KEY_FRAMES, "bf": "0", "rc-lookahead": "0"}
        self._stream.options = options


def read_video(path: Path, start_s: float, count: int, fps: float) -> Iterator[np.ndarray]:
    """Yields `count` frames of a video, uint8 [H, W, 3], from the one at `start_s` on.

    Raises:
        BadRequest: The file cannot be read, or a frame is not where it belongs.
    """
    index = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            base = float(stream.time_base or 0)
            container.seek(max(0, round(start_s / base) - 1), backward=True, any_frame=False, stream=stream)
            for frame in container.decode(stream):
                if index == count:
                    return
                late = float(frame.pts or 0) * base - (start_s + index / fps)
                if late < -0.5 / fps:
                    continue
                if late > 0.5 / fps:
                    break
                yield frame.to_ndarray(format="rgb24")
                index += 1
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise BadRequest(f"{path}: expected a video, found: {error}") from error
    if index < count:
        raise BadRequest(
            f"{path}: expected {count} frames from {start_s:.3f} s on at {fps:g} Hz, found {index} of them"
        )
