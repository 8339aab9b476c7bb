"""The page of topics, services and actions, found by asking the nodes themselves; a part of `reference.py`.

Every node of the stacks is made in this process, configured and activated, asked for what it publishes,
subscribes, serves and calls, and destroyed. No message leaves the process. What a node opens only later is
not seen.
"""

from __future__ import annotations

import importlib
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rclpy
from rclpy.action.client import ActionClient
from rclpy.action.graph import get_action_server_names_and_types_by_node
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from efm_bringup.stacks import STACKS, nodes_of
from efm_core.embodiment import load_embodiment
from efm_learner.random_bundle import write_random_bundle
from efm_ros.lifecycle import EfmLifecycleNode

ROOT = Path(__file__).resolve().parent.parent
ROBOT = "robot_1"
OF_ROS = re.compile(
    r"/(rosout|parameter_events|tf|tf_static)$|/_action/|/(describe|get|list|set)_parameter|/get_parameter_types$"
    r"|/set_parameters_atomically$|/get_type_description$|/transition_event$"
    r"|/(change_state|get_state|get_available_states|get_available_transitions|get_transition_graph)$"
)
# What the interface's own file does not say, or where its type is not ours.
MEANINGS = {
    "/clock": "Simulated time.",
    "/diagnostics": "State of every node at 1 Hz.",
    "/view/markers": "What RViz shows of the fleet.",
    "/annotate/fleet": "The annotated images of all robots side by side, while somebody looks.",
    "<robot>/annotated": "Camera image with instruction, steps to go and who acts, while somebody looks.",
    "<robot>/joy": "A gamepad.",
    "<robot>/<camera>": "Images of a camera; the type and `/compressed` as the embodiment says.",
    "<robot>/<camera info>": "Size of the images, beside each camera.",
    "<robot>/<state>": "Joint states or an array, as the embodiment says.",
    "<robot>/<command>": "Commands to the controller, after the safety gate, in the embodiment's type.",
    "<robot>/recorded": "Newest observation of the running episode that is recorded; a lockstep world waits.",
    "<robot>/estop": "True: stop. The last one published counts.",
    "<robot>/estop_set": "The same as a service.",
    "<robot>/takeover": "True: a person has control.",
    "<robot>/takeover_set": "The same as a service.",
    "<robot>/teleop/command": "What a person wants, in the type of the command topic.",
    "<robot>/episode_summary": "What came out of the last episode.",
    "<robot>/episodes/start": "Begin a run of episodes in the node's mode.",
    "<robot>/episodes/stop": "End the run; the present episode is not kept.",
    "<robot>/episodes/pause": "True: pause after the present episode. False: go on.",
    "<robot>/episodes/mark_success": "End the episode as a success.",
    "<robot>/episodes/mark_failure": "End the episode as a failure.",
    "<robot>/episodes/discard": "End the episode and throw it away.",
    "<robot>/episodes/reset_done": "The scene is ready for the next episode.",
    "<robot>/expert/act": "The world's scripted expert acts.",
    "<robot>/policy/act": "The policy acts.",
    "<robot>/teleop/act": "A person acts.",
}


def topics_page(
    table: Callable[..., str], code: Callable[[object], str], purpose: Callable[[str, str], str]
) -> str:
    """Returns the page.

    Args:
        table: Makes a Markdown table of head and rows.
        code: Formats code.
        purpose: Gives the first comment of an interface file of efm_msgs by folder and name.
    """

    def meaning(name: str, kind: str) -> str:
        package, folder, interface = kind.split("/")
        if name in MEANINGS:
            return MEANINGS[name]
        if package != "efm_msgs":
            unknown.append(f"{name} ({kind})")
            return ""
        return purpose(folder, interface).partition(". ")[0].rstrip(".") + "."

    kinds, unknown = collect(), []
    parts = [
        "# Topics, services and actions of the nodes\n",
        "`<robot>` is the robot's namespace; all names are relative, so that a namespace makes a fleet. "
        "`<camera>`, `<state>` and `<command>` are named by the embodiment. Every node also has the services "
        "of a lifecycle node and its parameters; `view` also sends `/tf` where tf2_msgs is installed.\n",
    ]
    rows = [
        (code(name), code(kind), uses.qos, _names(uses.offered), _names(uses.used), meaning(name, kind))
        for (name, kind), uses in sorted(kinds["topic"].items())
    ]
    parts += [
        "## Topics\n",
        table(("topic", "type", "QoS", "published by", "subscribed by", "meaning"), rows),
    ]
    for what, title in (("service", "Services"), ("action", "Actions")):
        rows = [
            (code(name), code(kind), _names(uses.offered), _names(uses.used), meaning(name, kind))
            for (name, kind), uses in sorted(kinds[what].items())
        ]
        parts += [f"## {title}\n", table((what, "type", "served by", "called by", "meaning"), rows)]
    if unknown:
        raise SystemExit(
            f"add a sentence to MEANINGS in scripts/reference_graph.py for: {', '.join(unknown)}"
        )
    return "\n".join(parts)


@dataclass
class Uses:
    """Which nodes offer (publish, serve) and use (subscribe, call) one name, and the offer's QoS."""

    offered: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    qos: str = ""


Found = dict[str, dict[tuple[str, str], Uses]]


def node_classes() -> list[type]:
    """Returns the classes of all nodes, found by what they inherit from."""
    found = []
    for path in sorted(ROOT.glob("src/*/efm_*/**/*.py")):
        for name in re.findall(r"^class (\w+)\(EfmLifecycleNode\):", path.read_text(), re.M):
            package = path.relative_to(ROOT / "src").parts[1:]
            module = importlib.import_module(".".join((*package[:-1], path.stem)))
            found.append(getattr(module, name))
    return found


def collect() -> Found:
    """Makes every node once and returns what it offers and uses: kind -> (name, type) -> uses."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "OFF"
    found: Found = {kind: defaultdict(Uses) for kind in ("topic", "service", "action")}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ROS_HOME"] = folder
        rclpy.init(args=["--ros-args", "--log-level", "error"])
        try:
            for node in nodes(Path(folder)):
                for step in (node.trigger_configure, node.trigger_activate):
                    if step() != TransitionCallbackReturn.SUCCESS:
                        raise SystemExit(f"{node.get_name()} did not start; the reason is above")
                _look(node, found)
                node.stop_and_release()
                node.destroy_node()
        finally:
            rclpy.try_shutdown()
    return found


def nodes(folder: Path) -> Iterator[Any]:
    """Makes the nodes of a practising robot, of its view and of its teleoperation, one at a time."""
    bundle = write_random_bundle(load_embodiment("table"), folder)
    given = {name: str(bundle.path) for name in ("policy", "reward")}
    given |= {name: str(folder / name) for name in ("spool", "bundles", "run")}
    given |= {"world": "table", "robots": ROBOT, "autostart": "false"}
    made, classes = set(), set(node_classes())
    for stack in ("practice", "view", "collect"):
        known = {argument.name for argument in STACKS[stack].arguments}
        for spec in nodes_of(stack, {name: value for name, value in given.items() if name in known}):
            if spec.name in made:
                continue
            made.add(spec.name)
            cls = _class_of(importlib.import_module(spec.module))
            classes.discard(cls)
            overrides = [Parameter(name, value=value) for name, value in spec.parameters.items()]
            yield cls(namespace=spec.namespace, parameter_overrides=overrides)
    for cls in classes:  # Nodes beside the stacks, of one robot each.
        overrides = [Parameter("embodiment", value="table"), Parameter("autostart", value=False)]
        yield cls(namespace=f"/{ROBOT}", parameter_overrides=overrides)


def _class_of(module: Any) -> type:
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, EfmLifecycleNode) and value is not EfmLifecycleNode:
            return value
    raise SystemExit(f"{module.__name__}: expected a class of a node, found none")


def _look(node: Any, found: Found) -> None:
    who = node.get_name()
    for publisher in node.publishers:
        uses = _uses(found["topic"], publisher.topic_name, publisher.msg_type)
        uses.offered.add(who)
        uses.qos = _qos(publisher.qos_profile)
    for subscription in node.subscriptions:
        uses = _uses(found["topic"], subscription.topic_name, subscription.msg_type)
        uses.used.add(who)
        uses.qos = uses.qos or _qos(subscription.qos_profile)
    for service in node.services:
        _uses(found["service"], node.resolve_service_name(service.srv_name), service.srv_type).offered.add(
            who
        )
    for client in node.clients:
        _uses(found["service"], node.resolve_service_name(client.srv_name), client.srv_type).used.add(who)
    for name, kinds in get_action_server_names_and_types_by_node(node, who, node.get_namespace()):
        found["action"][_general(name), kinds[0]].offered.add(who)
    for waitable in node.waitables:
        if isinstance(waitable, ActionClient):
            name = node.resolve_service_name(waitable._action_name)
            _uses(found["action"], name, waitable._action_type).used.add(who)


def _uses(of_kind: dict[tuple[str, str], Uses], name: str, cls: type) -> Uses:
    """Returns the entry for a name; one that is thrown away for what every ROS node has."""
    if OF_ROS.search(name):
        return Uses()
    package, kind = cls.__module__.split(".")[:2]
    return of_kind[_general(name), f"{package}/{kind}/{cls.__name__}"]


def _general(name: str) -> str:
    """Returns a name of the example robot as one of any robot."""
    embodiment = load_embodiment("table")
    camera, state, action = embodiment.cameras[0], embodiment.state, embodiment.action
    folder = camera.topic.rpartition("/")[0]
    general = {
        camera.subscribed_topic: "<camera>",
        f"{folder}/camera_info": "<camera info>",
        state.topic: "<state>",
        action.topic: "<command>",
    }
    robot, _, rest = name.lstrip("/").partition("/")
    return f"<robot>/{general.get(rest, rest)}" if robot == ROBOT else name


def _qos(profile: Any) -> str:
    reliability = profile.reliability.name.lower().replace("_", " ")
    late = ", transient local" if profile.durability.name == "TRANSIENT_LOCAL" else ""
    return f"{reliability}{late}, depth {profile.depth}"


def _names(nodes: set[str]) -> str:
    return ", ".join(sorted(nodes))
