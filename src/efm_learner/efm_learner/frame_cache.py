"""Decoded episodes on disk, memory-mapped: bags are decoded once.

The cache is a folder of packs. A pack holds some episodes: one raw uint8 file per camera, the other arrays as
.npy, and an index with sizes and checksums. An episode is known by the SHA-256 of its recording, so a changed
recording is decoded again. Packs are written under a temporary name and renamed, one writer at a time (file
lock); readers need no lock. A pack that fails its checksums is removed and its episodes are decoded again.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from efm_core.embodiment import Embodiment
from efm_core.errors import EfmError
from efm_core.files import disk_full_is_told, sync, temporary_folder, write_synced
from efm_learner.samples import EpisodeArrays, Frames

FORMAT = 1
PACK_BYTES = 1 << 30
PACK_EPISODES = 512
_INDEX = "index.json"
_BLOCK = 1 << 24

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """An episode to be had from the cache: its digest, and how to decode it where the cache lacks it."""

    digest: str
    decode: Callable[[], EpisodeArrays]


@dataclass(frozen=True)
class _Pack:
    """An open pack: its episodes by digest, without images, and where their frames begin."""

    images: dict[str, npt.NDArray[np.uint8]]
    episodes: dict[str, tuple[EpisodeArrays, int]]


class FrameCache:
    """Decoded episodes of one embodiment.

    Args:
        folder: Made where it is missing.
        embodiment: Decides names and sizes of the images.
    """

    def __init__(self, folder: Path, embodiment: Embodiment) -> None:
        self.folder = folder
        self.cameras = {camera.name: (camera.height, camera.width) for camera in embodiment.cameras}
        folder.mkdir(parents=True, exist_ok=True)

    def digests(self) -> set[str]:
        """Returns which episodes the cache says it has, without looking whether they are whole."""
        found: set[str] = set()
        for path in self.folder.glob(f"pack_*/{_INDEX}"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                found |= {entry["digest"] for entry in json.loads(path.read_text())["episodes"]}
        return found

    def load(
        self, wanted: Sequence[Wanted], on_decoded: Callable[[], object] = lambda: None
    ) -> tuple[list[EpisodeArrays], Callable[[Sequence[EpisodeArrays]], dict[str, Frames]], list[EfmError]]:
        """Returns episodes, decoding those that the cache lacks.

        Args:
            wanted: What to load.
            on_decoded: Called after each episode that had to be decoded.

        Returns:
            The episodes without images, in the order of `wanted`; a function that gives the frames of any of
            them; and the errors of those that could not be decoded, which are left out.

        Raises:
            SpoolFull: The disk is full.
        """
        packs = self._open_packs()
        missing = [item for item in wanted if not any(item.digest in pack.episodes for pack in packs)]
        errors: list[EfmError] = []
        if missing:
            with self._lock():
                packs = self._open_packs()  # Another process may have written them while this one waited.
                missing = [item for item in wanted if not any(item.digest in p.episodes for p in packs)]
                packs += self._decode(missing, errors, on_decoded)
        places: dict[str, tuple[int, int]] = {}
        episodes: dict[str, EpisodeArrays] = {}
        for number, pack in enumerate(packs):
            for digest, (episode, start) in pack.episodes.items():
                if digest not in episodes:
                    episodes[digest], places[digest] = episode, (number, start)
        found = [episodes[item.digest] for item in wanted if item.digest in episodes]

        def frames(chosen: Sequence[EpisodeArrays]) -> dict[str, Frames]:
            return {camera: _frames(camera, packs, places, chosen) for camera in self.cameras}

        return found, frames, errors

    def _open_packs(self) -> list[_Pack]:
        packs = []
        for folder in sorted(self.folder.glob("pack_*")):
            try:
                packs.append(_open_pack(folder, self.cameras))
            except (OSError, ValueError, KeyError, TypeError) as error:
                _log.warning("%s is corrupt (%s); its episodes are decoded again", folder, error)
                shutil.rmtree(folder, ignore_errors=True)
        return packs

    def _decode(
        self, missing: Sequence[Wanted], errors: list[EfmError], on_decoded: Callable[[], object]
    ) -> list[_Pack]:
        """Decodes episodes into new packs; the lock is held."""
        packs: list[_Pack] = []
        rest = iter(missing)
        while (folder := self._write_pack(rest, errors, on_decoded)) is not None:
            packs.append(_open_pack(folder, self.cameras))
        return packs

    def _write_pack(
        self, wanted: Iterator[Wanted], errors: list[EfmError], on_decoded: Callable[[], object]
    ) -> Path | None:
        """Writes one pack of the next episodes; None where there is none left."""
        with (
            disk_full_is_told("decoded frames", self.folder),
            temporary_folder(self.folder, ".pack_") as partial,
        ):
            kept: list[EpisodeArrays] = []
            size = 0
            with ExitStack() as stack:
                files = {
                    camera: stack.enter_context((partial / _image_file(number)).open("xb"))
                    for number, camera in enumerate(self.cameras)
                }
                for item in wanted:
                    try:
                        episode = replace(item.decode(), digest=item.digest)
                    except EfmError as error:
                        errors.append(error)
                        continue
                    for camera, file in files.items():
                        size += file.write(np.ascontiguousarray(episode.images[camera]).data)
                    kept.append(replace(episode, images={}))
                    on_decoded()
                    if size >= PACK_BYTES or len(kept) >= PACK_EPISODES:
                        break
                for file in files.values():
                    file.flush()
                    os.fsync(file.fileno())
            if not kept:
                return None
            _write_arrays(partial, kept)
            names = sorted(path.name for path in partial.iterdir())
            index = {
                "format": FORMAT,
                "cameras": {camera: list(shape) for camera, shape in self.cameras.items()},
                "episodes": [_entry(episode) for episode in kept],
                "files": {name: _checksum(partial / name) for name in names},
            }
            write_synced(partial / _INDEX, json.dumps(index).encode())
            sync(partial)
            final = self.folder / f"pack_{kept[0].digest[:16]}_{len(kept)}_{os.getpid()}"
            partial.rename(final)
            sync(self.folder)
        return final

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Waits until no other process writes to the cache; the kernel frees the lock of one that dies."""
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.info("waiting for another process that decodes episodes into %s", self.folder)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _frames(
    camera: str,
    packs: Sequence[_Pack],
    places: Mapping[str, tuple[int, int]],
    chosen: Sequence[EpisodeArrays],
) -> Frames:
    """Returns the frames of one camera of some episodes, one after the other."""
    blocks = [pack.images[camera] for pack in packs]
    starts = np.cumsum([0, *(len(block) for block in blocks)])
    order = []
    for episode in chosen:
        number, start = places[episode.digest]
        order.append(starts[number] + start + np.arange(len(episode)))
    return Frames(blocks, np.concatenate(order) if order else np.zeros(0, np.int64))


def _open_pack(folder: Path, cameras: Mapping[str, tuple[int, int]]) -> _Pack:
    """Opens a pack.

    Raises:
        OSError, ValueError, KeyError, TypeError: It is not whole.
    """
    index: dict[str, Any] = json.loads((folder / _INDEX).read_text())
    if index["format"] != FORMAT or index["cameras"] != {name: list(s) for name, s in cameras.items()}:
        raise ValueError("written for other cameras or by another version")
    for name, entry in index["files"].items():
        if _checksum(folder / name) != entry:
            raise ValueError(f"{name} fails its checksum")
    arrays = {
        name: np.load(folder / f"{name}.npy", allow_pickle=False)
        for name in ("state", "actions", "imitate")
        if f"{name}.npy" in index["files"]
    }
    images = {
        camera: np.memmap(
            folder / _image_file(number), np.uint8, "r", shape=(len(arrays["actions"]), *shape, 3)
        ).view(np.ndarray)
        for number, (camera, shape) in enumerate(cameras.items())
    }
    episodes: dict[str, tuple[EpisodeArrays, int]] = {}
    start = 0
    for entry in index["episodes"]:
        rows = slice(start, start + int(entry["rows"]))
        episode = EpisodeArrays(
            id=entry["id"],
            instruction=entry["instruction"],
            images={},
            state=arrays["state"][rows] if "state" in arrays else None,
            actions=arrays["actions"][rows],
            imitate=arrays["imitate"][rows],
            success=bool(entry["success"]),
            digest=entry["digest"],
        )
        episodes[episode.digest] = (episode, start)
        start = rows.stop
    return _Pack(images, episodes)


def _write_arrays(folder: Path, episodes: Sequence[EpisodeArrays]) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {
        "actions": np.concatenate([episode.actions for episode in episodes]),
        "imitate": np.concatenate([episode.imitate for episode in episodes]),
    }
    states = [episode.state for episode in episodes if episode.state is not None]
    if states:
        arrays["state"] = np.concatenate(states)
    for name, array in arrays.items():
        with (folder / f"{name}.npy").open("xb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())


def _entry(episode: EpisodeArrays) -> dict[str, Any]:
    return {
        "digest": episode.digest,
        "id": episode.id,
        "instruction": episode.instruction,
        "rows": len(episode),
        "success": episode.success,
    }


def _checksum(path: Path) -> dict[str, int]:
    checksum = size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
            size += len(block)
    return {"size": size, "crc32": checksum}


def _image_file(number: int) -> str:
    return f"camera_{number}.u8"
