"""What nodes a stack has, said once: the launch files and `efm up` both read it.

A stack is a function from argument values to a list of `NodeSpec`. Parameters that tune a node live in
`config/<node>.yaml`; what is set here is deployment: which world, which robots, which models, where files go.
Nothing here knows `launch` or starts a process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from efm_bringup.stack_arguments import (
    AUTOSTART,
    BUNDLES,
    DRY_RUN,
    EMBODIMENT,
    EXPERT,
    EXPERT_CHANGES,
    FOLLOW,
    LEARNING,
    LOCKSTEP,
    LOG_LEVEL,
    MODE,
    POLICY,
    REWARD,
    ROBOTS,
    RUN,
    SEED,
    SIM_TIME,
    SIMULATED,
    SPOOL,
    VERIFIER,
    WORLD,
    WORLD_OPTIONS,
    Argument,
    Values,
)
from efm_core.bundle import load_bundle
from efm_core.embodiment import load_embodiment
from efm_core.errors import BadRequest, nearest
from efm_sim.world import require_family

LEARNER = "/learner"
BUNDLE_PARAMETERS = ("bundle", "policy", "reward", "verifier")

_EVERY = (AUTOSTART, LOG_LEVEL)
_WORLD = (WORLD, WORLD_OPTIONS, EMBODIMENT, ROBOTS, LOCKSTEP, SEED, EXPERT, EXPERT_CHANGES)
_CELL = (MODE, POLICY, REWARD, SPOOL, BUNDLES, FOLLOW, DRY_RUN)


@dataclass(frozen=True)
class NodeSpec:
    """One process of a stack.

    Attributes:
        package: ROS package.
        executable: As `ros2 run` knows it.
        module: Python module whose `main` it is, for machines without `ros2 run`.
        name: Node name.
        namespace: Absolute namespace.
        config: File below `config/` with the parameters that tune it; empty: none.
        parameters: Deployment parameters; they win over the file.
        remappings: (from, to).
        ros_arguments: Further arguments for ROS, such as --log-level.
        respawn: Whether it is started again when it dies.
    """

    package: str
    executable: str
    module: str
    name: str
    namespace: str = "/"
    config: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    remappings: tuple[tuple[str, str], ...] = ()
    ros_arguments: tuple[str, ...] = ()
    respawn: bool = True


def simulation(values: Values) -> list[NodeSpec]:
    """Worlds behind the topics of robots."""
    return [
        NodeSpec(
            "efm_sim",
            "sim_node",
            "efm_sim.main",
            "sim",
            config="sim.yaml",
            parameters={
                "world": values["world"],
                "world_options": values.json_text("world_options"),
                "embodiment": values.embodiment,
                "robots": list(values.robots),
                "lockstep": values.flag("lockstep"),
                "seed": values.integer("seed"),
                "expert_style": values["expert_style"],
                "expert_changes": values.json_text("expert_changes"),
                "autostart": values.flag("autostart"),
            },
        )
    ]


def cell(values: Values) -> list[NodeSpec]:
    """Policy, reward and episodes for one robot or a fleet."""
    common: dict[str, object] = {
        "embodiment": values.embodiment,
        "use_sim_time": values.sim_time,
        "autostart": values.flag("autostart"),
    }
    lockstep = values.flag("lockstep") and values.sim_time
    models = {**common, "robots": list(values.robots), "lockstep": lockstep}
    practising = values["mode"] == "practice"
    policy: dict[str, object] = {
        **models,
        "bundle": values.bundle("policy"),
        "bundle_dir": values.path("bundles"),
        "follow_models": values.flag("follow_models") and practising,
    }
    if values["dry_run"]:
        policy["dry_run"] = values.flag("dry_run")
    nodes = []
    if values["mode"] != "collect" or values["policy"]:
        nodes.append(
            NodeSpec(
                "efm_policy_node", "policy_node", "efm_policy_node.main", "policy", "/", "policy.yaml", policy
            )
        )
    if values["reward"]:
        reward = {**models, "bundle": values.bundle("reward")}
        nodes.append(
            NodeSpec(
                "efm_reward_node", "reward_node", "efm_reward_node.main", "reward", "/", "reward.yaml", reward
            )
        )
    elif values["mode"] != "collect":
        raise BadRequest(f"mode:={values['mode']} needs reward:=FOLDER, the bundle that judges success")
    for robot in values.robots:
        episodes = {
            **common,
            "spool": str(Path(values.path("spool")) / robot),
            "mode": values["mode"],
            "autorun": practising,
            "learner": LEARNER if practising else "",
        }
        if values["dry_run"]:
            episodes["dry_run"] = values["dry_run"]  # A reset by trajectory moves the robot as well.
        nodes.append(
            NodeSpec(
                "efm_episode_node",
                "episode_node",
                "efm_episode_node.main",
                "episodes",
                f"/{robot}",
                "episodes.yaml",
                episodes,
            )
        )
    return nodes


def learner(values: Values) -> list[NodeSpec]:
    """The learner of a practice run."""
    missing = [name for name in ("policy", "reward") if not values[name]]
    if missing:
        raise BadRequest(
            f"the learner needs {' and '.join(f'{name}:=FOLDER' for name in missing)}; see efm sft"
        )
    return [
        NodeSpec(
            "efm_learner",
            "learner_node",
            "efm_learner.learner_main",
            "learner",
            LEARNER,
            "learner.yaml",
            {
                "run": values.path("run"),
                "policy": values.bundle("policy"),
                "reward": values.bundle("reward"),
                "verifier": values.bundle("verifier"),
                "autostart": values.flag("autostart"),
                **values.json_object("learning"),
            },
        )
    ]


def _with_world(values: Values, nodes: list[NodeSpec]) -> list[NodeSpec]:
    if values.flag("simulated"):
        return simulation(values) + nodes
    if not values["embodiment"]:
        raise BadRequest("simulated:=false needs embodiment:=NAME, the robot's; see config/embodiments")
    return nodes


def collect(values: Values) -> list[NodeSpec]:
    """Simulation or robot, with the nodes that record demonstrations."""
    return _with_world(values, cell(Values(values | {"mode": "collect", "follow_models": "false"})))


def practice(values: Values) -> list[NodeSpec]:
    """Simulation or robots, cell and learner: the closed loop."""
    nodes = learner(values) + cell(Values(values | {"mode": "practice"}))
    return _with_world(values, nodes)


def evaluate(values: Values) -> list[NodeSpec]:
    """Simulation or robots, and a cell that measures one policy."""
    return _with_world(values, cell(Values(values | {"mode": "evaluate", "follow_models": "false"})))


def view(values: Values) -> list[NodeSpec]:
    """Markers, frames and annotated images of a fleet, for RViz and Foxglove."""
    parameters = {
        "robots": list(values.robots),
        "embodiment": values.embodiment,
        "use_sim_time": values.sim_time,
        "autostart": values.flag("autostart"),
    }
    return [
        NodeSpec(
            "efm_bringup", f"{name}_node", f"efm_bringup.{name}_node", name, "/", f"{name}.yaml", parameters
        )
        for name in ("view", "annotate")
    ]


@dataclass(frozen=True)
class Stack:
    """A named set of nodes.

    Attributes:
        name: As in `<name>.launch.py` and `efm up <name>`.
        arguments: All that it takes.
        nodes: From argument values to nodes.
    """

    name: str
    arguments: tuple[Argument, ...]
    nodes: Callable[[Values], list[NodeSpec]]

    @property
    def description(self) -> str:
        """First line of the function's docstring."""
        return (self.nodes.__doc__ or "").partition("\n")[0]


def _without(arguments: tuple[Argument, ...], *left_out: Argument) -> tuple[Argument, ...]:
    return tuple(argument for argument in arguments if argument not in left_out)


_COLLECT = _without(_CELL, MODE, FOLLOW, POLICY, REWARD, BUNDLES)
_LEARN = (VERIFIER, RUN, LEARNING)
_SEEN = (WORLD, EMBODIMENT, ROBOTS)
STACKS: Mapping[str, Stack] = {
    stack.name: stack
    for stack in (
        Stack("simulation", (*_WORLD, *_EVERY), simulation),
        Stack("cell", (*_SEEN, LOCKSTEP, *_CELL, SIM_TIME, *_EVERY), cell),
        Stack("learner", (POLICY, REWARD, *_LEARN, *_EVERY), learner),
        Stack("collect", (SIMULATED, *_WORLD, *_COLLECT, SIM_TIME, *_EVERY), collect),
        Stack(
            "practice",
            (SIMULATED, *_WORLD, *_without(_CELL, MODE), *_LEARN, SIM_TIME, *_EVERY),
            practice,
        ),
        Stack(
            "evaluate",
            (SIMULATED, *_WORLD, *_without(_CELL, MODE, FOLLOW, BUNDLES), SIM_TIME, *_EVERY),
            evaluate,
        ),
        Stack("view", (*_SEEN, SIM_TIME, *_EVERY), view),
    )
}


def read_arguments(stack: Stack, given: Mapping[str, str]) -> Values:
    """Fills in defaults and checks names and choices.

    Raises:
        BadRequest: An unknown argument (with the nearest known one) or a value outside the choices.
    """
    known = {argument.name: argument for argument in stack.arguments}
    for name, value in given.items():
        if name not in known:
            raise BadRequest(
                f"{stack.name}: unknown argument {name!r}{nearest(name, known)}; "
                f"choices: {', '.join(sorted(known))}"
            )
        if known[name].choices and value not in known[name].choices:
            raise BadRequest(
                f"{name}:={value}: expected one of {', '.join(repr(c) for c in known[name].choices)}"
            )
    # Arguments that this stack does not offer keep their defaults, so that stacks can be made of one another.
    every = (SIMULATED, *_WORLD, *_CELL, *_LEARN, SIM_TIME, *_EVERY)
    values = {argument.name: argument.default for argument in every}
    values |= {name: argument.default for name, argument in known.items()}
    return Values(values | dict(given))


def nodes_of(name: str, given: Mapping[str, str]) -> list[NodeSpec]:
    """Returns the nodes of a stack for `name:=value` arguments.

    Raises:
        BadRequest: Unknown stack, argument or value.
    """
    if name not in STACKS:
        raise BadRequest(f"unknown stack {name!r}{nearest(name, STACKS)}; choices: {', '.join(STACKS)}")
    stack = STACKS[name]
    values = read_arguments(stack, given)
    level = values["log_level"]
    nodes = stack.nodes(values)
    return [dataclasses.replace(node, ros_arguments=("--log-level", level)) for node in nodes]


def check(nodes: Sequence[NodeSpec]) -> None:
    """Refuses what no node could start with, so that it is said once and not at every new start of a node.

    Raises:
        BadRequest: There is no such world, or one in lockstep would wait for the commands of a dry run.
        EmbodimentInvalid: An embodiment is not there, or has faults.
        BundleUnknown: A bundle is not there.
        BundleInvalid: A folder is not that of a bundle.
    """
    for world in {str(node.parameters["world"]) for node in nodes if "world" in node.parameters}:
        try:
            require_family(world)
        except ValueError as error:
            raise BadRequest(str(error)) from error
    names = sorted({str(node.parameters.get("embodiment", "")) for node in nodes} - {""})
    embodiments = {name: load_embodiment(name) for name in names}
    for node in nodes:
        if node.package == "efm_policy_node" and node.parameters["lockstep"]:
            embodiment = embodiments[str(node.parameters["embodiment"])]
            if node.parameters.get("dry_run", embodiment.dry_run):
                raise BadRequest(
                    "dry_run, as an argument or in the embodiment, with lockstep:=true: the world would wait "
                    "for commands that a dry run does not send; add lockstep:=false, and it goes on by the "
                    "clock, or dry_run:=false"
                )
    given = {str(node.parameters.get(name, "")) for node in nodes for name in BUNDLE_PARAMETERS}
    for bundle in sorted(given - {""}):
        load_bundle(bundle, verify=False)
