"""What nodes a stack has, said once: the launch files and `efm up` both read it.

A stack is a function from argument values to a list of `NodeSpec`. Parameters that tune a node live in
`config/<node>.yaml`; what is set here is deployment: which world, which robots, which models, where files go. Nothing
here knows `launch` or starts a process.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from efm_core.errors import BadRequest, nearest

LEARNER = "/learner"


@dataclass(frozen=True)
class Argument:
    """One argument of a stack, `name:=value` on every command line.

    Attributes:
        name: As typed.
        default: Text; empty where the nodes' own default holds.
        description: One sentence for people.
        choices: The only values allowed; empty: any.
    """

    name: str
    default: str
    description: str
    choices: tuple[str, ...] = ()


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


WORLD = Argument("world", "pointmass", "World to simulate: pointmass, table, metaworld:<task>, gym:<id>, ...")
WORLD_OPTIONS = Argument("world_options", "{}", 'Options of the world as JSON, for example {"blocks": 4}.')
EMBODIMENT = Argument("embodiment", "", "Embodiment by name or path; empty: the one named like the world.")
ROBOTS = Argument(
    "robots",
    "1",
    "Number of robots (robot_1, robot_2, ...) or their names with commas between; /: one without a name.",
)
LOCKSTEP = Argument(
    "lockstep", "true", "The world waits for each command and runs as fast as it can.", ("true", "false")
)
SEED = Argument("seed", "0", "Seed of the simulated start states; 0: another one at every start.")
EXPERT = Argument(
    "expert_style", "imperfect", "How the scripted expert errs.", ("perfect", "imperfect", "sloppy")
)
EXPERT_CHANGES = Argument("expert_changes", "{}", 'Changes to that style as JSON, for example {"fail": 0.3}.')
SIM_TIME = Argument(
    "use_sim_time",
    "",
    "Nodes take their time from /clock; empty: yes with simulated worlds, no with simulated:=false.",
    ("", "true", "false"),
)
AUTOSTART = Argument(
    "autostart", "true", "Lifecycle nodes configure and activate themselves.", ("true", "false")
)
LOG_LEVEL = Argument(
    "log_level", "info", "Least severity that is logged.", ("debug", "info", "warn", "error")
)
DRY_RUN = Argument(
    "dry_run", "", "true: decide but send no command; empty: as the embodiment says.", ("", "true", "false")
)
MODE = Argument("mode", "practice", "What the robots are there for.", ("collect", "practice", "evaluate"))
POLICY = Argument("policy", "", "Folder of the policy bundle; empty: wait for the learner's.")
REWARD = Argument("reward", "", "Folder of the reward bundle.")
VERIFIER = Argument("verifier", "", "Folder of a second reward bundle for the guard; empty: none.")
SPOOL = Argument("spool", "spool", "Folder for recorded episodes; every robot has its own below it.")
BUNDLES = Argument("bundles", "bundles", "Folder for bundles that robots fetch.")
RUN = Argument("run", "runs/practice", "Folder of the practice run; resumed where it exists.")
LEARNING = Argument(
    "learning",
    "{}",
    'Settings of the learner as JSON, for example {"iterations": 20}; they win over learner.yaml.',
)
SIMULATED = Argument(
    "simulated", "true", "Start the simulated world; false: the robots are there already.", ("true", "false")
)
FOLLOW = Argument("follow_models", "true", "Take new policies from the learner.", ("true", "false"))

_EVERY = (AUTOSTART, LOG_LEVEL)
_WORLD = (WORLD, WORLD_OPTIONS, EMBODIMENT, ROBOTS, LOCKSTEP, SEED, EXPERT, EXPERT_CHANGES)
_CELL = (MODE, POLICY, REWARD, SPOOL, BUNDLES, FOLLOW, DRY_RUN)


class Values(dict[str, str]):
    """Argument values of a stack, with readers for the types they stand for."""

    def flag(self, name: str) -> bool:
        """Returns a true/false argument."""
        return self[name] == "true"

    def integer(self, name: str) -> int:
        """Returns a whole number; refuses anything else."""
        try:
            return int(self[name])
        except ValueError as error:
            raise BadRequest(f"{name}:={self[name]}: expected a whole number") from error

    @property
    def robots(self) -> tuple[str, ...]:
        """Names of the robots."""
        text = self["robots"].strip()
        if text == "/":
            return ("",)
        if text.isdigit():
            if not 1 <= int(text) <= 64:
                raise BadRequest(f"robots:={text}: expected 1 to 64 robots")
            return tuple(f"robot_{index}" for index in range(1, int(text) + 1))
        names = tuple(name.strip().strip("/") for name in text.split(","))
        if len(set(names)) != len(names) or not all(names):
            raise BadRequest(f"robots:={text}: expected a number or different names with commas between")
        return names

    @property
    def embodiment(self) -> str:
        """The embodiment, by name or path."""
        return self["embodiment"] or self["world"].partition(":")[0]

    @property
    def sim_time(self) -> bool:
        """Whether nodes take their time from /clock."""
        return self.flag("use_sim_time" if self["use_sim_time"] else "simulated")

    def path(self, name: str) -> str:
        """Returns a path as absolute, so that it means the same in every process; empty stays empty."""
        return str(Path(os.path.expanduser(self[name])).absolute()) if self[name] else ""


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
                "world_options": values["world_options"],
                "embodiment": values.embodiment,
                "robots": list(values.robots),
                "lockstep": values.flag("lockstep"),
                "seed": values.integer("seed"),
                "expert_style": values["expert_style"],
                "expert_changes": values["expert_changes"],
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
        "bundle": values.path("policy"),
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
        reward = {**models, "bundle": values.path("reward")}
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
                "policy": values.path("policy"),
                "reward": values.path("reward"),
                "verifier": values.path("verifier"),
                "autostart": values.flag("autostart"),
                **_json(values, "learning"),
            },
        )
    ]


def _json(values: Values, name: str) -> dict[str, object]:
    try:
        found = json.loads(values[name])
    except json.JSONDecodeError as error:
        raise BadRequest(f"{name}:={values[name]}: expected a JSON object: {error}") from error
    if not isinstance(found, dict):
        raise BadRequest(f"{name}:={values[name]}: expected a JSON object")
    return found


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


_COLLECT = tuple(a for a in _CELL if a not in (MODE, FOLLOW, POLICY, REWARD, BUNDLES))
STACKS: Mapping[str, Stack] = {
    stack.name: stack
    for stack in (
        Stack("simulation", (*_WORLD, *_EVERY), simulation),
        Stack("cell", (WORLD, EMBODIMENT, ROBOTS, LOCKSTEP, *_CELL, *_EVERY), cell),
        Stack("learner", (POLICY, REWARD, VERIFIER, RUN, LEARNING, *_EVERY), learner),
        Stack("collect", (SIMULATED, *_WORLD, *_COLLECT, *_EVERY), collect),
        Stack(
            "practice",
            (SIMULATED, *_WORLD, *(a for a in _CELL if a != MODE), VERIFIER, RUN, LEARNING, *_EVERY),
            practice,
        ),
        Stack(
            "evaluate",
            (SIMULATED, *_WORLD, *(a for a in _CELL if a not in (MODE, FOLLOW)), *_EVERY),
            evaluate,
        ),
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
                f"{stack.name}: unknown argument {name!r}{nearest(name, known)}; choices: {', '.join(sorted(known))}"
            )
        if known[name].choices and value not in known[name].choices:
            raise BadRequest(
                f"{name}:={value}: expected one of {', '.join(repr(c) for c in known[name].choices)}"
            )
    # Arguments that this stack does not offer keep their defaults, so that stacks can be made of one another.
    values = {argument.name: argument.default for argument in _WORLD + _CELL + _EVERY}
    values |= {argument.name: argument.default for argument in (SIMULATED, VERIFIER, RUN, LEARNING)}
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
