"""The writer of episodes: names, several threads, and disks that are full or gone: nothing whole is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recorded

from efm_core.episode import (
    EpisodeWriter,
    check_episode,
)
from efm_core.errors import (
    BadRequest,
    EmbodimentInvalid,
    EpisodeDuplicate,
    EpisodeInvalid,
    SpoolFull,
)
from efm_core.spool import Spool


def test_an_id_is_used_once_and_is_a_safe_name(tmp_path: Path) -> None:
    recorded.record(tmp_path, "ep", steps=1)
    with pytest.raises(EpisodeDuplicate, match="here already"):
        EpisodeWriter(tmp_path, "ep", recorded.embodiment())
    EpisodeWriter(tmp_path, "running", recorded.embodiment())
    with pytest.raises(EpisodeDuplicate, match="being recorded"):
        EpisodeWriter(tmp_path, "running", recorded.embodiment())
    with pytest.raises(BadRequest, match="episode id"):
        EpisodeWriter(tmp_path, "../x", recorded.embodiment())


def test_a_topic_of_two_types_an_unknown_type_and_an_unknown_camera_are_refused(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, "ep", recorded.embodiment())
    writer.write("commands", recorded.ARRAY, 0, recorded.array([0, 0]))
    with pytest.raises(EpisodeInvalid, match="topic 'commands' is of type std_msgs"):
        writer.write("/commands", "std_msgs/msg/String", 0, b"")
    with pytest.raises(EpisodeInvalid, match="did you mean 'std_msgs/msg/String'"):
        writer.write("other", "std_msgs/msg/Strin", 0, b"")
    with pytest.raises(EmbodimentInvalid, match="did you mean 'top'"):
        writer.write_image("tob", 0, recorded.picture(0))


def test_a_message_that_cannot_be_written_harms_no_other(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, "ep", recorded.embodiment())
    recorded.write_observation(writer, 0)
    for stamp_ns in (-1, 1 << 63):
        with pytest.raises(EpisodeInvalid, match="expected a stamp of 0 or more ns"):
            writer.write("commands", recorded.ARRAY, stamp_ns, b"")
    with pytest.raises(EpisodeInvalid, match="wrong kind"):
        writer.close(recorded.summary("ep", 0, seed=-5))
    assert check_episode(writer.close(recorded.summary("ep", 0))) == []


def test_a_writer_that_cannot_begin_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rosbags.rosbag2.writer.Writer.open", full)
    with pytest.raises(SpoolFull):
        EpisodeWriter(tmp_path, "ep", recorded.embodiment())
    assert list(tmp_path.iterdir()) == []


def test_several_threads_may_write_at_once(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, "ep", recorded.embodiment())

    def write(topic: str) -> None:
        for number in range(200):
            writer.write(topic, recorded.ARRAY, recorded.stamp(number), recorded.array([number, 0]))

    threads = [threading.Thread(target=write, args=(f"topic_{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for step in range(2):
        recorded.write_observation(writer, step)
    recorded.write_steps(writer, [0])
    folder = writer.close(recorded.summary("ep", 1))
    assert check_episode(folder) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where this process may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if mount is None or subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def fill(directory: Path, episode_id: str) -> None:
    """Records images that hardly compress until the disk is full or 4 MB are written."""
    writer = EpisodeWriter(directory, episode_id, recorded.embodiment())
    rng = np.random.default_rng(0)
    for step in range(100):
        writer.write_image("top", recorded.stamp(step), rng.integers(0, 256, (120, 120, 3), np.uint8))
    writer.close(recorded.summary(episode_id, 99))


def test_on_a_full_disk_the_episode_stops_clearly_and_the_others_are_untouched(small_disk: Path) -> None:
    with Spool(small_disk, 1 << 40, 0) as spool:
        kept = recorded.record(small_disk, "kept", steps=3)
        with pytest.raises(SpoolFull, match="what was stored before is untouched"):
            fill(small_disk, "big")
        assert spool.pending() == [kept]
        assert check_episode(kept) == []
        assert sorted(path.name for path in small_disk.iterdir()) == [".lock", "kept"]
        assert check_episode(recorded.record(small_disk, "next", steps=3)) == []


def test_a_disk_that_fills_up_while_an_episode_is_closed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = recorded.record(tmp_path, "kept", steps=2)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SpoolFull, match="No space left"):
        recorded.record(tmp_path, "late", steps=2)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert check_episode(kept) == []


def test_a_writer_is_closed_after_the_disk_was_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = EpisodeWriter(tmp_path, "ep", recorded.embodiment())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._bag, "write", full)
    with pytest.raises(SpoolFull):
        recorded.write_observation(writer, 0)
    with pytest.raises(EpisodeInvalid, match="closed"):
        recorded.write_observation(writer, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_spool_that_is_taken_away_under_a_recording_is_told_in_words(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "spool", "ep", recorded.embodiment())
    recorded.write_observation(writer, 0)
    shutil.rmtree(tmp_path / "spool")
    with pytest.raises(EpisodeInvalid, match="cannot be written to .*No such file"):
        writer.close(recorded.summary("ep", 0))
    (tmp_path / "spool").write_text("somebody else's file")
    with pytest.raises(EpisodeInvalid, match="cannot be written to .*Not a directory"):
        EpisodeWriter(tmp_path / "spool", "ep", recorded.embodiment())
