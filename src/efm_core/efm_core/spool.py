"""The spool: the folder in which a robot's episodes wait until the learner has acknowledged them.

Nothing is deleted before its SHA-256 was acknowledged. One process owns a spool at a time; recordings that
a process left behind when it died are moved to `.broken/`, kept, and reported. The spool says when it is
full before an episode begins; it does not record (episode_writer.py) and does not send (the episode node).
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from efm_core.archive import PartSource
from efm_core.episode_file import is_episode
from efm_core.errors import BadRequest, SpoolFull, SpoolLocked, TransferCorrupt
from efm_core.files import DISK_FULL, disk_full_is_told, sync
from efm_core.ids import check_name

LOCK_FILE = ".lock"
BROKEN = ".broken"
# Free space that is always left to the rest of the machine; a full disk stops more than the recorder.
RESERVE_BYTES = 512 << 20
GIBIBYTE = 1 << 30
_ACKNOWLEDGED = ".acknowledged"


class Spool:
    """Owns the spool folder from its construction until `close`. Any thread may call its methods.

    Attributes:
        path: of the folder, made where it is missing.
        quota_bytes: greatest size of all episodes. reserve_bytes: least free space on the disk.
        broken: recordings that were found unfinished at the start, now in `.broken/`.
    """

    def __init__(
        self,
        directory: Path | str,
        quota_bytes: int,
        reserve_bytes: int = RESERVE_BYTES,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
    ) -> None:
        """Locks the folder and puts aside what a dead process left.

        Args:
            directory: of the spool.
            quota_bytes: greatest size of all episodes.
            reserve_bytes: least free space on the disk.
            free_bytes: tells the free space of a folder's disk.

        Raises:
            BadRequest: a limit is not positive, or the folder cannot be written. SpoolLocked: another
                process owns the spool; names it. SpoolFull: the disk is so full that the folder or its lock
                file cannot be made.
        """
        if quota_bytes <= 0 or reserve_bytes < 0:
            raise BadRequest(
                f"spool: expected a quota above 0 and a reserve of 0 or more bytes, found {quota_bytes} "
                f"and {reserve_bytes}"
            )
        self.path = Path(directory)
        self.quota_bytes = quota_bytes
        self.reserve_bytes = reserve_bytes
        self._free_bytes = free_bytes
        with disk_full_is_told("the spool's lock", self.path):
            self._lock = self._open_lock()
            try:
                self._take_lock()
                self.broken = self._put_aside()
            except BaseException:
                os.close(self._lock)
                raise

    def pending(self) -> list[Path]:
        """Returns the folders of the episodes that wait, oldest first; what is in other folders does not.

        Raises:
            BadRequest: the spool is gone.
        """
        return sorted(item for item in self._items() if is_episode(item))

    def usage(self) -> int:
        """Returns the bytes of all that is in the folder: episodes that wait, are recorded, or are broken.

        A spool inside this one has a quota of its own, and does not count.

        Raises:
            BadRequest: the spool is gone.
        """
        return sum(_size(item) for item in self._items() if not (item / LOCK_FILE).exists())

    def free(self) -> int:
        """Returns the bytes that are left on the disk.

        Raises:
            BadRequest: the spool is gone.
        """
        with self._gone_is_told():
            return self._free_bytes(self.path)

    def require_space(self, wanted_bytes: int = 0) -> None:
        """Does nothing while there is room for another episode.

        Args:
            wanted_bytes: expected size of the next episode; 0: unknown.

        Raises:
            SpoolFull: says which limit is reached and what to do. BadRequest: the spool is gone.
        """
        used, free = self.usage(), self.free()
        if used + wanted_bytes >= self.quota_bytes:
            broken = _size(self.path / BROKEN)
            aside = f" ({broken} of them in {BROKEN}, which nothing needs)" if broken else ""
            raise SpoolFull(
                f"spool {self.path}: {used} of {self.quota_bytes} bytes are used{aside}, "
                f"{len(self.pending())} episodes wait; start the learner that takes them, raise "
                "quota_bytes, or move episodes away"
            )
        if free - wanted_bytes < self.reserve_bytes:
            # Rounded: a disk in use would change the words, and so fill the log, many times a second.
            raise SpoolFull(
                f"spool {self.path}: its disk has {free / GIBIBYTE:.1f} GiB left, "
                f"{self.reserve_bytes / GIBIBYTE:.1f} are kept in reserve; free some space on the disk"
            )

    def acknowledge(self, episode_id: str, sha256: str) -> None:
        """Removes an episode that the learner has; does nothing where it is removed already.

        Args:
            episode_id: of the episode.
            sha256: of its archive, as the learner has it.

        Raises:
            TransferCorrupt: the episode here has another SHA-256; it is kept.
        """
        folder = self.path / check_name(episode_id, "episode id")
        if not folder.is_dir():
            return
        found = PartSource(folder).sha256()
        if found != sha256:
            raise TransferCorrupt(
                f"episode {episode_id}: the learner acknowledged SHA-256 {sha256}, here is {found}; it is "
                "kept"
            )
        # Renamed first: a process that dies while it deletes leaves nothing that looks like an episode.
        doomed = self.path / f".{episode_id}{_ACKNOWLEDGED}"
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        sync(self.path)
        shutil.rmtree(doomed)

    def close(self) -> None:
        """Gives the spool to others; does nothing the second time."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _items(self) -> list[Path]:
        """Returns all that is in the folder."""
        with self._gone_is_told():
            return list(self.path.iterdir())

    @contextmanager
    def _gone_is_told(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise BadRequest(
                f"spool {self.path}: the folder is gone; put it back if somebody moved it or took its disk "
                "away, and start this node anew"
            ) from error

    def _open_lock(self) -> int:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            raise BadRequest(
                f"spool {self.path}: expected a folder that this process can make and write, found: "
                f"{error.strerror}; name another with the parameter spool"
            ) from error

    def _take_lock(self) -> None:
        """Locks the lock file, which the system unlocks when this process ends, however it ends."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._lock, 200, 0).decode(errors="replace").strip() or "an unknown process"
            raise SpoolLocked(
                f"spool {self.path}: expected it free, found it owned by {owner}; stop that node, or give "
                "this one a spool of its own"
            ) from error
        except OSError as error:
            raise BadRequest(
                f"spool {self.path}: expected a file system with locks, found: {error.strerror}; put the "
                "spool on a local disk"
            ) from error
        # On a full disk the owner stays unnamed: the spool must be emptied all the same.
        with suppress(OSError):
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def _put_aside(self) -> list[Path]:
        """Moves what a dead process left to `.broken/`, and removes what it was about to remove."""
        broken: list[Path] = []
        for item in sorted(self.path.iterdir()):
            if item.name.endswith(_ACKNOWLEDGED):
                shutil.rmtree(item)
            elif item.name.endswith(".partial") and item.is_dir():
                if any(item.iterdir()):
                    broken.append(item.rename(self._free_name(item.name[1 : -len(".partial")])))
                else:
                    item.rmdir()  # The process died after its episode had got its final name.
        return broken

    def _free_name(self, name: str) -> Path:
        """Returns a path in `.broken/` that is not taken."""
        folder = self.path / BROKEN
        folder.mkdir(exist_ok=True)
        names = (name if number == 1 else f"{name}~{number}" for number in itertools.count(1))
        return next(folder / item for item in names if not (folder / item).exists())


def _size(path: Path) -> int:
    """Returns the bytes of a file, or of all files in a folder; 0 for what vanishes meanwhile."""
    try:
        if path.is_dir() and not path.is_symlink():
            return sum(_size(item) for item in path.iterdir())
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
