"""The folder of a run: who owns it, what it was begun with, and which bundles it keeps.

One process owns a run at a time. Settings are written once and compared at every later start.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from efm_core.bundle import Bundle, load_bundle, write_bundle
from efm_core.errors import BadRequest, SpoolLocked
from efm_core.files import disk_full_is_told, replace_json
from efm_core.manifest import leaves

__all__ = ["RunFolder", "owned"]

LOCK_FILE = ".lock"
SETTINGS = "settings.json"


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Owns the folder of a training, made where it is missing, as long as the block runs.

    Raises:
        SpoolLocked: Another process owns it. SpoolFull: The disk is full.
    """
    with disk_full_is_told("the run", folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = _take(folder)
    try:
        yield
    finally:
        os.close(lock)


class RunFolder:
    """Owns a run's folder from its construction until `close`.

    Args:
        path: Made where it is missing.

    Attributes:
        path: Of the run.
        bundles: Folder of its bundles.
        episodes: Folder of the episodes that arrived.

    Raises:
        SpoolLocked: Another process owns the run.
        SpoolFull: The disk is full.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.bundles, self.episodes = self.path / "bundles", self.path / "episodes"
        with disk_full_is_told("the run", self.path):
            for folder in (self.bundles, self.episodes):
                folder.mkdir(parents=True, exist_ok=True)
        self._lock = _take(self.path)

    def close(self) -> None:
        """Gives the run to others; does nothing the second time."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def settle(self, settings: Mapping[str, Any], free: Iterable[str]) -> None:
        """Writes settings.json, or compares the settings with what the run was begun with.

        Args:
            settings: Plain values.
            free: Names of those that may change from start to start.

        Raises:
            BadRequest: Others differ, or the file cannot be read; says which.
            SpoolFull: The disk is full.
        """
        path, mine = self.path / SETTINGS, json.loads(json.dumps(settings))
        if path.exists():
            try:
                found = dict(json.loads(path.read_text()))
            except (ValueError, TypeError) as error:
                raise BadRequest(f"{path}: expected settings in JSON, found: {error}") from error
            if found == mine:
                return
            loose = set(free)
            before, now = (
                leaves({key: value for key, value in values.items() if key not in loose})
                for values in (found, mine)
            )
            changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
            if changed:
                told = "; ".join(f"{key} was {_told(before, key)}, is {_told(now, key)}" for key in changed)
                same = "ones" if before.keys() == now.keys() else "version of EFM"
                raise BadRequest(
                    f"{self.path}: this run was begun with other settings: {told}; go on with the same "
                    f"{same}, or name a new folder"
                )
        replace_json(path, mine)

    def adopt(self, bundle: Bundle) -> Bundle:
        """Copies a bundle into the run, so that it can be served from there; it keeps its id."""
        files: dict[str, bytes | Path] = {name: bundle.file(name) for name in bundle.manifest.files}
        return write_bundle(self.bundles, replace(bundle.manifest, files={}), files)

    def bundle(self, bundle_id: str) -> Bundle:
        """Opens one of the run's bundles."""
        return load_bundle(self.bundles / bundle_id, verify=False)

    def keep_bundles(self, ids: Iterable[str]) -> None:
        """Removes all bundles but these, and what crashes left half-written."""
        wanted = set(ids)
        for path in self.bundles.iterdir():
            if path.name not in wanted:
                shutil.rmtree(path, ignore_errors=True)

    def arrived(self) -> list[Path]:
        """Returns the folders of all episodes that are here as a whole, oldest first."""
        with os.scandir(self.episodes) as entries:
            names = sorted(item.name for item in entries if item.is_dir() and not item.name.startswith("."))
        return [self.episodes / name for name in names]


def _told(settings: Mapping[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "unknown"


def _take(folder: Path) -> int:
    """Makes this process the owner of a folder until it closes what is returned, or ends.

    Raises:
        SpoolLocked: Another process is. SpoolFull: The disk is full.
    """
    with disk_full_is_told("the run's lock", folder):
        lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # The system unlocks it when this process ends, however it ends.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(lock, 100, 0).decode(errors="replace").strip()
        os.close(lock)
        raise SpoolLocked(
            f"run {folder}: expected it free, found it owned by process {owner}; wait for it or stop it, or "
            "name another folder"
        ) from error
    with suppress(OSError):  # On a full disk the owner stays unnamed.
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock
