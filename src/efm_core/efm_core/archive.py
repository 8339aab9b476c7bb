"""Archives that move episodes and bundles between machines: plain tar, the same bytes for the same files.

    size, sha256 = pack(folder, tar_file)
    source = PartSource(tar_file)               # or PartSource(folder): the same bytes, without a second copy
    receiver = PartReceiver(inbox, name, size, sha256)
    while receiver.next_offset < size:
        receiver.add(receiver.next_offset, source.read(receiver.next_offset, MAX_PART_BYTES))
    folder = unpack(receiver.finish(), inbox, name)

Only regular files directly in one folder are packed, and only those are unpacked: no links, devices or
paths that lead elsewhere. What has come is on the disk, so that a transfer goes on where it was cut. Which
part goes over which wire is the business of the nodes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from efm_core.errors import BadRequest, EpisodeDuplicate, SpoolFull, TransferCorrupt
from efm_core.files import BLOCK_BYTES, disk_full_is_told, sha256_of, sync
from efm_core.ids import check_name

MAX_PART_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


class PartSource:
    """Reads an archive in parts: a file as it is, a folder as the tar that `pack` would make of it.

    A folder must not change while it is read; finished episodes and bundles never do.
    """

    def __init__(self, path: Path | str, name: str = "") -> None:
        """Takes a file or a folder; `name` is that of the folder in the archive, its own where empty.

        Raises:
            BadRequest: there is no such file or folder, or the folder cannot be packed.
        """
        self.path = Path(path)
        if not self.path.exists():
            raise BadRequest(f"{self.path}: expected an archive or a folder to pack, found nothing")
        self._pieces = _tar_pieces(self.path, name) if self.path.is_dir() else [self.path]
        sizes = [len(item) if isinstance(item, bytes) else item.stat().st_size for item in self._pieces]
        self._starts = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
        self.size = sum(sizes)

    def read(self, offset: int, length: int) -> bytes:
        """Returns the bytes [offset, offset + length); fewer at the end, none past it."""
        end = min(offset + length, self.size)
        parts: list[bytes] = []
        while offset < end:
            index = bisect_right(self._starts, offset) - 1
            piece, start = self._pieces[index], offset - self._starts[index]
            wanted = min(end, self._starts[index + 1]) - offset
            if isinstance(piece, bytes):
                part = piece[start : start + wanted]
            else:
                with piece.open("rb") as file:
                    file.seek(start)
                    part = file.read(wanted)
            if not part:
                raise TransferCorrupt(f"{self.path}: was changed while it was read; begin again")
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def sha256(self) -> str:
        """Returns the SHA-256 of the whole archive, 64 hex digits."""
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block)
        return digest.hexdigest()

    def blocks(self) -> Iterator[bytes]:
        """Yields the whole archive in order."""
        for offset in range(0, self.size, BLOCK_BYTES):
            yield self.read(offset, BLOCK_BYTES)


def pack(folder: Path | str, out_file: Path | str) -> tuple[int, str]:
    """Writes the archive of a folder, replacing `out_file`.

    Returns:
        Size in bytes and SHA-256 of the archive; the same for every folder of that name with the same files.

    Raises:
        BadRequest: the folder holds more than regular files, or names that are not safe.
        SpoolFull: the disk is full; nothing is left of `out_file`.
    """
    if not Path(folder).is_dir():
        raise BadRequest(f"{folder}: expected a folder to pack, found none")
    source, out = PartSource(folder), Path(out_file)
    digest = hashlib.sha256()
    partial = out.with_name(f".{out.name}.packing")
    try:
        with disk_full_is_told("the archive", out), partial.open("wb") as file:
            for block in source.blocks():
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return source.size, digest.hexdigest()


def unpack(file: Path | str, parent_dir: Path | str, expected_name: str) -> Path:
    """Unpacks an archive to `parent_dir/expected_name`.

    A folder that is there already with the same content is returned, so that a repeated transfer does no
    harm.

    Raises:
        BadRequest: the archive holds anything but regular files in the folder `expected_name`.
        EpisodeDuplicate: the folder is there already with another content, which is left as it is.
        SpoolFull: the disk is full; nothing is left behind.
    """
    archive, parent = Path(file), Path(parent_dir)
    final = parent / check_name(expected_name, "folder to unpack")
    partial = parent / f".{expected_name}.unpacking"
    shutil.rmtree(partial, ignore_errors=True)  # Left by a process that died.
    try:
        with disk_full_is_told(f"the content of {archive.name}", parent):
            partial.mkdir(parents=True)
            try:
                with tarfile.open(archive, "r:") as tar:
                    _extract(tar, partial, expected_name)
            except (tarfile.TarError, EOFError, ValueError) as error:
                raise BadRequest(f"{archive}: expected an uncompressed tar file, found: {error}") from error
            sync(partial)
            if final.exists():
                if PartSource(final).sha256() != PartSource(partial, expected_name).sha256():
                    raise EpisodeDuplicate(
                        f"{final}: is there already with another content; it is left as it is"
                    )
                return final
            partial.rename(final)
            sync(parent)
            return final
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class PartReceiver:
    """Puts an archive together from its parts, in a hidden file that a later receiver goes on with.

    Not for several threads at once. Two receivers of one archive at once would mix their parts; SHA-256
    tells.
    """

    def __init__(self, directory: Path | str, name: str, total_size: int, sha256: str) -> None:
        """Looks how much is there already.

        Args:
            directory: made where it is missing.
            name: of what is in the archive.
            total_size: of the archive [bytes].
            sha256: of the archive, 64 hex digits; parts of an archive of the same name with another one are
            dropped.

        Raises:
            BadRequest: name, size or SHA-256 cannot be. SpoolFull: the disk does not have room for the rest.
        """
        self.directory = Path(directory)
        self.name = check_name(name, "archive")
        if not _SHA256.fullmatch(sha256):
            raise BadRequest(f"archive {name}: expected a SHA-256 of 64 hex digits, found {sha256!r:.80}")
        if total_size <= 0:
            raise BadRequest(f"archive {name}: expected a size above 0 bytes, found {total_size}")
        self.total_size = total_size
        self.sha256 = sha256
        self._finished = False
        self._part = self.directory / f".{name}.{sha256[:16]}.part"
        with disk_full_is_told(f"archive {name}", self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            for other in self.directory.glob(f".{name}.{'[0-9a-f]' * 16}.part"):
                if other != self._part:
                    other.unlink(missing_ok=True)
            self._part.touch()
        if self.next_offset > total_size:
            os.truncate(self._part, 0)
        missing, free = total_size - self.next_offset, shutil.disk_usage(self.directory).free
        if missing > free:
            raise SpoolFull(
                f"archive {name}: {missing} bytes are to come, {self.directory} has {free} free; free some "
                "space"
            )

    @property
    def next_offset(self) -> int:
        """First byte that is wanted; total_size when all are there."""
        return self.total_size if self._finished else self._part.stat().st_size

    def add(self, offset: int, data: bytes) -> int:
        """Takes a part and returns the offset of the next one that is wanted.

        A part that does not begin at `next_offset` is not taken: the sender goes on from what is returned.

        Raises:
            BadRequest: the part is longer than MAX_PART_BYTES.
            TransferCorrupt: it goes past the end of the archive; all parts are dropped.
            SpoolFull: the disk is full; what came before is kept.
        """
        if len(data) > MAX_PART_BYTES:
            raise BadRequest(
                f"archive {self.name}: expected parts up to {MAX_PART_BYTES} bytes, found {len(data)}"
            )
        start = self.next_offset
        if offset != start:
            return start
        if start + len(data) > self.total_size:
            os.truncate(self._part, 0)
            raise TransferCorrupt(
                f"archive {self.name}: expected {self.total_size} bytes, found parts up to "
                f"{start + len(data)}; start again at offset 0"
            )
        try:
            with disk_full_is_told(f"archive {self.name}", self.directory), self._part.open("ab") as file:
                file.write(data)
        except BaseException:
            os.truncate(self._part, start)
            raise
        return start + len(data)

    def finish(self) -> Path:
        """Checks the archive, syncs it to the disk, and returns its file `<directory>/<name>.tar`.

        Raises:
            TransferCorrupt: parts are missing (they are kept), or the SHA-256 is another (all are dropped).
        """
        found = self.next_offset
        if found != self.total_size:
            raise TransferCorrupt(
                f"archive {self.name}: expected {self.total_size} bytes, found {found}; go on at that offset"
            )
        digest = sha256_of(self._part)
        if digest != self.sha256:
            os.truncate(self._part, 0)
            raise TransferCorrupt(
                f"archive {self.name}: expected SHA-256 {self.sha256}, found {digest}; start again at "
                "offset 0"
            )
        with disk_full_is_told(f"archive {self.name}", self.directory):
            sync(self._part)
            final = self.directory / f"{self.name}.tar"
            self._part.replace(final)
            sync(self.directory)
        self._finished = True
        return final


def _tar_pieces(folder: Path, name: str) -> list[bytes | Path]:
    """Returns what the tar of a folder is made of, in order: headers, files, padding."""
    root = check_name(name or folder.resolve().name, "folder to pack")
    pieces: list[bytes | Path] = []
    size = 0
    for path in sorted(folder.iterdir()):
        check_name(path.name, f"file in {folder}")
        if path.is_symlink() or not path.is_file():
            raise BadRequest(f"{path}: expected only regular files in a folder to pack, found something else")
        info = tarfile.TarInfo(f"{root}/{path.name}")
        info.size, info.mode = path.stat().st_size, 0o644
        header = info.tobuf(tarfile.GNU_FORMAT)
        padding = bytes(-info.size % tarfile.BLOCKSIZE)
        pieces += [item for item in (header, path if info.size else b"", padding) if item]
        size += len(header) + info.size + len(padding)
    end = 2 * tarfile.BLOCKSIZE
    pieces.append(bytes(end + -(size + end) % tarfile.RECORDSIZE))
    return pieces


def _extract(tar: tarfile.TarFile, target: Path, name: str) -> None:
    """Writes the members of an archive to a folder; refuses all that `pack` would not have made."""
    for member in tar:
        folder, _, file_name = member.name.partition("/")
        if folder != name or not file_name:
            raise BadRequest(f"archive of {name}: expected files in '{name}/', found '{member.name}'")
        check_name(file_name, f"file in the archive of {name}")
        # Also refuses links, devices, and sparse files, whose size says nothing about the archive's.
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
            raise BadRequest(
                f"archive of {name}: expected only regular files, found '{member.name}' of another kind"
            )
        if (target / file_name).exists():
            raise BadRequest(f"archive of {name}: found '{member.name}' twice")
        source = tar.extractfile(member)
        assert source is not None
        with source, (target / file_name).open("xb") as sink:
            shutil.copyfileobj(source, sink, BLOCK_BYTES)
            sink.flush()
            os.fsync(sink.fileno())
    if not any(target.iterdir()):
        raise BadRequest(f"archive of {name}: expected files, found none")
