"""How fast the policy node answers: image stamp to published command through real DDS, beside bare inference.

    python benchmarks/bench_policy_latency.py [--seconds 20] [--rate-seconds 30] [--parts ...]

The node runs as users start it, in a process of its own, with the `small` backbone at 96x96. This process is
the robots. Every number has its baseline in the same run: after each tick the bare model runs once here, so
that both meet the same machine. The time of publication is DDS's own source timestamp. Parts:
  latency   one robot at 20 Hz, each image answered at once; overhead: the node's time minus the bare model's
  batch     eight robots of one node: time until the last command, and CPU time, beside those of one robot
  rate      20 Hz by the node's own ticks, a 60 Hz camera: late and missed ticks
  swaps     the same with another bundle every 2 s
  stale     from the last image of a camera that stops to the hold-still command, in control periods
  memory    resident memory of the node while it answers as fast as it can
Left out: idle machines and pinned cores; look at the load that is printed before you quote a figure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionClient
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, Header

from efm_core.bundle import Bundle
from efm_core.embodiment import Embodiment, load_embodiment
from efm_core.observation import Observation
from efm_core.onnx_model import OnnxModel
from efm_learner.random_bundle import write_random_bundle
from efm_msgs.action import Act
from efm_msgs.msg import ModelStatus
from efm_policy_node.command_outlet import NO_OBSERVATION_NS
from efm_ros.commands import decode_command
from efm_ros.conversion import ns_to_stamp, rgb_to_image
from efm_ros.names import in_robot
from efm_ros.qos import COMMANDS, IMAGES, LATCHED
from efm_ros.testing import Spinner

ROOT = Path(__file__).resolve().parents[1]
RATE_HZ = 20.0
WARM_UP_TICKS = 40
FLEET = 8
PARTS = ("latency", "batch", "rate", "swaps", "stale", "memory")


class Robot:
    """Shows noise, and notes when commands were published."""

    def __init__(self, node: Node, embodiment: Embodiment, name: str) -> None:
        camera = embodiment.cameras[0]
        rng = np.random.default_rng(0)
        self._embodiment = embodiment
        self._pictures = [
            rng.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8) for _ in range(8)
        ]
        self._image = node.create_publisher(Image, in_robot(name, camera.topic), IMAGES)
        self._joints = node.create_publisher(JointState, in_robot(name, embodiment.state.topic), IMAGES)
        self._names = [entry.joint_name for entry in embodiment.state.entries]
        self.act = ActionClient(node, Act, in_robot(name, "policy/act"))
        self.stamp_ns = 0
        self.shown = 0
        self.published_ns: dict[int, int] = {}  # stamp -> when its command was published
        topic = in_robot(name, embodiment.action.topic)
        node.create_subscription(Float64MultiArray, topic, self._commanded, COMMANDS)

    def show(self) -> None:
        """Publishes state and image with the present time as stamp."""
        self.stamp_ns = time.time_ns()
        header = Header(stamp=ns_to_stamp(self.stamp_ns))
        self._joints.publish(JointState(header=header, name=self._names, position=[0.01] * len(self._names)))
        self._image.publish(rgb_to_image(self._pictures[self.shown % len(self._pictures)], header))
        self.shown += 1

    @property
    def answered(self) -> bool:
        """Whether the newest image has its command."""
        return self.stamp_ns in self.published_ns

    def _commanded(self, message: Float64MultiArray, info: dict[str, Any]) -> None:
        _, stamp_ns = decode_command(self._embodiment, message)
        if stamp_ns is not None:
            self.published_ns.setdefault(stamp_ns, info["source_timestamp"])


class Cell:
    """The node in its process, and robots here."""

    def __init__(
        self, embodiment: Embodiment, bundle: Bundle, folder: Path, robots: int, **more: Any
    ) -> None:
        names = [""] if robots == 1 else [f"robot_{index}" for index in range(1, robots + 1)]
        self.node = rclpy.create_node("robots")
        self.spinner = Spinner(self.node)
        self.robots = [Robot(self.node, embodiment, name) for name in names]
        self.statuses: list[ModelStatus] = []
        self.node.create_subscription(ModelStatus, "model_status", self.statuses.append, LATCHED)
        self.parameters = self.node.create_client(SetParameters, "policy/set_parameters")
        file = folder / "embodiment.yaml"
        file.write_text(yaml.safe_dump(embodiment.to_dict()))
        given = {"embodiment": str(file), "bundle": str(bundle.path), "follow_models": False, **more}
        if robots > 1:
            given["robots"] = names
        arguments = [a for key, value in given.items() for a in ("-p", f"{key}:={json.dumps(value)}")]
        self.log_file = folder / f"policy-{time.monotonic_ns()}.log"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "efm_policy_node.main", "--ros-args", *arguments],
            stdout=self.log_file.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def act(self) -> None:
        """Lets the policy act on every robot, without an end."""
        for robot in self.robots:
            self.spinner.until(robot.act.server_is_ready, "the node", 60.0)
            sent = robot.act.send_goal_async(Act.Goal(instruction="push the red moon to the blue cube"))
            self.spinner.until(sent.done, "the goal")

    def answer_all(self, timeout_s: float = 10.0) -> None:
        """Shows all robots and spins until each has its command; what is lost is shown again."""
        deadline = time.monotonic() + timeout_s
        for robot in self.robots:
            robot.show()
        again = time.monotonic() + 0.5
        while not all(robot.answered for robot in self.robots):
            self.spinner.executor.spin_once(timeout_sec=0.01)
            if time.monotonic() > again:
                again = time.monotonic() + 0.5
                for robot in self.robots:
                    if not robot.answered:
                        robot.show()
            assert time.monotonic() < deadline, f"no answer; the node says:\n{self.log_file.read_text()}"

    def cpu_s(self) -> float:
        """CPU time of the node so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        """Resident memory of the node."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def end(self) -> str:
        """Stops the node; returns its log."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)
        self.spinner.close()
        self.node.destroy_node()
        return self.log_file.read_text()


@contextlib.contextmanager
def cell(*args: Any, **more: Any) -> Iterator[Cell]:
    """A cell that ends whatever happens."""
    made = Cell(*args, **more)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.end()


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median and p99 in milliseconds."""
    median, p99 = np.percentile(np.array(seconds) * 1e3, (50, 99))
    return {"median_ms": float(median), "p99_ms": float(p99), "n": len(seconds)}


def paced(seconds: float) -> Iterator[int]:
    """Yields tick numbers at the control rate."""
    due, tick = time.monotonic(), 0
    while tick < seconds * RATE_HZ + WARM_UP_TICKS:
        yield tick
        tick += 1
        due = max(due + 1 / RATE_HZ, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def measure_lockstep(
    embodiment: Embodiment, bundle: Bundle, folder: Path, robots: int, seconds: float, threads: int
) -> dict[str, Any]:
    """Image stamp to command, each beside one run of the bare model with as many observations."""
    model = OnnxModel(bundle, "cpu", threads)
    camera = embodiment.cameras[0]
    frames = {camera.name: np.zeros((camera.frames, camera.height, camera.width, 3), np.uint8)}
    observations = [Observation(1, frames, np.zeros(embodiment.state_size, np.float32))] * robots
    words = [""] * robots
    node_s: list[float] = []
    bare_s: list[float] = []
    bare_cpu_s: list[float] = []
    with cell(embodiment, bundle, folder, robots, lockstep=True, threads=threads) as running:
        running.act()
        cpu_before = 0.0
        for tick in paced(seconds):
            if tick == WARM_UP_TICKS:
                cpu_before = running.cpu_s()
            running.answer_all()
            stamps = [robot.stamp_ns for robot in running.robots]
            done = max(robot.published_ns[robot.stamp_ns] for robot in running.robots)
            began, cpu_began = time.perf_counter(), time.thread_time()
            model.run(observations, words)
            bare, bare_cpu = time.perf_counter() - began, time.thread_time() - cpu_began
            if tick >= WARM_UP_TICKS:
                node_s.append((done - min(stamps)) / 1e9)
                bare_s.append(bare)
                bare_cpu_s.append(bare_cpu)
        cpu_ms = (running.cpu_s() - cpu_before) / len(node_s) * 1e3
    overhead = np.array(node_s) - np.array(bare_s)
    return {
        "robots": robots,
        "node": quantiles(node_s),
        "bare": quantiles(bare_s),
        "overhead": quantiles(overhead.tolist()),
        "ratio_of_medians": float(np.median(node_s) / np.median(bare_s)),
        "cpu_ms_per_tick": cpu_ms,
        "bare_cpu_ms_per_tick": float(np.mean(bare_cpu_s)) * 1e3,
    }


def measure_rate(
    embodiment: Embodiment, bundles: list[Bundle], folder: Path, seconds: float, swaps: bool
) -> dict[str, Any]:
    """The node's own ticks at the control rate; with `swaps` another bundle every 2 s."""
    with cell(embodiment, bundles[0], folder, 1) as running:
        running.act()
        robot = running.robots[0]
        camera = running.node.create_timer(1 / 60.0, robot.show)
        end = time.monotonic() + seconds
        swap_due, swapped = time.monotonic() + 2.0, 0
        while time.monotonic() < end:
            running.spinner.executor.spin_once(timeout_sec=0.05)
            if swaps and time.monotonic() > swap_due:
                swapped += 1
                swap_due += 2.0
                path = str(bundles[swapped % len(bundles)].path)
                value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=path)
                request = SetParameters.Request(parameters=[Parameter(name="bundle", value=value)])
                running.parameters.call_async(request)
        running.node.destroy_timer(camera)
        ready = sum(status.state == ModelStatus.STATE_READY for status in running.statuses)
        log = running.end()
    cadence = next(line for line in log.splitlines() if "cadence of" in line)
    return {"swaps": swapped, "swaps_ready": ready, "cadence": cadence.partition("robot: ")[2]}


def measure_stale(embodiment: Embodiment, bundle: Bundle, folder: Path, rounds: int = 10) -> dict[str, Any]:
    """How long the robot goes on after its camera has stopped."""
    periods = []
    with cell(embodiment, bundle, folder, 1) as running:
        running.act()
        robot, spinner = running.robots[0], running.spinner
        for _ in range(rounds):
            robot.published_ns.clear()
            camera = running.node.create_timer(1 / 60.0, robot.show)
            spinner.until(lambda: len(robot.published_ns) > RATE_HZ, "commands")
            running.node.destroy_timer(camera)
            spinner.until(lambda: NO_OBSERVATION_NS in robot.published_ns, "the hold-still command")
            periods.append((robot.published_ns[NO_OBSERVATION_NS] - robot.stamp_ns) / 1e9 * RATE_HZ)
    return {"median_periods": float(np.median(periods)), "worst_periods": max(periods), "n": rounds}


def measure_memory(embodiment: Embodiment, bundle: Bundle, folder: Path, ticks: int) -> dict[str, Any]:
    """Resident memory at a tenth of the ticks and at the end."""
    with cell(embodiment, bundle, folder, 1, lockstep=True) as running:
        running.act()
        began, early = time.monotonic(), 0.0
        for tick in range(ticks):
            running.answer_all()
            running.robots[0].published_ns.clear()
            if tick == ticks // 10:
                early = running.resident_mb()
        late = running.resident_mb()
        rate = ticks / (time.monotonic() - began)
    return {
        "ticks": ticks,
        "early_mb": early,
        "late_mb": late,
        "growth_mb": late - early,
        "ticks_per_s": rate,
    }


def main() -> None:
    """Measures all parts, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each lockstep part")
    parser.add_argument("--rate-seconds", type=float, default=30.0, help="of each part at a rate")
    parser.add_argument("--memory-ticks", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1, help="cores of one inference")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_policy_latency.json"))
    options = parser.parse_args()
    # An own, local graph.
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.randint(1, 100)))
    os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(ROOT / "config" / "fastdds_localhost.xml"))
    table = load_embodiment("table").to_dict()
    embodiment = Embodiment.from_dict({**table, "control_rate_hz": RATE_HZ})
    rclpy.init()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundles = [write_random_bundle(embodiment, folder, "policy", seed, "small") for seed in (0, 1)]
        report: dict[str, Any] = {
            "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
            "load_before": os.getloadavg(),
        }
        shared = (embodiment, bundles[0], folder)
        works: dict[str, Callable[[], dict[str, Any]]] = {
            "latency": lambda: measure_lockstep(*shared, 1, options.seconds, options.threads),
            "batch": lambda: measure_lockstep(*shared, FLEET, options.seconds, options.threads),
            "rate": lambda: measure_rate(embodiment, bundles, folder, options.rate_seconds, False),
            "swaps": lambda: measure_rate(embodiment, bundles, folder, options.rate_seconds, True),
            "stale": lambda: measure_stale(*shared),
            "memory": lambda: measure_memory(*shared, options.memory_ticks),
        }
        report.update({part: works[part]() for part in options.parts})
        if {"latency", "batch"} <= set(options.parts):
            one, many = report["latency"], report["batch"]
            for name in ("node", "bare"):
                many[f"{name}_ratio_to_one"] = many[name]["median_ms"] / one[name]["median_ms"]
            many["cpu_ratio_to_one"] = many["cpu_ms_per_tick"] / one["cpu_ms_per_tick"]
            beyond = [part["cpu_ms_per_tick"] - part["bare_cpu_ms_per_tick"] for part in (one, many)]
            many["cpu_beyond_bare_ratio_to_one"] = beyond[1] / beyond[0]
        report["load_after"] = os.getloadavg()
    rclpy.try_shutdown()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
