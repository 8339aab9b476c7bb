"""What recording costs the loop that it records: the same episodes with and without episode nodes.

    python benchmarks/bench_recording.py [--world table] [--robots 2] [--seconds 10] [--rounds 3]

In every round, one right after the other, so that the load of the machine counts for all alike:
- in process: the expert's loop without ROS, without resets;
- alone: the simulator's process, a client that asks for one reset and one act after the other;
- recorded: an episode node for each robot in the client's place, everything on the disk;
- latency: in real time (`--factor` times), from an observation to the command that answers it; with nobody
  recording, with a bare subscriber of each robot's topics, and with an episode node for each robot, which
  records whoever commands (actor `external`).
Resets count in `alone` and `recorded`. Ratios are of the same round; the median round is reported. CPU time
of a step is that of the simulator, alone and while it is recorded, and of all that the episode nodes do; it
depends less on what else the machine does. Prints a table and writes the same as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bench_lockstep
import numpy as np
import rclpy
from bench_lockstep import START_S, answered, expert_in_process, processes, simulator, wait
from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image, JointState

from efm_bringup.demo import isolate
from efm_core.embodiment import Embodiment, load_embodiment
from efm_core.message_values import message_stamp_ns
from efm_core.summary import Mode, Summary
from efm_episode_node.fleet_client import FleetClient, Listener, Wish
from efm_episode_node.listener import GATHER_S
from efm_msgs.action import Act
from efm_msgs.srv import ResetWorld
from efm_ros.commands import message_type
from efm_ros.conversion import stamp_to_ns
from efm_ros.intake import Intake
from efm_ros.qos import COMMANDS, IMAGES, deep

WARM_UP_ACTS = 4
PARTS = ("speed", "latency")
BESIDE = ("unrecorded", "subscribed", "recorded")
COLLECT = int(Mode.COLLECT)


def cpu_s(running: list[subprocess.Popen[bytes]]) -> float:
    """CPU time that processes have spent so far."""
    ticks = 0
    for process in running:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def alone(world: str, robots: list[str], seconds: float) -> dict[str, float]:
    """Steps per second of resets and acts without anybody who records, and the simulator's CPU time."""
    with FleetClient("bench") as client, processes([simulator(world, {}, robots)]) as simulated:
        until = [0.0]
        steps, acts_done = dict.fromkeys(robots, 0), dict.fromkeys(robots, 0)

        def play(robot: str) -> None:
            resets = client.node.create_client(ResetWorld, f"{robot}/reset")
            acts = ActionClient(client.node, Act, f"{robot}/expert/act")
            wait(lambda: resets.service_is_ready() and acts.server_is_ready(), "the simulator")
            while not until[0] or time.perf_counter() < until[0]:
                answered(resets.call_async(ResetWorld.Request()))
                handle = answered(acts.send_goal_async(Act.Goal()))
                result = answered(handle.get_result_async()).result
                steps[robot] += result.steps if until[0] else 0
                acts_done[robot] += 1

        threads = [threading.Thread(target=play, args=(robot,), daemon=True) for robot in robots]
        for thread in threads:
            thread.start()
        wait(lambda: min(acts_done.values()) >= WARM_UP_ACTS, "acts of the experts")
        began, spent = time.perf_counter(), cpu_s(simulated)
        until[0] = began + seconds
        for thread in threads:
            thread.join(seconds + START_S)
        total = sum(steps.values())
        return {
            "alone": total / (time.perf_counter() - began),
            "alone_simulator_cpu_ms": 1000 * (cpu_s(simulated) - spent) / total,
        }


@contextmanager
def recording(
    world: str, robots: list[str], wish: Wish, finished: Callable[[Summary], None]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Episode nodes for the time of a block, with spools of their own; they run episodes without end."""
    folder = Path(tempfile.mkdtemp(prefix="bench_recording"))
    commands = []
    for robot in robots:
        node = [sys.executable, "-m", "efm_episode_node.main", "--ros-args", "-r", f"__ns:=/{robot}"]
        node += ["-p", f"embodiment:={world.partition(':')[0]}", "-p", f"spool:={folder / robot}"]
        commands.append([*node, "-p", "learner:=''", "-p", "use_sim_time:=true"])
    try:
        with FleetClient("bench_client") as client, processes(commands) as nodes:
            names = client.robots(robots, START_S)
            listener = Listener(lambda robot, summary: finished(summary), lambda *words: None)
            threading.Thread(target=lambda: client.run(names, wish, listener), daemon=True).start()
            yield nodes
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def recorded(world: str, robots: list[str], seconds: float) -> dict[str, float]:
    """Steps per second with everything recorded, and CPU time of a step."""
    steps: list[int] = []
    wish = Wish(COLLECT, 0, actor="expert")
    with (
        processes([simulator(world, {}, robots)]) as simulated,
        recording(world, robots, wish, lambda one: steps.append(one.steps)) as nodes,
    ):
        wait(lambda: len(steps) >= 4 * len(robots), "recorded episodes")
        began, first = time.perf_counter(), len(steps)
        before = cpu_s(simulated), cpu_s(nodes)
        time.sleep(seconds)
        total = sum(steps[first:])
        return {
            "recorded": total / (time.perf_counter() - began),
            "recorded_simulator_cpu_ms": 1000 * (cpu_s(simulated) - before[0]) / total,
            "recorded_nodes_cpu_ms": 1000 * (cpu_s(nodes) - before[1]) / total,
        }


class Observer:
    """Notes how long after an observation the command that answers it was published, by the stamps that the
    middleware gives both where they are published: when this process is woken does not matter, and it is
    woken for neither.
    """

    def __init__(self, embodiment: Embodiment, robots: list[str]) -> None:
        self.latencies: list[float] = []
        self._published: dict[tuple[str, int], int] = {}
        self._node, self._ending = Node("observer"), threading.Event()  # No executor has it.
        self._robots = [
            (
                robot,
                self._node.create_subscription(JointState, f"{robot}/joint_states", print, deep(IMAGES)),
                self._node.create_subscription(
                    message_type(embodiment.action),
                    f"{robot}/{embodiment.action.topic}",
                    print,
                    deep(COMMANDS),
                ),
            )
            for robot in robots
        ]
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._ending.set()
        self._thread.join(5.0)
        self._node.destroy_node()

    def _take(self) -> None:
        while not self._ending.wait(0.05):
            for robot, states, commands in self._robots:
                for message, published_ns in taken(states):
                    self._published[robot, stamp_to_ns(message.header.stamp)] = published_ns
                for message, published_ns in taken(commands):
                    before_ns = self._published.pop((robot, message_stamp_ns(message) or 0), None)
                    if before_ns is not None:
                        self.latencies.append((published_ns - before_ns) / 1e9)


def taken(subscription: Subscription) -> Iterator[tuple[Any, int]]:
    """Takes what has come: messages, and when they were published [ns]."""
    while (found := subscription.handle.take_message(subscription.msg_type, False)) is not None:
        yield found[0], found[1]["source_timestamp"]


def subscribe_only(world: str, robot: str) -> None:
    """Takes what an episode node takes, as it does, and does nothing with it; until the process is ended."""
    embodiment = load_embodiment(world)
    rclpy.init()
    node = Node("subscriber", namespace=robot, parameter_overrides=[Parameter("use_sim_time", value=True)])
    intake = Intake(node)
    intake.take_clock()
    topics = [(Image, camera.topic) for camera in embodiment.cameras] + [(JointState, "joint_states")]
    for kind, topic in [*topics, (message_type(embodiment.action), embodiment.action.topic)]:
        intake.subscribe(kind, topic, lambda data: None, deep(IMAGES), raw=True, patient=True)
    while rclpy.ok():
        intake.take(GATHER_S, patiently=True)


def latency(world: str, robots: list[str], seconds: float, factor: float, beside: str) -> dict[str, float]:
    """Milliseconds from an observation to its command, in real time."""
    name = world.partition(":")[0]
    policy = [sys.executable, bench_lockstep.__file__, "--policy-process", name, "1.0", *robots]
    real_time = ["-p", "lockstep:=false", "-p", f"real_time_factor:={factor}"]
    episodes: list[int] = []
    wish = Wish(COLLECT, 0, max_steps=50, actor="external")
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes([[*simulator(world, {}, robots), *real_time], policy]))
        observer = Observer(load_embodiment(name), robots)
        stack.callback(observer.close)
        if beside == "subscribed":
            command = [sys.executable, __file__, "--subscribe-only", name]
            stack.enter_context(processes([[*command, robot] for robot in robots]))
        elif beside == "recorded":
            finished = lambda one: episodes.append(one.steps)  # noqa: E731
            stack.enter_context(recording(world, robots, wish, finished))
            wait(lambda: len(episodes) >= len(robots), "recorded episodes")
        wait(lambda: len(observer.latencies) > 100, "commands")
        observer.latencies.clear()
        time.sleep(seconds)
        found = 1000 * np.array(observer.latencies)
    return {
        "p50_ms": float(np.median(found)),
        "p99_ms": float(np.quantile(found, 0.99)),
        "commands": len(found),
    }


def one_round(
    world: str, robots: list[str], seconds: float, factor: float, parts: list[str]
) -> dict[str, float]:
    """Measures every part once."""
    result = {}
    if "speed" in parts:
        result = {
            "in_process": expert_in_process(world, {}, seconds / 2),
            **alone(world, robots, seconds),
            **recorded(world, robots, seconds),
        }
        reference = (result["in_process"] + expert_in_process(world, {}, seconds / 2)) / 2
        result |= {"in_process": reference, "recorded_to_alone": result["recorded"] / result["alone"]}
        result["recorded_to_in_process"] = result["recorded"] / reference
    for beside in BESIDE if "latency" in parts else ():
        found = latency(world, robots, seconds, factor, beside)
        result |= {f"latency_{beside}_{key}": value for key, value in found.items()}
    return result


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--world", default="table")
    parser.add_argument("--robots", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--factor", type=float, default=3.0, help="speed of the measurement in real time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_recording.json"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--subscribe-only", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.subscribe_only:
        subscribe_only(*given.subscribe_only)
        return 0
    isolate()
    rclpy.init()
    robots = [f"robot_{index}" for index in range(1, given.robots + 1)]
    rounds = []
    for index in range(given.rounds):
        rounds.append(one_round(given.world, robots, given.seconds, given.factor, given.parts))
        print(
            f"round {index + 1}: " + ", ".join(f"{key} {value:.3g}" for key, value in rounds[-1].items()),
            flush=True,
        )
    report = {
        "world": given.world,
        "robots": given.robots,
        "seconds": given.seconds,
        "factor": given.factor,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load": os.getloadavg(),
        "rounds": rounds,
        "median": {key: statistics.median(one[key] for one in rounds) for key in rounds[0]},
    }
    for key, value in report["median"].items():
        print(f"  {key:<32}{value:10.3g}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
