"""Durable files: what is written is on the disk before its final name appears.

Every artefact is written under a temporary name, synced, and renamed: a crash leaves the old state or the
new one, never a mixture.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from efm_core.errors import BadRequest, SpoolFull

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
BLOCK_BYTES = 1 << 20  # Read at once when a file is hashed or copied.


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Writes a new file and waits until it is on the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def disk_full_is_told(what: str, where: Path) -> Iterator[None]:
    """Turns "no space left" and "disk quota exceeded" into SpoolFull; other errors pass.

    Raises:
        SpoolFull: names `what` could not be written, and `where`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise SpoolFull(
            f"{what} cannot be written to {where}: {error.strerror}; what was stored before is untouched; "
            "free some space and try again"
        ) from error


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file as a whole: a crash leaves the old content or the new one.

    Raises:
        SpoolFull: The disk is full; the old content is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    with disk_full_is_told(path.name, path.parent):
        try:
            partial.unlink(missing_ok=True)
            write_synced(partial, data)
            partial.replace(path)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def replace_json(path: Path, content: Any, indent: int = 2) -> None:
    """Writes JSON as `replace_file` does."""
    replace_file(path, (json.dumps(content, indent=indent) + "\n").encode())


@contextmanager
def made_whole(folder: Path, what: str) -> Iterator[Path]:
    """Makes a folder under a temporary name, which it gives; it gets its own at the end, or nothing is left.

    Args:
        folder: to make; whoever fills it syncs the files in it.
        what: it holds, for errors.

    Raises:
        BadRequest: the folder exists, another process is making it, or somebody takes it away meanwhile.
        SpoolFull: the disk is full.
    """
    _must_be_new(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    with disk_full_is_told(what, partial):
        partial.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_folder(partial)
    except BlockingIOError:
        raise BadRequest(f"{folder}: another process is making it; wait for it, or choose another") from None
    try:
        with _removed_on_error(partial), disk_full_is_told(what, partial):
            _must_be_new(folder)  # Another process may have finished it just now.
            for left in partial.iterdir():  # By a process that was killed.
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            with _gone_is_told(partial, what):
                yield partial
                partial.rename(folder)
            sync(folder.parent)
    finally:
        os.close(lock)


@contextmanager
def temporary_folder(
    parent: Path, prefix: str, suffix: str = ".partial", mode: int = 0o777
) -> Iterator[Path]:
    """Makes a folder that is removed at the end, unless it was renamed; removes those whose makers died.

    Args:
        parent: made where it is missing.
        prefix: of its name.
        suffix: of its name; all that are named so are made by this function.
        mode: its permissions.
    """
    for left in parent.glob(f"{prefix}*{suffix}"):
        with suppress(OSError):  # Its maker lives, or it is another user's.
            lock = lock_folder(left)
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    folder, own = _made_and_locked(parent, prefix, suffix, mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if own is not None:
            os.close(own)


def lock_folder(folder: Path) -> int:
    """Locks a folder until what is returned is closed, or this process ends, however it ends.

    Raises:
        BlockingIOError: another process, or another part of this one, has locked it.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def _made_and_locked(parent: Path, prefix: str, suffix: str, mode: int) -> tuple[Path, int | None]:
    while True:
        folder = parent / f"{prefix}{os.getpid()}-{os.urandom(4).hex()}{suffix}"
        parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode)
        try:
            lock = lock_folder(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # Another process took it for a dead one's before it was locked.
        except OSError:
            return folder, None  # A file system without locks, on which nobody else can lock it either.
        if folder.exists():
            return folder, lock
        os.close(lock)


def _must_be_new(folder: Path) -> None:
    if folder.exists():
        raise BadRequest(f"{folder}: expected a folder that does not exist yet; choose another or remove it")


@contextmanager
def _gone_is_told(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if folder.is_dir():
            raise
        raise BadRequest(
            f"{folder}: was removed or moved while {what} was written into it; nothing was made, begin again"
        ) from error


@contextmanager
def _removed_on_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
