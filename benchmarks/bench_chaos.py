"""Kills random nodes of a practice run (SIGKILL) and counts what became of every finished episode.

    python benchmarks/bench_chaos.py [--minutes 3] [--pause 8] [--seed 1]

Two robots practise on the point mass, with networks of random weights whose detector never fires. One node
after the other dies: learner, policy, reward, episodes, simulator. Afterwards nobody dies any more, and the
run has to go on by itself for two more iterations. Then the books are compared: what the episode nodes said
they had finished, what the learner's journal has taken in, what still waits in a spool or arrived unread.
Exit code 1 when an episode is lost or was taken twice, or the run did not go on.
Left out: nodes that hang without dying, and machines or networks that go.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from efm_bringup.demo import isolate
from efm_bringup.monitor import FleetMonitor
from efm_bringup.processes import ProcessGroup, wait_for
from efm_bringup.stacks import nodes_of
from efm_core.embodiment import load_embodiment
from efm_core.episode import list_episodes
from efm_core.errors import Reason
from efm_learner.random_bundle import write_random_bundle
from efm_msgs.msg import EpisodeSummary
from efm_ros.qos import EVENTS

ROBOTS = ("robot_1", "robot_2")
START_S = 180.0
RECOVERY_S = 240.0
POLL_S = 0.2
COUNTED = (EpisodeSummary.OUTCOME_SUCCESS, EpisodeSummary.OUTCOME_FAILURE)
# Short iterations; nothing is too old, so that every episode that reaches the learner is taken in.
LEARNING = {"guard": False, "max_staleness": 1_000_000, "updates": 4, "batch": 64}


def run(folder: Path, seconds: float, pause_s: float, rng: random.Random) -> dict[str, Any]:
    """Lets a practice run be killed in for a time; gives the counts."""
    embodiment = load_embodiment("pointmass")
    policy = write_random_bundle(embodiment, folder, "policy", 1)
    reward = write_random_bundle(embodiment, folder, "reward", 2, success_threshold=0.0)
    arguments = {
        "world": "pointmass",
        "robots": ",".join(ROBOTS),
        "policy": str(policy.path),
        "reward": str(reward.path),
        "run": str(folder / "run"),
        "spool": str(folder / "spool"),
        "bundles": str(folder / "fetched"),
        "learning": json.dumps(LEARNING),
    }
    nodes = nodes_of("practice", arguments)
    finished: set[str] = set()
    kills: collections.Counter[str] = collections.Counter()

    def note(message: EpisodeSummary) -> None:
        if message.outcome in COUNTED:
            finished.add(message.episode_id)

    with ProcessGroup(nodes, folder / "logs") as group, FleetMonitor(ROBOTS) as monitor:
        for robot in ROBOTS:
            monitor.node.create_subscription(EpisodeSummary, f"/{robot}/episode_summary", note, EVENTS)
        wait_for(lambda: monitor.learner is not None, "the learner", START_S, group)
        wait_for(lambda: monitor.learner.iteration > 0, "an iteration", START_S, group)
        end = time.monotonic() + seconds
        due = time.monotonic() + rng.uniform(0, pause_s)
        while time.monotonic() < end:
            for line in group.watch():
                print(line, flush=True)
            if time.monotonic() > due:
                due += rng.uniform(0, 2 * pause_s)
                kills[_kill(group, rng.choice(nodes))] += 1
            time.sleep(POLL_S)
        iteration = monitor.learner.iteration
        began = time.monotonic()
        while monitor.learner.iteration < iteration + 2 and time.monotonic() - began < RECOVERY_S:
            group.watch()
            time.sleep(POLL_S)
        recovered_s = time.monotonic() - began
        goes_on = monitor.learner.iteration >= iteration + 2
    return {
        "kills": dict(kills),
        "goes_on": goes_on,
        "two_iterations_after_s": recovered_s,
        **_books(folder, finished),
    }


def _kill(group: ProcessGroup, node: Any) -> str:
    name = f"{node.namespace.rstrip('/')}/{node.name}"
    try:
        os.kill(group.pid(node.name, node.namespace), signal.SIGKILL)
    except ProcessLookupError:
        return f"{name}, dead already"
    print(f"killed {name}", flush=True)
    return name


def _books(folder: Path, finished: set[str]) -> dict[str, Any]:
    """Compares what was finished with what the learner has and what still waits."""
    journal = [json.loads(line) for line in (folder / "run" / "journal.jsonl").read_text().splitlines()]
    offered = [entry["episode"] for entry in journal]
    waiting = {path.name for robot in ROBOTS for path in list_episodes(folder / "spool" / robot)}
    waiting |= {path.name for path in list_episodes(folder / "run" / "episodes")}
    metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return {
        "finished": len(finished),
        "taken": sum(entry["reason"] == Reason.OK for entry in journal),
        "refused": [entry["message"] for entry in journal if entry["reason"] != Reason.OK],
        "waiting": len(waiting - set(offered)),
        "lost": sorted(finished - set(offered) - waiting),
        "twice": sorted(name for name, count in collections.Counter(offered).items() if count > 1),
        "iterations": len(metrics),
        "iterations_in_order": [line["iteration"] for line in metrics] == list(range(1, len(metrics) + 1)),
    }


def main() -> int:
    """Runs it, prints and writes the counts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="in which nodes are killed")
    parser.add_argument("--pause", type=float, default=8.0, help="mean time between two kills [s]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_chaos.json"))
    given = parser.parse_args()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    isolate()
    with tempfile.TemporaryDirectory() as folder:
        counts = run(Path(folder), given.minutes * 60.0, given.pause, random.Random(given.seed))
    report = {"minutes": given.minutes, "pause_s": given.pause, "seed": given.seed, **counts}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    fine = counts["goes_on"] and counts["iterations_in_order"] and not (counts["lost"] or counts["twice"])
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
