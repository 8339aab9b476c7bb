"""The stack as its users start it: `efm up collect`, a few episodes, and one Ctrl+C.

Nothing is replaced: real processes, real topics, the simulated world, episodes on disk.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from efm_core.episode import read_episode

EFM = [sys.executable, "-m", "efm_bringup.efm"]
EPISODES = 4
START_S, RUN_S, STOP_S = 60.0, 100.0, 30.0  # Deadlines on a machine that has much else to do.


@pytest.fixture
def stack(tmp_path):
    """`efm up collect` with two robots, in a session of its own as a terminal would give it."""
    command = [*EFM, "up", "collect", "world:=pointmass", "robots:=2", f"spool:={tmp_path / 'spool'}"]
    process = subprocess.Popen([*command, "--logs", str(tmp_path / "logs")], start_new_session=True)
    yield process
    if process.poll() is None:
        process.terminate()
        process.wait(STOP_S)


@pytest.mark.timeout(START_S + RUN_S + STOP_S)
def test_a_fleet_records_episodes_and_stops_on_one_signal(stack, tmp_path):
    command = [*EFM, "collect", "--episodes", str(EPISODES), "--seed", "11", "--robots", "robot_1,robot_2"]
    collected = subprocess.run(
        command, capture_output=True, text=True, timeout=START_S + RUN_S, env={**os.environ, "COLUMNS": "120"}
    )
    assert collected.returncode == 0, collected.stdout + collected.stderr + all_logs(tmp_path / "logs")
    assert stack.poll() is None

    began = time.monotonic()
    stack.send_signal(signal.SIGINT)
    assert stack.wait(STOP_S) == 0, all_logs(tmp_path / "logs")
    print(f"stopped within {time.monotonic() - began:.1f} s")

    folders = sorted(path.parent for path in (tmp_path / "spool").glob("robot_*/*/metadata.yaml"))
    assert len(folders) == EPISODES, all_logs(tmp_path / "logs")
    assert {folder.parent.name for folder in folders} == {"robot_1", "robot_2"}
    episodes = [read_episode(folder) for folder in folders]
    assert {episode.summary.seed for episode in episodes} == {11, 12, 13, 14}
    assert all(episode.instruction == "reach the goal" and len(episode) > 1 for episode in episodes)


def all_logs(folder: Path) -> str:
    return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(folder.glob("*.log")))
