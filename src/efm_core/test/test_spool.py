"""The spool: one owner, a quota, and nothing removed that the learner does not have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import recorded

from efm_core.archive import PartSource
from efm_core.episode import EpisodeWriter, list_episodes, read_episode
from efm_core.errors import BadRequest, EpisodeTruncated, SpoolFull, SpoolLocked, TransferCorrupt
from efm_core.spool import Spool

PLENTY = 1 << 40


def test_episodes_wait_until_they_are_acknowledged(tmp_path: Path) -> None:
    with Spool(tmp_path, PLENTY, 0) as spool:
        for name in ("b", "a"):
            recorded.record(tmp_path, name, steps=2)
        assert [path.name for path in spool.pending()] == ["a", "b"]
        used = spool.usage()
        spool.acknowledge("a", PartSource(tmp_path / "a").sha256())
        assert [path.name for path in spool.pending()] == ["b"]
        assert spool.usage() < used
        spool.acknowledge("a", "0" * 64)  # An acknowledgement that comes twice.


def test_an_acknowledgement_of_something_else_removes_nothing(tmp_path: Path) -> None:
    with Spool(tmp_path, PLENTY, 0) as spool:
        folder = recorded.record(tmp_path, "a", steps=2)
        with pytest.raises(TransferCorrupt, match="it is kept"):
            spool.acknowledge("a", "0" * 64)
        assert len(read_episode(folder)) == 3
        with pytest.raises(BadRequest):
            spool.acknowledge("../a", "0" * 64)


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with (
        Spool(tmp_path, PLENTY, 0),
        pytest.raises(SpoolLocked, match=f"process {os.getpid()} on"),
    ):
        Spool(tmp_path, PLENTY, 0)
    Spool(tmp_path, PLENTY, 0).close()


def test_the_lock_of_a_killed_owner_is_free(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from efm_core.spool import Spool\n"
        "spool = Spool(sys.argv[1], 10, 0)\n"
        "print('locked', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(SpoolLocked, match="process [0-9]+ on"):
            Spool(tmp_path, PLENTY, 0)
        process.send_signal(signal.SIGKILL)
    Spool(tmp_path, PLENTY, 0).close()


def test_a_full_quota_is_told_before_the_next_episode(tmp_path: Path) -> None:
    recorded.record(tmp_path, "a", steps=2)
    with Spool(tmp_path, 1000, 0) as spool:
        with pytest.raises(SpoolFull, match="of 1000 bytes are used, 1 episodes wait; start the learner"):
            spool.require_space()
        spool.quota_bytes = spool.usage() + 1000
        spool.require_space()
        with pytest.raises(SpoolFull, match="quota_bytes"):
            spool.require_space(wanted_bytes=1000)


def test_the_reserve_of_the_disk_is_not_touched(tmp_path: Path) -> None:
    with Spool(tmp_path, PLENTY, reserve_bytes=500, free_bytes=lambda path: 499) as spool:
        with pytest.raises(SpoolFull, match="GiB left, 0.0 are kept in reserve"):
            spool.require_space()
        spool.reserve_bytes = 499
        spool.require_space()


@pytest.mark.parametrize(("quota", "reserve"), [(0, 0), (-1, 0), (1, -1)])
def test_limits_that_cannot_be_are_refused(tmp_path: Path, quota: int, reserve: int) -> None:
    with pytest.raises(BadRequest, match="quota"):
        Spool(tmp_path, quota, reserve)


def test_what_a_dead_recorder_left_is_kept_aside_and_reported(tmp_path: Path) -> None:
    for _ in range(2):
        writer = EpisodeWriter(tmp_path, "a", recorded.embodiment())
        recorded.write_observation(writer, 0)
        del writer
        with Spool(tmp_path, PLENTY, 0) as spool:
            assert spool.pending() == []
            assert len(spool.broken) == 1
    names = sorted(path.name for path in (tmp_path / ".broken").iterdir())
    assert names == ["a", "a~2"]
    assert (tmp_path / ".broken" / "a" / "a" / "a.mcap").is_file()
    assert list_episodes(tmp_path) == []


def test_traces_of_a_death_after_the_work_was_done_vanish(tmp_path: Path) -> None:
    folder = recorded.record(tmp_path, "a", steps=2)
    (tmp_path / ".a.partial").mkdir()  # Died after the episode had got its final name.
    (tmp_path / ".b.acknowledged").mkdir()  # Died while an acknowledged episode was deleted.
    (tmp_path / ".b.acknowledged" / "b.mcap").touch()
    with Spool(tmp_path, PLENTY, 0) as spool:
        assert spool.pending() == [folder]
        assert spool.broken == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a"]


def test_a_partial_folder_is_not_read_as_an_episode(tmp_path: Path) -> None:
    EpisodeWriter(tmp_path, "a", recorded.embodiment())
    for folder in (tmp_path / ".a.partial", tmp_path / ".a.partial" / "a"):
        with pytest.raises(EpisodeTruncated, match="did not finish"):
            read_episode(folder)


def test_folders_inside_a_spool_are_not_part_of_it(tmp_path: Path) -> None:
    """Episodes that were put aside in a folder below the spool were once handed over, again and again."""
    with Spool(tmp_path, PLENTY, 0) as spool, Spool(tmp_path / "evaluation", PLENTY, 0) as inner:
        used = spool.usage()
        folder = recorded.record(inner.path, "a", steps=2)
        recorded.record(tmp_path / "aside", "b", steps=2)
        assert spool.pending() == []
        assert inner.pending() == [folder]
        assert inner.usage() > 0
        aside = sum(path.stat().st_size for path in (tmp_path / "aside" / "b").iterdir())
        assert spool.usage() == used + aside


def test_a_spool_that_was_taken_away_is_told_in_words(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", PLENTY, 0) as spool:
        (tmp_path / "spool").rename(tmp_path / "elsewhere")
        for ask in (spool.pending, spool.usage, spool.free, spool.require_space):
            with pytest.raises(BadRequest, match="the folder is gone"):
                ask()


def test_a_spool_that_cannot_be_a_folder_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file/spool"):
        with pytest.raises(BadRequest, match="expected a folder that this process can make and write"):
            Spool(path, PLENTY)
