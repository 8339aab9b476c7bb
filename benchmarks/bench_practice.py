"""Practice of two robots through ROS in lockstep, beside the same loop in one process without ROS.

    python benchmarks/bench_practice.py [--world pointmass] [--seconds 40] [--rounds 1]

Both sides run the real policy, reward and learner with the same settings, on networks of random weights whose
detector never fires, so that every episode has the greatest length. Through ROS it is the stack of `efm
practice`, with all its processes, files and checks; in one process it is `in_process.Player` with as many
worlds, without files. The yardstick runs before and after each measurement, so that the load of the machine
counts for both.
Beside the ratio of steps per second: how idle learner and robots were, and what the learner's thread did
(metrics.jsonl): it reads and judges arrived episodes (`ingest`), learns (`update`) and exports (`export`).
Robots fetch and load a bundle while they act, and take it between two episodes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from in_process import Judge, Played, Player

from efm_bringup.demo import isolate
from efm_bringup.monitor import FleetMonitor
from efm_bringup.processes import ProcessGroup, wait_for
from efm_bringup.stacks import NodeSpec, nodes_of
from efm_core.bundle import Bundle
from efm_core.embodiment import load_embodiment
from efm_learner.export import load_network
from efm_learner.practice import PracticeSettings, PracticeTrainer
from efm_learner.random_bundle import write_random_bundle
from efm_sim.world import make_world

START_S = 120.0
LEARNING = {"guard": False, "max_staleness": 2}


def in_one_process(
    world: str, policy: Bundle, reward: Bundle, robots: int, updates: int, seconds: float
) -> dict[str, float]:
    """Collects and learns in turns; gives steps per second over whole iterations."""
    worlds = [make_world(world) for _ in range(robots)]
    judge = Judge(
        load_network(reward), float(reward.manifest.success_threshold), reward.manifest.success_hold
    )
    player = Player(worlds, policy.embodiment, judge)
    trainer = PracticeTrainer(load_network(policy), PracticeSettings(updates=updates))
    rng, seeds = np.random.default_rng(0), itertools.count(1)
    steps, spent, updating, cpu = 0, 0.0, 0.0, 0.0
    for iteration in itertools.count():
        began, cpu_began = time.perf_counter(), time.process_time()
        rollouts = _collected(player, trainer, seeds, rng)
        collected = time.perf_counter()
        trainer.iterate([played.rollout for played in rollouts])
        if iteration:  # The first one fills caches.
            steps += sum(len(played.rollout) for played in rollouts)
            spent += time.perf_counter() - began
            cpu += time.process_time() - cpu_began
            updating += time.perf_counter() - collected
        if spent > seconds:
            break
    for made in worlds:
        made.close()
    return {
        "steps_per_second": steps / spent,
        "cpu_ms_per_step": cpu / steps * 1e3,
        "iterations": iteration,
        "updating_share": updating / spent,
    }


def _collected(
    player: Player, trainer: PracticeTrainer, seeds: itertools.count, rng: np.random.Generator
) -> list[Played]:
    """Plays until an iteration's decisions are there."""
    wanted = trainer.settings.decisions
    begun = 0

    def next_seed() -> int | None:
        nonlocal begun
        if begun >= wanted:
            return None
        begun += player.max_steps  # No episode ends early.
        return next(seeds)

    return player.play(trainer.network, next_seed, rng=rng)


def through_ros(
    world: str, policy: Bundle, reward: Bundle, robots: int, updates: int, seconds: float, folder: Path
) -> dict[str, Any]:
    """The stack of `efm practice`, measured once what piled up before the learner was there is used up."""
    arguments = {
        "world": world,
        "robots": str(robots),
        "policy": str(policy.path),
        "reward": str(reward.path),
        "run": str(folder / "run"),
        "spool": str(folder / "spool"),
        "bundles": str(folder / "fetched"),
        "learning": json.dumps({**LEARNING, "updates": updates}),
    }
    nodes = nodes_of("practice", arguments)
    names = [f"robot_{index}" for index in range(1, robots + 1)]
    with (
        ProcessGroup(nodes, folder / "logs") as group,
        FleetMonitor(names) as monitor,
    ):
        wait_for(lambda: monitor.learner is not None, "the learner", START_S, group)
        wait_for(lambda: _is_steady(monitor), "an iteration, and nothing left in the spools", START_S, group)
        first = monitor.learner.iteration
        for view in monitor.robots.values():
            view.spent_s.clear()
        pids = {_label(node): group.pid(node.name, node.namespace) for node in nodes}
        cpu_before = {name: _cpu_s(pid) for name, pid in pids.items()}
        before, began = (monitor.steps, monitor.finished), time.perf_counter()
        time.sleep(seconds)
        cpu = {name: _cpu_s(pid) - cpu_before[name] for name, pid in pids.items()}
        wall = time.perf_counter() - began
        steps, episodes = monitor.steps - before[0], monitor.finished - before[1]
        idle = {name: view.idle_share for name, view in monitor.robots.items()}
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines][first:]
    total = sum(line["collect_s"] + line["update_s"] + line["export_s"] for line in metrics)
    shares = {
        name: sum(line[f"{name}_s"] for line in metrics) / total
        for name in ("idle", "ingest", "update", "export")
    }
    return {
        "steps_per_second": steps / wall,
        "cpu_ms_per_step": {name: spent / steps * 1e3 for name, spent in cpu.items()},
        "episodes": episodes,
        "iterations": len(metrics),
        "iteration_s": total / len(metrics),
        "learner_shares": shares,
        "robots_idle_share": idle,
    }


def _is_steady(monitor: FleetMonitor) -> bool:
    statuses = [view.status for view in monitor.robots.values()]
    waiting = [status is None or status.spool_episodes > 1 for status in statuses]
    return monitor.learner.iteration > 0 and not any(waiting)


def _label(node: NodeSpec) -> str:
    return f"{node.namespace}/{node.name}".strip("/")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measures in rounds, prints and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--world", default="pointmass")
    parser.add_argument(
        "--backbone", default="", help="default: small where the world has cameras, else state"
    )
    parser.add_argument("--robots", type=int, default=2)
    parser.add_argument("--updates", type=int, default=16, help="of 64 decisions, for each iteration")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each measurement through ROS")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_practice.json"))
    given = parser.parse_args()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    isolate()
    torch.set_num_threads(1)
    embodiment = load_embodiment(given.world.partition(":")[0])
    backbone = given.backbone or ("small" if embodiment.cameras else "state")
    rounds = []
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            policy = write_random_bundle(embodiment, folder, "policy", 1, backbone)
            reward = write_random_bundle(embodiment, folder, "reward", 2, backbone, success_threshold=0.0)
            shared = (given.world, policy, reward, given.robots, given.updates)
            yardstick = [in_one_process(*shared, given.seconds / 4)]
            ros = through_ros(*shared, given.seconds, folder)
            yardstick.append(in_one_process(*shared, given.seconds / 4))
        reference = statistics.mean(one["steps_per_second"] for one in yardstick)
        ratio = ros["steps_per_second"] / reference
        rounds.append({"ratio": ratio, "ros": ros, "in_process": yardstick, "load": os.getloadavg()})
        print(json.dumps(rounds[-1], indent=1), flush=True)
    report = {
        "world": given.world,
        "backbone": backbone,
        "robots": given.robots,
        "updates": given.updates,
        "seconds": given.seconds,
        "cores": os.cpu_count(),
        "median_ratio": statistics.median(one["ratio"] for one in rounds),
        "rounds": rounds,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
