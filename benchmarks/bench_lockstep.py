"""Control steps per second of one world in process, and through ROS in lockstep with one and with two robots.

    python benchmarks/bench_lockstep.py [--world table] [--seconds 8] [--rounds 3] [--out FILE]

What is compared, in every round of one run, so that the load of the machine counts for all alike:
- in process: one loop that steps the world and calls a policy of `--policy-ms` of work, for one robot after
  the other;
- policy: the simulator's process and one policy process over real DDS, all robots in either;
- expert: the simulator's process alone, its experts acting and publishing everything;
- recorded: the same with an episode node for each robot that records all of it; resets and the closing of
  files count here, and do not in the yardstick.
The policy does nothing but burn its time, since networks are another benchmark's. Ratios are of the same
round; the median round is reported. Prints a table and writes the same as JSON.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import platform
import shutil
import signal
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

import numpy as np
import rclpy
from rclpy.action import ActionClient
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState

from efm_bringup.demo import isolate
from efm_core.embodiment import Embodiment, load_embodiment
from efm_core.leash import leashed
from efm_episode_node.fleet_client import FleetClient, Listener, Wish
from efm_msgs.action import Act
from efm_msgs.srv import ResetWorld
from efm_ros.commands import CommandChannel
from efm_ros.conversion import image_to_rgb, stamp_to_ns
from efm_ros.intake import Intake
from efm_ros.qos import IMAGES, deep
from efm_sim.expert import STYLES
from efm_sim.world import make_world

START_S = 60.0


def work(milliseconds: float) -> None:
    """Burns CPU time of this thread, as a policy would."""
    until = time.thread_time() + milliseconds / 1000.0
    while time.thread_time() < until:
        pass


def wander(low: np.ndarray, high: np.ndarray, step: int) -> np.ndarray:
    """Gives a heading that turns slowly, so that the world has something to do."""
    angle = step / 15.0
    heading = np.array([np.cos(angle), np.sin(angle)] + [0.0] * (len(low) - 2))[: len(low)]
    return np.clip(heading, -1, 1) * (high - low) / 4 + (high + low) / 2


def in_process(world_name: str, options: dict[str, Any], policy_ms: float, seconds: float) -> float:
    """The loop without ROS."""
    world = make_world(world_name, **options)
    low, high = np.array(world.spec.action_low), np.array(world.spec.action_high)
    world.reset(1)
    count, until = 0, 0.0
    for step in range(-20, 10**9):
        if step == 0:
            began = time.perf_counter()
            until = began + seconds
        work(policy_ms)
        world.step(wander(low, high, step))
        if step >= 0:
            count += 1
            if time.perf_counter() >= until:
                break
        if step % world.spec.max_steps == world.spec.max_steps - 1:
            world.reset(1000 + step)
    world.close()
    return count / (time.perf_counter() - began)


def expert_in_process(world_name: str, options: dict[str, Any], seconds: float) -> float:
    """The expert's loop without ROS; resets are not timed, as they are not through ROS."""
    world = make_world(world_name, **options)
    count, spent = 0, 0.0
    for seed in itertools.count(1):
        world.reset(seed)
        expert = world.expert(STYLES["perfect"], seed)
        began = time.perf_counter()
        for _ in range(world.spec.max_steps):
            if expert.finished:
                break
            world.step(expert.act())
            count += 1
        spent += time.perf_counter() - began
        if seed == 1:  # The first episode fills caches.
            count, spent = 0, 0.0
        if spent > seconds:
            break
    world.close()
    return count / spent


def policy_process(arguments: list[str]) -> None:
    """The policy's process: answers every observation of every robot."""
    embodiment_name, policy_ms, *robots = arguments
    rclpy.init(args=[])
    node, embodiment = Node("bench_policy"), load_embodiment(embodiment_name)
    intake = Intake(node)
    for robot in robots:
        _Answerer(node, intake, embodiment, robot, float(policy_ms))
    try:
        while rclpy.ok():
            intake.take(0.2)
    except KeyboardInterrupt:
        pass


class _Answerer:
    """Waits for all inputs of one stamp, then answers it."""

    def __init__(
        self, node: Node, intake: Intake, embodiment: Embodiment, robot: str, policy_ms: float
    ) -> None:
        self.channel = CommandChannel(node, embodiment, robot, lockstep=True)
        self.wanted = len(embodiment.cameras) + (embodiment.state is not None)
        self.low = np.array([dimension.low for dimension in embodiment.action.dimensions])
        self.high = np.array([dimension.high for dimension in embodiment.action.dimensions])
        self.policy_ms, self.steps = policy_ms, 0
        self.stamps: dict[str, int] = {}
        self.answered = 0
        for camera in embodiment.cameras:
            topic = f"{robot}/{camera.topic}"
            intake.subscribe(Image, topic, lambda m, name=camera.name: self.image(name, m), IMAGES)
        if embodiment.state is not None:
            topic = f"{robot}/{embodiment.state.topic}"
            intake.subscribe(JointState, topic, lambda m: self.take("", stamp_to_ns(m.header.stamp)), IMAGES)

    def image(self, name: str, message: Image) -> None:
        image_to_rgb(message)
        self.take(name, stamp_to_ns(message.header.stamp))

    def take(self, name: str, stamp_ns: int) -> None:
        self.stamps[name] = stamp_ns
        complete = len(self.stamps) == self.wanted and len(set(self.stamps.values())) == 1
        if complete and stamp_ns != self.answered:
            work(self.policy_ms)
            self.answered = stamp_ns
            self.channel.send(wander(self.low, self.high, self.steps), stamp_ns)
            self.steps += 1


@contextmanager
def processes(commands: list[list[str]]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Runs commands for the time of a block; they end with this process, however that ends."""
    running = [
        subprocess.Popen(
            leashed(command), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for command in commands
    ]
    try:
        yield running
    finally:
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def simulator(world: str, options: dict[str, Any], robots: list[str]) -> list[str]:
    """The command line of the simulator."""
    command = [sys.executable, "-m", "efm_sim.main", "--ros-args", "-p", f"world:={world}"]
    command += ["-p", f"robots:={json.dumps(robots)}", "-p", f"world_options:='{json.dumps(options)}'"]
    return [*command, "-p", "expert_style:=perfect", "-p", "seed:=1"]


class Counter:
    """Counts the stamps that a robot shows, in a thread of its own."""

    def __init__(self, node: Node, kind: type, topics: list[str], qos: Any) -> None:
        self.stamps: dict[str, set[int]] = {topic: set() for topic in topics}
        self.intake, self.ending = Intake(node), threading.Event()
        for topic in topics:
            self.intake.subscribe(
                kind, topic, lambda m, topic=topic: self.stamps[topic].add(stamp_to_ns(m.header.stamp)), qos
            )
        self.thread = threading.Thread(target=self._take, daemon=True)
        self.thread.start()

    def _take(self) -> None:
        while not self.ending.is_set():
            self.intake.take(0.2)

    def count(self) -> int:
        """Gives the stamps of all robots so far."""
        return sum(len(stamps) for stamps in self.stamps.values())

    def close(self) -> None:
        """Ends the thread."""
        self.ending.set()
        self.thread.join(5.0)
        self.intake.close()


def through_policy(
    world: str, options: dict[str, Any], policy_ms: float, seconds: float, number: int
) -> float:
    """Simulator and policy over DDS."""
    robots = [f"robot_{index}" for index in range(1, number + 1)]
    policy = [sys.executable, __file__, "--policy-process", world.partition(":")[0], str(policy_ms), *robots]
    with FleetClient("bench") as client, processes([simulator(world, options, robots), policy]):
        counter = Counter(
            client.node, JointState, [f"{robot}/joint_states" for robot in robots], deep(IMAGES)
        )
        wait(lambda: counter.count() > 200 * number, "steps of the policy")
        before, began = counter.count(), time.perf_counter()
        time.sleep(seconds)
        rate = (counter.count() - before) / (time.perf_counter() - began)
        counter.close()
    return rate


def through_expert(world: str, options: dict[str, Any], seconds: float, number: int) -> float:
    """The simulator's experts, one act after the other."""
    robots = [f"robot_{index}" for index in range(1, number + 1)]
    with FleetClient("bench") as client, processes([simulator(world, options, robots)]):
        until = [0.0]
        totals = dict.fromkeys(robots, 0)
        spent = dict.fromkeys(robots, 0.0)

        def play(robot: str) -> None:
            resets = client.node.create_client(ResetWorld, f"{robot}/reset")
            acts = ActionClient(client.node, Act, f"{robot}/expert/act")
            wait(lambda: resets.service_is_ready() and acts.server_is_ready(), "the simulator")
            answered(resets.call_async(ResetWorld.Request()))
            while not until[0] or time.perf_counter() < until[0]:
                answered(resets.call_async(ResetWorld.Request()))
                began = time.perf_counter()
                handle = answered(acts.send_goal_async(Act.Goal()))
                result = answered(handle.get_result_async()).result
                if until[0]:
                    totals[robot] += result.steps
                    spent[robot] += time.perf_counter() - began

        threads = [threading.Thread(target=play, args=(robot,), daemon=True) for robot in robots]
        for thread in threads:
            thread.start()
        time.sleep(3.0)
        until[0] = time.perf_counter() + seconds
        for thread in threads:
            thread.join(seconds + 60)
    return sum(totals[robot] / max(spent[robot], 1e-9) for robot in robots)


def recorded(world: str, options: dict[str, Any], seconds: float, number: int) -> float:
    """The experts again, with an episode node that records each robot; resets and closing of files count."""
    robots = [f"robot_{index}" for index in range(1, number + 1)]
    folder = Path(tempfile.mkdtemp(prefix="bench_lockstep"))
    commands = [simulator(world, options, robots)]
    for robot in robots:
        node = [sys.executable, "-m", "efm_episode_node.main", "--ros-args", "-r", f"__ns:=/{robot}"]
        node += ["-p", f"embodiment:={world.partition(':')[0]}", "-p", f"spool:={folder / robot}"]
        commands.append([*node, "-p", "learner:=''", "-p", "use_sim_time:=true"])
    steps: list[tuple[float, int]] = []
    try:
        with FleetClient("bench") as client, processes(commands):
            names = client.robots(robots, START_S)
            listener = Listener(
                lambda robot, summary: steps.append((time.perf_counter(), summary.steps)), lambda *words: None
            )
            runner = threading.Thread(
                target=lambda: client.run(names, Wish(1, 10**6, actor="expert"), listener), daemon=True
            )
            runner.start()
            wait(lambda: len(steps) >= 4 * number, "recorded episodes")
            began, first = time.perf_counter(), len(steps)
            time.sleep(seconds)
            counted = steps[first:]
            return sum(number for _, number in counted) / (time.perf_counter() - began)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def answered(future: Any) -> Any:
    """Waits for a future that the client's executor completes."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    if not done.wait(START_S):
        raise TimeoutError("no answer of the simulator")
    return future.result()


def wait(condition: Callable[[], bool], what: str) -> None:
    """Waits with a deadline."""
    deadline = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {START_S:g} s for {what}")
        time.sleep(0.05)


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--world", default="table")
    parser.add_argument("--world-options", default="{}", help="as JSON")
    parser.add_argument("--policy-ms", type=float, default=1.0, help="CPU time of one inference")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_lockstep.json"))
    given = parser.parse_args()
    options = json.loads(given.world_options)
    isolate()
    with_policy = functools.partial(in_process, given.world, options, given.policy_ms, given.seconds)
    by_expert = functools.partial(expert_in_process, given.world, options, given.seconds)
    # Name -> (what is measured, its yardstick in process).
    measures: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {}
    for number in (1, 2):
        robots = f"{number} robot{'s' if number > 1 else ''}"
        policy = functools.partial(
            through_policy, given.world, options, given.policy_ms, given.seconds, number
        )
        measures[f"policy, {robots}"] = policy, with_policy
        expert = functools.partial(through_expert, given.world, options, given.seconds, number)
        measures[f"expert, {robots}"] = expert, by_expert
        measures[f"recorded, {robots}"] = (
            functools.partial(recorded, given.world, options, given.seconds, number),
            by_expert,
        )
    rounds: list[dict[str, dict[str, float]]] = []
    for index in range(given.rounds):
        rounds.append({name: compared(*pair) for name, pair in measures.items()})
        line = ", ".join(f"{name} {one['steps_per_second']:.0f}" for name, one in rounds[-1].items())
        print(f"round {index + 1}: {line}", flush=True)
    report = {
        "world": given.world,
        "world_options": options,
        "policy_ms": given.policy_ms,
        "seconds": given.seconds,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load": os.getloadavg(),
        "rounds": rounds,
        "median": {
            name: {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]}
            for name in measures
        },
    }
    print(f"\n{given.world}, policy of {given.policy_ms:g} ms, {os.cpu_count()} cores")
    print(f"  {'':<20}{'steps/s':>10}{'in process':>12}{'ratio':>8}")
    for name, one in report["median"].items():
        print(f"  {name:<20}{one['steps_per_second']:10.0f}{one['in_process']:12.0f}{one['ratio']:8.0%}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1))
    return 0


def compared(measure: Callable[[], float], yardstick: Callable[[], float]) -> dict[str, float]:
    """Measures between two yardsticks, so that the load of the machine counts for both."""
    before = yardstick()
    rate = measure()
    reference = (before + yardstick()) / 2
    return {"steps_per_second": rate, "in_process": reference, "ratio": rate / reference}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--policy-process"]:
        policy_process(sys.argv[2:])
    else:
        sys.exit(main())
