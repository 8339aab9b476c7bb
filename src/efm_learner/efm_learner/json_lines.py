"""A file of JSON lines that survives a crash at any moment and a full disk."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efm_core.errors import BadRequest
from efm_core.files import disk_full_is_told, replace_file

__all__ = ["JsonLines"]


class JsonLines:
    """Entries of a file, one line each. A line is on the disk when `append` returns.

    Args:
        path: Of the file; made with the first line. A last line that a crash cut short is removed: nobody
            was told that it was there.

    Attributes:
        path: Of the file.
        entries: All of them, in order.

    Raises:
        BadRequest: A line in the middle is no JSON: the file was damaged by something else than a crash.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                self.entries.append(json.loads(line))
            except ValueError as error:
                raise BadRequest(
                    f"{path}: expected JSON in line {number}, found {line[:60]!r}; repair or remove that line"
                ) from error

    def append(self, entry: Mapping[str, Any]) -> None:
        """Adds an entry.

        Raises:
            SpoolFull: The disk is full; the file is as before.
        """
        data = (json.dumps(entry, allow_nan=False) + "\n").encode()
        with disk_full_is_told("a line", self.path), self.path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise
        self.entries.append(dict(entry))

    def keep(self, count: int) -> None:
        """Removes all entries but the first `count`, where there are more."""
        if count >= len(self.entries):
            return
        del self.entries[count:]
        replace_file(self.path, "".join(json.dumps(entry) + "\n" for entry in self.entries).encode())
