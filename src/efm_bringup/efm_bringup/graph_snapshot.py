"""What a look at a live ROS graph found, as plain values: nodes, topics, samples of messages, diagnostics.

`graph_look` fills it from a graph, `graph_checks` judges it. Tests make their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rclpy.qos import QoSProfile

from efm_core.embodiment import Embodiment


@dataclass(frozen=True)
class Endpoint:
    """A publisher or subscription: full name of its node, type of the topic, QoS."""

    node: str
    kind: str
    qos: QoSProfile


@dataclass
class Samples:
    """What was heard on a topic while the look lasted.

    Attributes:
        count: Messages.
        rate_hz: Of their arrival; 0 with less than two.
        stamps: Whether messages have one.
        zero_stamps: Messages of a type with a stamp in which it is zero.
        oldest_s: Greatest age at arrival, by the clock that the nodes use.
        newest_s: Smallest age; negative where a stamp lies in the future.
        width: Of images [px]; 0: no image.
        height: Likewise.
        encoding: Likewise; empty: none, or compressed.
        joints: Names in a JointState: in the newest that cannot be used, else in the oldest that was read.
        read: Messages that were read to the end.
        faulty: Those of them that cannot be used.
        problem: Why the newest of these cannot be used; empty: all can, or none was read.
    """

    count: int = 0
    rate_hz: float = 0.0
    stamps: bool = False
    zero_stamps: int = 0
    oldest_s: float = 0.0
    newest_s: float = 0.0
    width: int = 0
    height: int = 0
    encoding: str = ""
    joints: tuple[str, ...] = ()
    read: int = 0
    faulty: int = 0
    problem: str = ""


@dataclass
class Topic:
    """Who publishes and subscribes, and what was heard; None: nobody listened."""

    publishers: list[Endpoint] = field(default_factory=list)
    subscribers: list[Endpoint] = field(default_factory=list)
    samples: Samples | None = None


@dataclass(frozen=True)
class Diagnosis:
    """The newest entry of /diagnostics under one name."""

    robot: str
    name: str
    level: int
    message: str
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Robot:
    """A robot that is to be checked: its namespace without leading slash, and what it should be."""

    name: str
    embodiment: Embodiment

    def topic(self, name: str) -> str:
        """Returns the full name of one of its topics or services."""
        return f"/{self.name}/{name}" if self.name else f"/{name}"


@dataclass
class Snapshot:
    """See the module.

    Attributes:
        seconds: How long the look lasted.
        robots: Those to be checked.
        nodes: Full name -> parameters that are of interest; every node of the graph is there.
        doubles: Full names that more than one node has.
        topics: By full name.
        services: Full names.
        diagnoses: The newest of each name.
        refusals: Why an embodiment could not be loaded: node -> words.
        disks: Folder -> (free bytes, what it is for), of this machine.
        environment: Variables that matter.
        gpu: This machine has an NVIDIA driver.
        providers: Of ONNX Runtime on this machine; empty: not looked at.
    """

    seconds: float = 0.0
    robots: list[Robot] = field(default_factory=list)
    nodes: dict[str, dict[str, object]] = field(default_factory=dict)
    doubles: list[str] = field(default_factory=list)
    topics: dict[str, Topic] = field(default_factory=dict)
    services: set[str] = field(default_factory=set)
    diagnoses: list[Diagnosis] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)
    disks: dict[str, tuple[int, str]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    gpu: bool = False
    providers: tuple[str, ...] = ()

    def topic(self, name: str) -> Topic:
        """Returns a topic, an empty one where the graph has none of that name."""
        return self.topics.get(name, Topic())

    def own_nodes(self) -> dict[str, dict[str, object]]:
        """Returns the nodes of EFM: those with a parameter that only they have."""
        return {name: values for name, values in self.nodes.items() if values.keys() & {"embodiment", "run"}}

    @property
    def simulated(self) -> bool:
        """Whether nodes go by simulated time."""
        return any(values.get("use_sim_time") for values in self.own_nodes().values())

    @property
    def lockstep(self) -> bool:
        """Whether simulated worlds wait for commands: rates and ages then mean nothing."""
        return any(values.get("lockstep") is True for values in self.nodes.values())


def node_names(endpoints: list[Endpoint]) -> str:
    """Returns the nodes of some endpoints, for people."""
    return ", ".join(sorted({endpoint.node for endpoint in endpoints}))
