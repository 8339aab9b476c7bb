"""Looks at a live ROS graph for a few seconds and writes down what is there, as a `Snapshot`.

Robots and embodiments are found by the parameters of EFM's own nodes, or given by the caller. Nothing is
judged here, and nothing is changed in the graph.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray

from efm_bringup.graph_snapshot import Diagnosis, Endpoint, Robot, Samples, Snapshot, Topic
from efm_core.embodiment import Camera, Embodiment, State, load_embodiment
from efm_core.errors import EfmError
from efm_core.message_values import message_stamp_ns
from efm_ros.conversion import compressed_to_rgb, image_to_rgb, stamp_to_ns, state_from_message
from efm_ros.executors import SingleThreadedExecutor

PARAMETERS = (
    *("embodiment", "robots", "use_sim_time", "lockstep", "spool", "run", "quota_bytes", "provider"),
    *("learner", "mode"),
)
DISCOVERY_S = 2.0  # Longest that a graph takes to become known.
PARAMETERS_S = 5.0
# Hears every publisher, whatever it offers.
ANYTHING = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=50,
    reliability=ReliabilityPolicy.BEST_EFFORT,
    durability=DurabilityPolicy.VOLATILE,
)
MINE = "efm_doctor"
# Of the newest messages of a topic; they are read when the look is over, since reading would delay others.
KEPT_BYTES = 32 << 20
VARIABLES = ("ROS_DOMAIN_ID", "FASTRTPS_DEFAULT_PROFILES_FILE", "RMW_IMPLEMENTATION", "ROS_DISTRO")


class GraphLook:
    """A node that looks; use as a context manager.

    Args:
        embodiment: Of all robots; None: as their nodes say.
        robots: Names; empty: as the nodes say.
    """

    def __init__(self, embodiment: Embodiment | None = None, robots: Sequence[str] = ()) -> None:
        self._embodiment = embodiment
        self._names = list(robots)
        self._own_context = not rclpy.ok()
        if self._own_context:
            rclpy.init(args=[])
        self._node = Node(MINE, start_parameter_services=False, enable_rosout=False)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._clock_ns: int | None = None
        self._diagnoses: dict[tuple[str, str], Diagnosis] = {}

    def __enter__(self) -> GraphLook:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(timeout_sec=1.0)
        self._node.destroy_node()
        if self._own_context:
            rclpy.try_shutdown()

    def take(self, seconds: float) -> Snapshot:
        """Looks for that long, after the graph has become known."""
        snapshot = Snapshot(seconds=seconds)
        self._spin(DISCOVERY_S)
        snapshot.environment = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
        self._look_at_nodes(snapshot)
        snapshot.robots = self._robots(snapshot)
        listeners = self._listen(snapshot)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, ANYTHING)
        self._spin(seconds)
        self._look_at_topics(snapshot)
        for name, listener in listeners.items():
            snapshot.topics.setdefault(name, Topic()).samples = listener.finish()
        # Of those that the graph names, some are only asked for.
        names = (name for name, _ in self._node.get_service_names_and_types())
        snapshot.services = {name for name in names if self._node.count_services(name)}
        snapshot.diagnoses = [self._diagnoses[key] for key in sorted(self._diagnoses)]
        snapshot.disks = _disks(snapshot)
        snapshot.gpu = Path("/proc/driver/nvidia/version").exists()
        if snapshot.gpu:
            import onnxruntime  # Takes a second, and matters only where there is a choice.

            snapshot.providers = tuple(onnxruntime.get_available_providers())
        return snapshot

    def _spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=min(left, 0.1))

    def _look_at_nodes(self, snapshot: Snapshot) -> None:
        """Asks every node for the parameters that tell what it is there for."""
        found = [f"{space.rstrip('/')}/{name}" for name, space in self._node.get_node_names_and_namespaces()]
        found = [name for name in found if name != f"/{MINE}"]
        snapshot.doubles = sorted(name for name, count in Counter(found).items() if count > 1)
        # A node refuses to tell of any parameter when it lacks one of those asked for.
        listed = self._ask(set(found), ListParameters, "list_parameters", lambda _: ListParameters.Request())
        wanted = {
            name: [key for key in PARAMETERS if key in told.result.names] for name, told in listed.items()
        }
        given = self._ask(
            {name for name, keys in wanted.items() if keys},
            GetParameters,
            "get_parameters",
            lambda name: GetParameters.Request(names=wanted[name]),
        )
        for name in set(found):
            values = map(parameter_value_to_python, given[name].values if name in given else ())
            snapshot.nodes[name] = dict(zip(wanted.get(name, ()), values, strict=False))

    def _ask(self, names: set[str], kind: Any, service: str, request: Callable[[str], Any]) -> dict[str, Any]:
        """Calls a service of many nodes at once; returns the answers of those that answer in time."""
        clients = {name: self._node.create_client(kind, f"{name}/{service}") for name in names}
        futures: dict[str, Any] = {}
        deadline = time.monotonic() + PARAMETERS_S
        while time.monotonic() < deadline and not (
            len(futures) == len(clients) and all(future.done() for future in futures.values())
        ):
            for name, client in clients.items():
                if name not in futures and client.service_is_ready():
                    futures[name] = client.call_async(request(name))
            self._executor.spin_once(timeout_sec=0.05)
        for client in clients.values():
            self._node.destroy_client(client)
        return {name: future.result() for name, future in futures.items() if future.done()}

    def _robots(self, snapshot: Snapshot) -> list[Robot]:
        """Finds the robots that EFM's nodes serve; what was given wins."""
        found: dict[str, Embodiment] = {}
        for node, values in sorted(snapshot.own_nodes().items()):
            if "embodiment" not in values:
                continue
            space = node.rpartition("/")[0].strip("/")
            try:
                embodiment = self._embodiment or load_embodiment(str(values["embodiment"]))
            except EfmError as error:
                snapshot.refusals[node] = str(error)
                continue
            names = values.get("robots")
            for name in names if isinstance(names, (list, tuple)) else [""]:
                found.setdefault("/".join(filter(None, (space, str(name)))), embodiment)
        if self._embodiment is not None:
            found |= dict.fromkeys(self._names or ([] if found else [""]), self._embodiment)
        return [Robot(name, found[name]) for name in sorted(found) if not self._names or name in self._names]

    def _listen(self, snapshot: Snapshot) -> dict[str, _Listener]:
        """Subscribes to the inputs of all robots with the type that they have, and to /clock."""
        types = dict(self._node.get_topic_names_and_types())
        simulated = snapshot.simulated
        listeners: dict[str, _Listener] = {}

        def listen(name: str, kind: type, want: Camera | State | None) -> None:
            full = f"{kind.__module__.partition('.')[0]}/msg/{kind.__name__}"
            if full in types.get(name, []):
                listener = listeners[name] = _Listener(kind, want, lambda: self._now_ns(simulated))
                self._node.create_subscription(kind, name, listener.take, ANYTHING, raw=True)

        for robot in snapshot.robots:
            for camera in robot.embodiment.cameras:
                kind = CompressedImage if camera.transport == "compressed" else Image
                listen(robot.topic(camera.subscribed_topic), kind, camera)
            if (state := robot.embodiment.state) is not None:
                kind = JointState if state.interface == "joint_states" else Float64MultiArray
                listen(robot.topic(state.topic), kind, state)
        if "/clock" in types:
            listener = listeners["/clock"] = _Listener(Clock, None, lambda: 0)

            def on_clock(data: bytes) -> None:
                listener.take(data)
                self._clock_ns = stamp_to_ns(deserialize_message(data, Clock).clock)

            self._node.create_subscription(Clock, "/clock", on_clock, ANYTHING, raw=True)
        return listeners

    def _now_ns(self, simulated: bool) -> int | None:
        """The time that the nodes go by; None while it is not known."""
        return self._clock_ns if simulated else time.time_ns()

    def _look_at_topics(self, snapshot: Snapshot) -> None:
        for name, _ in self._node.get_topic_names_and_types():
            topic = snapshot.topics.setdefault(name, Topic())
            topic.publishers = _endpoints(self._node.get_publishers_info_by_topic(name))
            topic.subscribers = _endpoints(self._node.get_subscriptions_info_by_topic(name))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            level = int.from_bytes(status.level, "little")
            found = Diagnosis(status.hardware_id, status.name, level, status.message, values)
            self._diagnoses[status.hardware_id, status.name] = found


class _Listener:
    """Counts what comes on one topic; reads the messages only at the end."""

    def __init__(self, kind: type, want: Camera | State | None, now_ns: Any) -> None:
        self._kind, self._want, self._now_ns = kind, want, now_ns
        self._samples = Samples()
        self._ages: list[float] = []
        self._first_s = self._last_s = 0.0
        self._kept: deque[bytes] = deque()

    def take(self, data: bytes) -> None:
        """Takes one serialised message."""
        now_s, now_ns = time.monotonic(), self._now_ns()
        self._first_s = self._first_s or now_s
        self._last_s = now_s
        self._samples.count += 1
        self._kept.append(data)
        while len(self._kept) > 1 and len(self._kept) * len(data) > KEPT_BYTES:
            self._kept.popleft()
        if self._kind is Clock or now_ns is None:
            return
        # The header is all that is needed, and it comes first in every type that has one.
        stamp_ns = message_stamp_ns(deserialize_message(data, self._kind))
        if stamp_ns is not None:
            self._samples.stamps = True
            self._ages.append((now_ns - stamp_ns) / 1e9)
        elif self._kind is not Float64MultiArray:  # Which need not have one.
            self._samples.zero_stamps += 1

    def finish(self) -> Samples:
        """Returns what was found."""
        samples = self._samples
        if samples.count > 1 and self._last_s > self._first_s:
            samples.rate_hz = (samples.count - 1) / (self._last_s - self._first_s)
        if self._ages:
            samples.oldest_s, samples.newest_s = max(self._ages), min(self._ages)
        for data in reversed(self._kept if self._want is not None else ()):
            samples.read += 1
            if problem := self._read(deserialize_message(data, self._kind), samples.problem == ""):
                samples.faulty += 1
                samples.problem = samples.problem or problem
        return samples

    def _read(self, message: Any, describe: bool) -> str:
        """Returns why a message cannot be used; empty: it can."""
        samples = self._samples
        if isinstance(message, JointState) and describe:
            samples.joints = tuple(message.name)
        try:
            if isinstance(message, (Image, CompressedImage)):
                is_raw = isinstance(message, Image)
                picture = image_to_rgb(message) if is_raw else compressed_to_rgb(message)
                samples.height, samples.width = picture.shape[:2]
                samples.encoding = message.encoding if is_raw else ""
            else:
                assert isinstance(self._want, State)
                state_from_message(message, self._want)
        except EfmError as error:
            return str(error)
        return ""


def _endpoints(infos: Sequence[Any]) -> list[Endpoint]:
    found = [
        Endpoint(f"{info.node_namespace.rstrip('/')}/{info.node_name}", info.topic_type, info.qos_profile)
        for info in infos
    ]
    return [endpoint for endpoint in found if endpoint.node != f"/{MINE}"]


def _disks(snapshot: Snapshot) -> dict[str, tuple[int, str]]:
    """Free space of the folders that nodes write to, where they are on this machine."""
    found = {}
    for node, values in snapshot.nodes.items():
        for key, purpose in (("spool", "episodes"), ("run", "the practice run")):
            folder = values.get(key)
            if isinstance(folder, str) and folder and Path(folder).is_dir():
                found[folder] = (shutil.disk_usage(folder).free, f"{purpose} of {node}")
    return found
