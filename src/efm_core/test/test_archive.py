"""Archives: the same bytes for the same files, resumed after a cut, and nothing unpacked but plain files."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_core.archive import MAX_PART_BYTES, PartReceiver, PartSource, pack, unpack
from efm_core.errors import BadRequest, EpisodeDuplicate, SpoolFull, TransferCorrupt

CONTENT = {"a.mcap": os.urandom(3000), "metadata.yaml": b"text", "empty": b"", "block": bytes(512)}


def folder(parent: Path, name: str = "episode", content: dict[str, bytes] = CONTENT) -> Path:
    path = parent / name
    path.mkdir(parents=True)
    for file_name, data in content.items():
        (path / file_name).write_bytes(data)
    return path


def content(path: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in path.iterdir()}


def test_a_folder_comes_back_from_its_archive(tmp_path: Path) -> None:
    size, sha256 = pack(folder(tmp_path / "here"), tmp_path / "x.tar")
    data = (tmp_path / "x.tar").read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (size, sha256)
    unpacked = unpack(tmp_path / "x.tar", tmp_path / "there", "episode")
    assert unpacked == tmp_path / "there" / "episode"
    assert content(unpacked) == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there", "x.tar"]


def test_the_archive_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    first = pack(folder(tmp_path / "a"), tmp_path / "a.tar")
    again = folder(tmp_path / "b", content=dict(reversed(CONTENT.items())))
    (again / "a.mcap").chmod(0o600)
    os.utime(again / "a.mcap", (1, 1))
    assert pack(again, tmp_path / "b.tar") == first
    assert pack(folder(tmp_path / "c", "other"), tmp_path / "c.tar") != first


def test_the_tar_program_of_the_system_reads_it(tmp_path: Path) -> None:
    pack(folder(tmp_path), tmp_path / "x.tar")
    listed = subprocess.run(["tar", "-tf", tmp_path / "x.tar"], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == [f"episode/{name}" for name in sorted(CONTENT)]
    assert listed.stderr == ""


@given(offset=st.integers(0, 12_000), length=st.integers(0, 12_000))
def test_a_folder_is_read_in_parts_as_its_archive_is(
    tmp_path_factory: pytest.TempPathFactory, offset: int, length: int
) -> None:
    base = tmp_path_factory.getbasetemp() / "parts"
    if not base.exists():
        pack(folder(base), base / "x.tar")
    archive = (base / "x.tar").read_bytes()
    for source in (PartSource(base / "episode"), PartSource(base / "x.tar")):
        assert source.size == len(archive)
        assert source.read(offset, length) == archive[offset : offset + length]
        assert source.sha256() == hashlib.sha256(archive).hexdigest()


def send(source: PartSource, receiver: PartReceiver, part_bytes: int = 1000) -> None:
    while receiver.next_offset < source.size:
        receiver.add(receiver.next_offset, source.read(receiver.next_offset, part_bytes))


def test_parts_make_the_archive_again(tmp_path: Path) -> None:
    source = PartSource(folder(tmp_path))
    receiver = PartReceiver(tmp_path / "inbox", "episode", source.size, source.sha256())
    send(source, receiver)
    received = receiver.finish()
    assert content(unpack(received, tmp_path / "inbox", "episode")) == CONTENT
    assert sorted(path.name for path in (tmp_path / "inbox").iterdir()) == ["episode", "episode.tar"]


def test_a_receiver_that_starts_again_goes_on_where_the_last_one_was(tmp_path: Path) -> None:
    source = PartSource(folder(tmp_path))
    first = PartReceiver(tmp_path / "inbox", "episode", source.size, source.sha256())
    assert first.add(0, source.read(0, 1500)) == 1500
    second = PartReceiver(tmp_path / "inbox", "episode", source.size, source.sha256())
    assert second.next_offset == 1500
    send(source, second)
    second.finish()


def test_a_part_out_of_order_is_not_taken_and_told_where_to_go_on(tmp_path: Path) -> None:
    source = PartSource(folder(tmp_path))
    receiver = PartReceiver(tmp_path / "inbox", "episode", source.size, source.sha256())
    receiver.add(0, source.read(0, 1000))
    assert receiver.add(0, source.read(0, 1000)) == 1000
    assert receiver.add(5000, source.read(5000, 1000)) == 1000
    assert receiver.add(1000, b"") == 1000
    send(source, receiver)
    receiver.finish()


def test_a_damaged_part_is_found_at_the_end_and_all_is_sent_again(tmp_path: Path) -> None:
    source = PartSource(folder(tmp_path))
    receiver = PartReceiver(tmp_path / "inbox", "episode", source.size, source.sha256())
    receiver.add(0, bytes(1000))
    send(source, receiver)
    with pytest.raises(TransferCorrupt, match="start again at offset 0"):
        receiver.finish()
    assert receiver.next_offset == 0
    send(source, receiver)
    receiver.finish()


def test_an_archive_that_is_not_complete_is_not_finished(tmp_path: Path) -> None:
    receiver = PartReceiver(tmp_path, "episode", 10, "0" * 64)
    receiver.add(0, b"12345")
    with pytest.raises(TransferCorrupt, match="expected 10 bytes, found 5"):
        receiver.finish()
    assert receiver.next_offset == 5
    with pytest.raises(TransferCorrupt, match="parts up to 11"):
        receiver.add(5, b"123456")
    assert receiver.next_offset == 0


def test_parts_of_an_older_archive_of_the_same_name_are_dropped(tmp_path: Path) -> None:
    PartReceiver(tmp_path, "episode", 10, "0" * 64).add(0, b"12345")
    assert PartReceiver(tmp_path, "episode", 10, "1" * 64).next_offset == 0
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "size", "sha256"),
    [
        ("../episode", 10, "0" * 64),
        (".episode", 10, "0" * 64),
        ("", 10, "0" * 64),
        ("episode", 0, "0" * 64),
        ("episode", 10, "0" * 63),
        ("episode", 10, "../" + "0" * 61),
    ],
)
def test_a_transfer_that_cannot_be_is_refused(tmp_path: Path, name: str, size: int, sha256: str) -> None:
    with pytest.raises(BadRequest, match="expected"):
        PartReceiver(tmp_path, name, size, sha256)


def test_too_long_a_part_is_refused(tmp_path: Path) -> None:
    receiver = PartReceiver(tmp_path, "episode", 2 * MAX_PART_BYTES, "0" * 64)
    with pytest.raises(BadRequest, match="1048576"):
        receiver.add(0, bytes(MAX_PART_BYTES + 1))


def test_an_archive_larger_than_the_disk_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    with pytest.raises(SpoolFull, match="free"):
        PartReceiver(tmp_path, "episode", 1 << 60, "0" * 64)


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    "member",
    [
        _member("episode/../../evil", data=b"x"),
        _member("/etc/evil", data=b"x"),
        _member("other/file", data=b"x"),
        _member("episode", data=b"x"),
        _member("episode/sub/file", data=b"x"),
        _member("episode/.hidden", data=b"x"),
        _member("episode/link", tarfile.SYMTYPE, "/etc/passwd"),
        _member("episode/link", tarfile.LNKTYPE, "/etc/passwd"),
        _member("episode/device", tarfile.CHRTYPE),
        _member("episode/pipe", tarfile.FIFOTYPE),
        _member("episode/folder", tarfile.DIRTYPE),
        _member("episode/sparse", tarfile.GNUTYPE_SPARSE),
        _member("episode/half", data=bytes(2000))[:900],
        b"no tar at all",
        b"",
        bytes(512),
    ],
)
def test_archives_that_we_would_not_have_made_are_refused(tmp_path: Path, member: bytes) -> None:
    archive = tmp_path / "x.tar"
    archive.write_bytes(member and member + bytes(1024))
    with pytest.raises(BadRequest):
        unpack(archive, tmp_path / "there" / "deep", "episode")
    assert [path.name for path in (tmp_path / "there" / "deep").iterdir()] == []
    assert not (tmp_path / "there" / "evil").exists()


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    archive.write_bytes(2 * _member("episode/a", data=b"x") + bytes(1024))
    with pytest.raises(BadRequest, match="twice"):
        unpack(archive, tmp_path, "episode")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder(tmp_path), "episode")
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    with pytest.raises(BadRequest, match="uncompressed"):
        unpack(tmp_path / "x.tar", tmp_path / "there", "episode")


def test_unpacking_again_does_no_harm_and_never_overwrites(tmp_path: Path) -> None:
    pack(folder(tmp_path / "a"), tmp_path / "x.tar")
    first = unpack(tmp_path / "x.tar", tmp_path, "episode")
    assert unpack(tmp_path / "x.tar", tmp_path, "episode") == first
    (first / "metadata.yaml").write_bytes(b"mine")
    with pytest.raises(EpisodeDuplicate, match="left as it is"):
        unpack(tmp_path / "x.tar", tmp_path, "episode")
    assert (first / "metadata.yaml").read_bytes() == b"mine"


def _link(path: Path) -> None:
    (path / "link").symlink_to("a.mcap")


def _subfolder(path: Path) -> None:
    (path / "sub").mkdir()


def _hidden(path: Path) -> None:
    (path / ".x").touch()


@pytest.mark.parametrize("spoil", [_link, _subfolder, _hidden])
def test_a_folder_with_more_than_plain_files_is_not_packed(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = folder(tmp_path)
    spoil(path)
    with pytest.raises(BadRequest, match="expected"):
        pack(path, tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()


def test_a_receiver_killed_at_any_moment_is_gone_on_with(tmp_path: Path) -> None:
    source = PartSource(folder(tmp_path, content={"data": os.urandom(5_000_000)}))
    program = (
        "import sys, time\n"
        "from efm_core.archive import PartReceiver, PartSource\n"
        "source = PartSource(sys.argv[1])\n"
        "receiver = PartReceiver(sys.argv[2], 'episode', source.size, sys.argv[3])\n"
        "while receiver.next_offset < source.size:\n"
        "    receiver.add(receiver.next_offset, source.read(receiver.next_offset, 1000))\n"
        "    print(receiver.next_offset, flush=True)\n"
        "    time.sleep(0.001)\n"
    )
    command = [sys.executable, "-c", program, str(source.path), str(tmp_path / "inbox"), source.sha256()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02)
        process.kill()
    receiver = PartReceiver(tmp_path / "inbox", "episode", source.size, source.sha256())
    assert 0 < receiver.next_offset < source.size
    send(source, receiver, part_bytes=100_000)
    receiver.finish()


def test_files_beyond_what_32_bits_count_are_sent_and_taken_in_parts(tmp_path: Path) -> None:
    whole = folder(tmp_path, "bundle", {"manifest.json": b"{}", "model.onnx": b"graph", "z.data": b""})
    with (whole / "z.data").open("wb") as file:  # Sparse: takes no room, and no time while it is not read.
        file.seek(5 << 30)
        file.write(b"the end")
    source = PartSource(whole)
    assert source.size > 5 << 30
    tail = source.read((5 << 30) + 1024, MAX_PART_BYTES)
    assert b"the end" in tail and len(tail) < MAX_PART_BYTES
    head = source.read(0, 4096)
    names = [tarfile.TarInfo.frombuf(head[at : at + 512], "utf-8", "strict").name for at in (0, 1024, 2048)]
    assert names == ["bundle/manifest.json", "bundle/model.onnx", "bundle/z.data"]

    receiver = PartReceiver(tmp_path / "inbox", "bundle", source.size, "0" * 64)
    [part] = (tmp_path / "inbox").iterdir()
    os.truncate(part, source.size - len(tail))
    assert receiver.next_offset > 5 << 30
    assert receiver.add(receiver.next_offset, tail) == source.size
