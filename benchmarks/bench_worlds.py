"""Steps per second of every world in process, and what its expert achieves.

    python benchmarks/bench_worlds.py [--seconds 5] [--episodes 20] [--out runs/bench_worlds.json] [WORLD ...]

Prints a table and writes the same as JSON. A step is one control step and one picture per camera; resets are
not counted. `wall` is what a user sees, `cpu` is what the world costs while other work shares the machine.
Speed through ROS topics is another benchmark's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from efm_core.statistics import wilson_interval
from efm_sim.expert import STYLES, run_expert_episode
from efm_sim.pointmass import PointMassBatch
from efm_sim.world import World, make_world

# World, options, and the steps per second that it has to reach (0: none is asked for).
WORLDS: dict[str, tuple[str, dict[str, Any], float]] = {
    "pointmass": ("pointmass", {}, 0.0),
    "table": ("table", {}, 350.0),
    "table, 4 blocks": ("table", {"blocks": 4}, 350.0),
    "table, block to place": ("table", {"family": "block_to_place"}, 350.0),
    "table, banana": ("table", {"family": "banana_to_place"}, 0.0),
    "metaworld:push-v3": ("metaworld:push-v3", {}, 0.0),
    "metaworld:drawer-open-v3": ("metaworld:drawer-open-v3", {}, 0.0),
    "metaworld:button-press-v3": ("metaworld:button-press-v3", {}, 0.0),
    "aloha:insertion": ("aloha:insertion", {}, 0.0),
}
BATCH, BATCH_ROBOTS, BATCH_GOAL = "pointmass, 64 robots at once", 64, 20_000.0
STEPS_AT_ONCE, STEPS_OF_ONE_HEADING = 50, 10


def steps_per_second(
    begin: Callable[[int], None], steps: Callable[[], int], seconds: float
) -> dict[str, float]:
    """Alternates `begin`, which gets a seed and is not timed, and `steps`, which returns how many it made."""
    count, wall, cpu = 0, 0.0, 0.0
    begin(0)
    steps()  # the first call makes contexts and fills caches
    for seed in itertools.count(1):
        begin(seed)
        wall_before, cpu_before = time.perf_counter(), time.process_time()
        count += steps()
        wall += time.perf_counter() - wall_before
        cpu += time.process_time() - cpu_before
        if wall > seconds:
            break
    return {"steps_per_second_wall": count / wall, "steps_per_second_cpu": count / cpu}


def speed_of(world: World, seconds: float) -> dict[str, float]:
    """Measures a world in which the robot moves at random, a new heading every few steps."""
    low, high = np.asarray(world.spec.action_low), np.asarray(world.spec.action_high)
    rng = np.random.default_rng(0)
    if world.spec.action_names == world.spec.state_names:
        # Targets of joints: stay near where the arms begin, since wild jumps leave the range of the physics.
        start, reach = world.reset(0).state, 0.05 * (high - low)
        low, high = np.maximum(low, start - reach), np.minimum(high, start + reach)

    def begin(seed: int) -> None:
        world.reset(seed)

    def steps() -> int:
        for _ in range(STEPS_AT_ONCE // STEPS_OF_ONE_HEADING):
            heading = rng.uniform(low, high)
            for _ in range(STEPS_OF_ONE_HEADING):
                world.step(heading)
        return STEPS_AT_ONCE

    return steps_per_second(begin, steps, seconds)


def experts_of(world: World, episodes: int) -> dict[str, Any]:
    """Runs every preset from the seeds 0 .. episodes - 1; success is the world's truth at the end."""
    results: dict[str, Any] = {}
    for name, style in STYLES.items():
        try:
            runs = [run_expert_episode(world, style, seed) for seed in range(episodes)]
        except NotImplementedError:
            return {}
        honest = [run for run in runs if run.intends_success]
        successes = sum(run.succeeded for run in honest)
        results[name] = {
            "honest_attempts": len(honest),
            "successes": successes,
            "interval_95": wilson_interval(successes, len(honest)),
            "deliberate_failures": len(runs) - len(honest),
            "failures_that_succeeded": sum(run.succeeded for run in runs if not run.intends_success),
            "median_steps": float(np.median([len(run.actions) for run in runs])),
        }
    return results


def batch_speed(seconds: float) -> dict[str, float]:
    """Measures the vectorised point mass; a step is one robot's."""
    batch = PointMassBatch(BATCH_ROBOTS)
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (BATCH_ROBOTS, 2))

    def begin(seed: int) -> None:
        batch.reset(range(seed, seed + BATCH_ROBOTS))

    def steps() -> int:
        for _ in range(STEPS_AT_ONCE):
            batch.step(actions)
        return STEPS_AT_ONCE * BATCH_ROBOTS

    return steps_per_second(begin, steps, seconds)


def row(name: str, result: dict[str, Any]) -> str:
    """Formats one line of the table."""
    if "left_out" in result:
        return f"{name:<30} left out: {result['left_out']}"
    goal = f"(asked: {result['asked']:,.0f})" if result["asked"] else ""
    line = f"{name:<30} {result['steps_per_second_wall']:>10,.0f} {result['steps_per_second_cpu']:>10,.0f}"
    experts = [
        f"{style} {value['successes']}/{value['honest_attempts']} in {value['median_steps']:.0f}"
        for style, value in result.get("experts", {}).items()
    ]
    return f"{line}  {'; '.join(experts)} {goal}"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worlds", nargs="*", help=f"which; all without any: {BATCH}; {'; '.join(WORLDS)}")
    parser.add_argument("--seconds", type=float, default=5.0, help="to measure the speed of one world")
    parser.add_argument("--episodes", type=int, default=20, help="of each style of expert; 0: speed only")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_worlds.json"), help="the JSON file")
    arguments = parser.parse_args()
    unknown = set(arguments.worlds) - {BATCH, *WORLDS}
    if unknown:
        parser.error(f"unknown world {min(unknown)!r}; choices: {BATCH}; {'; '.join(WORLDS)}")

    results: dict[str, dict[str, Any]] = {}
    print(f"{'world':<30} {'steps/s':>10} {'per cpu s':>10}  experts: successes/honest in median steps")
    for name in arguments.worlds or [BATCH, *WORLDS]:
        if name == BATCH:
            results[name] = {"asked": BATCH_GOAL, **batch_speed(arguments.seconds)}
        else:
            world_name, options, asked = WORLDS[name]
            try:
                world = make_world(world_name, **options)
            except ImportError as error:
                results[name] = {"left_out": str(error)}
                print(row(name, results[name]), flush=True)
                continue
            results[name] = {"asked": asked, **speed_of(world, arguments.seconds)}
            if arguments.episodes:
                results[name]["experts"] = experts_of(world, arguments.episodes)
            world.close()
        print(row(name, results[name]), flush=True)

    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "rendering": os.environ.get("MUJOCO_GL", ""),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine, "worlds": results}, indent=2) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
