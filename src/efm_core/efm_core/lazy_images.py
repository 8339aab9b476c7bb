"""The images of an episode, decoded when they are asked for.

An episode is often read for its summary, actions or labels alone; images are nearly all of its size and work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efm_core.embodiment import Camera
from efm_core.errors import EpisodeInvalid, ObservationInvalid
from efm_core.image import decode_compressed, prepare_image
from efm_core.schemas import IMAGE_TYPE, deserialize


@dataclass(frozen=True, eq=False)
class EncodedFrames:
    """The images of one camera: CompressedImage messages in CDR, and which of them each row shows."""

    camera: Camera
    messages: list[bytes | memoryview]
    index: npt.NDArray[np.int64]


class LazyImages(Mapping[str, npt.NDArray[np.uint8]]):
    """Camera -> uint8 [N, H, W, 3], RGB at the model's size; a camera is decoded when first asked for."""

    def __init__(self, cameras: Mapping[str, EncodedFrames], where: str) -> None:
        """Takes the encoded images; `where` they come from is for the errors."""
        self._cameras = dict(cameras)
        self._where = where
        self._decoded: dict[str, npt.NDArray[np.uint8]] = {}

    def __getitem__(self, camera: str) -> npt.NDArray[np.uint8]:
        """Returns all images of a camera; do not write into them.

        Raises:
            KeyError: no such camera. EpisodeInvalid: an image cannot be decoded.
        """
        if camera not in self._decoded:
            self._decoded[camera] = self.rows(camera, np.arange(len(self._cameras[camera].index)))
        return self._decoded[camera]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cameras)

    def __len__(self) -> int:
        return len(self._cameras)

    def rows(self, camera: str, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Gives some rows of a camera, uint8 [len(rows), H, W, 3]; what it decodes for that is not kept.

        Raises:
            KeyError: no such camera. EpisodeInvalid: an image cannot be decoded.
        """
        if camera in self._decoded:
            return self._decoded[camera][rows]
        frames = self._cameras[camera]
        height, width = frames.camera.height, frames.camera.width
        wanted, inverse = np.unique(frames.index[rows], return_inverse=True)
        images = np.empty((len(wanted), height, width, 3), np.uint8)
        for place, number in enumerate(wanted):
            images[place] = prepare_image(self._picture(camera, int(number)), height, width)
        return (
            images
            if len(wanted) == len(rows) and (inverse == np.arange(len(rows))).all()
            else images[inverse]
        )

    def recorded(self, camera: str) -> Iterator[npt.NDArray[np.uint8]]:
        """Yields the images of all rows as they were recorded, uint8 [H, W, 3] at the camera's own size.

        Raises:
            KeyError: no such camera. EpisodeInvalid: an image cannot be decoded.
        """
        for number in self._cameras[camera].index:
            yield self._picture(camera, int(number))

    def _picture(self, camera: str, number: int) -> npt.NDArray[np.uint8]:
        message = deserialize(self._cameras[camera].messages[number], IMAGE_TYPE)
        try:
            return decode_compressed(message.data)
        except ObservationInvalid as error:
            raise EpisodeInvalid(f"{self._where}: image {number} of camera '{camera}': {error}") from error
