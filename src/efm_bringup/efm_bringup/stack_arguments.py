"""The arguments of stacks, `name:=value` on every command line, and what their values mean.

Nothing here knows which stack takes which argument; `stacks` says that.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from efm_core.errors import BadRequest

NAMESPACE = re.compile(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)*", re.ASCII)


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
POLICY = Argument(
    "policy", "", "Folder of the policy bundle, or of the run that made it; empty: wait for the learner's."
)
REWARD = Argument("reward", "", "Folder of the reward bundle, or of the training that made it.")
VERIFIER = Argument(
    "verifier", "", "Folder of a second reward bundle for the guard, or of its training; empty: none."
)
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
RVIZ = Argument("rviz", "true", "Start RViz with EFM's view.", ("true", "false"))
FOLLOW = Argument("follow_models", "true", "Take new policies from the learner.", ("true", "false"))


class Values(dict[str, str]):
    """Argument values of a stack, with readers for the types they stand for."""

    def flag(self, name: str) -> bool:
        """Returns a true/false argument."""
        return self[name] == "true"

    def integer(self, name: str) -> int:
        """Returns a whole number of 0 or more; refuses anything else."""
        try:
            number = int(self[name])
        except ValueError as error:
            raise BadRequest(f"{name}:={self[name]}: expected a whole number") from error
        if number < 0:
            raise BadRequest(f"{name}:={self[name]}: expected a whole number of 0 or more")
        return number

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
        for name in names:
            if not NAMESPACE.fullmatch(name):
                raise BadRequest(
                    f"robots:={text}: expected a number, or names of letters, digits and _ that do not "
                    f"begin with a digit, found {name!r}"
                )
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

    def bundle(self, name: str) -> str:
        """Returns the folder of a bundle; a run's folder stands for the bundle that its result names.

        Raises:
            BadRequest: The run has not come to a result of this kind, or its result is damaged.
        """
        path = Path(self.path(name))
        result = path / "result.json"
        if not self[name] or not result.is_file():
            return self.path(name)
        try:
            found = json.loads(result.read_text())
        except ValueError as error:
            raise BadRequest(
                f"{name}:={self[name]}: {result}: expected what a run came to, as JSON, found it damaged "
                f"({error}); run that training again, or name the bundle's own folder"
            ) from error
        bundle = None
        if isinstance(found, dict):
            bundle = found.get("policy", found.get("best")) if name == "policy" else found.get("reward")
        if not bundle:
            raise BadRequest(
                f"{name}:={self[name]}: {result} names no such bundle; name the bundle's own folder"
            )
        return str(path / "bundles" / bundle)

    def json_text(self, name: str) -> str:
        """Returns a JSON argument as it was given; refuses anything but an object."""
        self.json_object(name)
        return self[name]

    def json_object(self, name: str) -> dict[str, object]:
        """Returns a JSON argument; refuses anything but an object."""
        try:
            found = json.loads(self[name])
        except json.JSONDecodeError as error:
            raise BadRequest(f"{name}:={self[name]}: expected a JSON object: {error}") from error
        if not isinstance(found, dict):
            raise BadRequest(f"{name}:={self[name]}: expected a JSON object")
        return found
