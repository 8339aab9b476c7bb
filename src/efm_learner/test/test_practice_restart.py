"""Nothing that happens to the process of a practice run, or to its disk, changes what is learned."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import practised
import pytest
from practised import assert_same, journal, record, state_of, take

from efm_core.errors import SpoolFull
from efm_learner.practice import Cancelled


def test_a_restart_goes_on_where_the_run_was(start):
    run = start()
    take(run, [1, 2])
    run.advance()
    take(run, [3])
    before = state_of(run)
    assert_same(before, state_of(start()))


def test_an_interrupted_run_learns_exactly_what_an_uninterrupted_one_does(start):
    whole, broken = None, None
    for folder, restarts in (("whole", False), ("broken", True)):
        run = start(folder=folder)
        for number in range(7):
            run.ingest(record(run, number, detected=number % 2 == 0))
            if restarts:
                run = start(folder=folder)
            if run.ready:
                run.advance()
            if restarts:
                run = start(folder=folder)
        whole, broken = (state_of(run), broken) if not restarts else (whole, state_of(run))
    assert_same(whole, broken)


def test_a_cancelled_iteration_leaves_the_disk_as_it_was(start):
    run = start()
    take(run, [1, 2])
    looks = iter([False, True])
    with pytest.raises(Cancelled):
        run.advance(lambda: next(looks))
    run = start()
    assert run.ready
    assert run.trainer.updates == 0
    cancelled = run.advance().bundle
    other = start(folder="other")
    take(other, [1, 2])
    assert other.advance().bundle.id == cancelled.id


def test_lines_that_a_crash_cut_short_are_forgotten_and_their_episodes_come_again(start):
    run = start()
    take(run, [1, 2])
    path = run.folder.path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    run = start()
    assert run.episodes_taken == 1
    assert [item.name for item in run.unseen()] == [practised.episode_name(2)]
    run.ingest(run.unseen()[0])
    assert [entry["episode"] for entry in journal(run)] == [practised.episode_name(n) for n in (1, 2)]


def test_a_line_of_metrics_whose_checkpoint_was_not_written_is_written_anew(start):
    run = start()
    take(run, [1, 2])
    run.advance()
    shutil.rmtree(next((run.folder.path / "checkpoints").iterdir()))  # As if it died before the checkpoint.
    run = start()
    assert run.trainer.iteration == 0
    assert (run.folder.path / "metrics.jsonl").read_text() == ""
    assert run.ready
    run.advance()
    assert len((run.folder.path / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_broken_checkpoint_falls_back_to_the_one_before(start):
    run = start()
    take(run, [1, 2])
    run.advance()
    take(run, [3, 4])
    run.advance()
    after = state_of(run)
    newest = sorted((run.folder.path / "checkpoints").iterdir())[-1]
    (newest / "weights.safetensors").write_bytes(b"broken")
    run = start()
    assert run.trainer.iteration == 1
    assert run.ready
    run.advance()
    assert_same(after, state_of(run))


def test_an_episode_that_somebody_removed_is_not_the_end_of_the_run(start, caplog):
    run = start()
    take(run, [1, 2])
    shutil.rmtree(run.folder.episodes / practised.episode_name(1))
    run = start()
    assert run.buffered == 12
    assert "an episode that was taken in is lost" in caplog.text


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_run_ends_in_the_same_state(start, tmp_path, bundles, kills):
    """Its process is killed at random writes and at random times."""
    whole = start(folder="whole")
    numbers = range(11)
    for number in numbers:
        whole.ingest(record(whole, number, policy=bundles["policy"], detected=number % 3 == 0))
        if whole.ready:
            whole.advance()
    assert whole.trainer.iteration == 5
    killed = tmp_path / "run" / "episodes"
    for number in numbers:
        practised.record_episode(killed, bundles["policy"], number, detected=number % 3 == 0)
    script = Path(__file__).parent / "killed_run.py"
    folders = [str(bundles[name].path) for name in ("policy", "reward", "verifier")]
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run"), *folders, str(kills)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["killed"] >= kills
    run = start()
    assert_same(state_of(whole), state_of(run))
    episodes = [entry["episode"] for entry in journal(run)]
    assert episodes == [practised.episode_name(number) for number in numbers]


def test_on_a_full_disk_the_error_is_clear_and_nothing_is_lost(small_disk, start):
    whole = start(folder="whole")
    for number in (1, 2, 3, 4):
        take(whole, [number])
        if whole.ready:
            whole.advance()
    run = start()
    take(run, [1])
    for number, bundle_id in _acting(whole):
        practised.record_episode(small_disk / "episodes", whole.folder.bundle(bundle_id), number)
    filler = small_disk / "filler"
    full, attempts = 0, 0
    while run.episodes_taken < 4 or run.ready:
        attempts += 1
        assert attempts < 60
        # Ever less of the disk is taken, so that every write is the first one to fail in some attempt.
        _fill(filler, free=attempts * 8192)
        try:
            for path in run.unseen():
                if run.ready:
                    run.advance()
                run.ingest(path)
            if run.ready:
                run.advance()
        except SpoolFull as error:
            full += 1
            assert "free some space" in str(error)
            filler.unlink(missing_ok=True)
            run = start()
    filler.unlink(missing_ok=True)
    assert full >= 3
    assert_same(state_of(whole), state_of(start()))


def _acting(run):
    """Number and bundle of the episodes after the first one."""
    return [(2, run._versions[0]), (3, run._versions[1]), (4, run._versions[1])]


def _fill(path, free):
    """Makes a file that leaves so many bytes of the disk."""
    path.unlink(missing_ok=True)
    size = shutil.disk_usage(path.parent).free - free
    if size > 0:
        path.write_bytes(b"\0" * size)
