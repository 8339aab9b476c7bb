"""`efm demo`: from nothing to a policy that practised, through real topics, with a report.

    collect -> supervised fine-tuning -> evaluate -> practise -> evaluate -> report

Every stage leaves its result in the run's folder and is skipped when that is there, so that an interrupted
demo goes on where it was. Success is counted by the world's ground truth, on the same fixed seeds before and
after; nothing that trains ever sees it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from efm_bringup.config import config_file
from efm_bringup.practice_command import practise
from efm_bringup.processes import ProcessGroup
from efm_bringup.recipes import Recipe, recipe_of
from efm_bringup.report import write_report
from efm_bringup.stacks import STACKS, nodes_of, read_arguments
from efm_core.errors import BadRequest, EfmError, WaitTimeout
from efm_core.files import replace_json
from efm_core.summary import Mode
from efm_episode_node.evaluate_command import FIRST_SEED, evaluate
from efm_episode_node.fleet_client import Wish

DEMONSTRATION_SEED = 1_000
DEMONSTRATIONS, OTHERS = "demonstrations", "others"  # folders
REPORTED = (
    "episodes",
    "true_success",
    "interval",
    "detected_success",
    "false_success",
    "missed_success",
    "mean_steps",
)
# Practice must leave room for the second evaluation and the report.
LAST_STAGES_S = 75.0
LEAST_PRACTICE_S = 60.0


def main(argv: Sequence[str]) -> int:
    """Runs the demo; returns 0 when the report was written."""
    parser = argparse.ArgumentParser(prog="efm demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--world", default="pointmass", help="world to act in (pointmass)")
    parser.add_argument("--robots", type=int, default=2, help="simulated robots that practise together (2)")
    parser.add_argument("--minutes", type=float, default=15.0, help="time for the whole demo (15)")
    parser.add_argument("--seed", type=int, default=1, help="of demonstrations and training (1)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the run (runs/demo)")
    options = parser.parse_args(argv)
    if options.robots < 1 or options.minutes <= 0 or options.seed < 1:
        parser.error("--robots and --seed: expected 1 or more; --minutes: more than 0")
    isolate()
    demo = Demo(options.out, options.world, options.robots, options.minutes * 60.0, options.seed)
    demo.run()
    return 0


def isolate() -> None:
    """Keeps the demo's traffic on this machine and out of other graphs, unless the user chose otherwise."""
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    if os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST":
        profile = str(config_file("fastdds_localhost.xml"))
        os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", profile)


class Demo:
    """One run of the demo; see the module's description.

    Args:
        out: Folder of the run.
        world: To act in.
        robots: Simulated robots.
        seconds: For everything together; practice gets what is left of it.
        seed: Of demonstrations and training.
        recipe: How the world is treated; None: as `recipes.py` says.
    """

    def __init__(
        self, out: Path, world: str, robots: int, seconds: float, seed: int, recipe: Recipe | None = None
    ) -> None:
        self.out, self.world, self.robots, self.seconds, self.seed = (
            out.absolute(),
            world,
            robots,
            seconds,
            seed,
        )
        self.recipe = recipe or recipe_of(world)
        self.stages = self.out / "stages"
        self._began = time.monotonic()
        self._settle()

    def run(self) -> None:
        """Runs every stage that has no result yet."""
        self._stage("collect", self._collect)
        self._stage("sft", self._train)
        self._stage("before", lambda: self._evaluate(self._bundle("policy")))
        self._stage("practice", self._practise)
        after = self.out / "practice" / "bundles" / self._read("practice")["best"]
        self._stage("after", lambda: self._evaluate(after))
        report = self._report()
        write_report(self.out)
        for name in ("before", "after"):
            row = report[name]
            low, high = row["interval"]
            print(
                f"{name:>6}: true success {row['true_success']:.2f} [{low:.2f}, {high:.2f}] "
                f"of {row['episodes']} episodes, detected {row['detected_success']:.2f}, "
                f"false {row['false_success']:.2f}, {row['mean_steps']:.0f} steps"
            )
        print(f"report: {self.out / 'report.html'}")

    # Stages

    def _collect(self) -> dict[str, Any]:
        """Records demonstrations, and as many of a worse expert for the verifier."""
        first, count = DEMONSTRATION_SEED * self.seed, self.recipe.demonstrations
        self._record(DEMONSTRATIONS, self.recipe.expert, first)
        self._record(OTHERS, {**self.recipe.expert, **self.recipe.others}, first + count)
        return {"demonstrations": count}

    def _record(self, folder: str, expert: Mapping[str, object], seed: int) -> None:
        robots = ",".join(read_arguments(STACKS["simulation"], self._world_arguments()).robots)
        arguments = {
            **self._world_arguments(),
            "expert_changes": json.dumps(dict(expert)),
            "spool": str(self.out / folder),
        }
        with ProcessGroup(nodes_of("collect", arguments), self.out / "logs" / folder):
            self._command(
                "collect",
                *("--robots", robots, "--episodes", self.recipe.demonstrations),
                *("--seed", seed),
            )

    def _train(self) -> dict[str, Any]:
        """Trains policy and reward, and beside them the verifier, of the other demonstrations."""
        commands = [
            self._sft_command("sft", DEMONSTRATIONS, self.seed),
            self._sft_command("verifier", OTHERS, self.seed + 1000),
        ]
        quiet = self.out / "logs" / "verifier.log"
        quiet.parent.mkdir(parents=True, exist_ok=True)
        with quiet.open("wb") as log:
            other = subprocess.Popen(
                commands[1], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
            try:
                self._check(commands[0], subprocess.run(commands[0], stdin=subprocess.DEVNULL).returncode)
                self._check(commands[1], other.wait())
            finally:
                if other.poll() is None:
                    other.terminate()
                    other.wait(30)
        results = {
            name: json.loads((self.out / name / "result.json").read_text()) for name in ("sft", "verifier")
        }
        bundles = {
            "policy": f"sft/bundles/{results['sft']['policy']}",
            "reward": f"sft/bundles/{results['sft']['reward']}",
            "verifier": f"verifier/bundles/{results['verifier']['reward']}",
        }
        return {"bundles": bundles, "detector": results["sft"]["calibration"].get("detector", {})}

    def _evaluate(self, policy: Path) -> dict[str, Any]:
        arguments = {
            **self._world_arguments(),
            "policy": str(policy),
            "reward": str(self._bundle("reward")),
            "spool": str(self.out / "evaluations"),
        }
        values = read_arguments(STACKS["evaluate"], arguments)
        found: dict[str, Any] = {"policy": policy.name}
        with ProcessGroup(nodes_of("evaluate", arguments), self.out / "logs" / "evaluate"):
            for name, episodes, temperature in (
                ("sampled", self.recipe.evaluation, 0.0),
                ("greedy", self.recipe.greedy, -1.0),
            ):
                wish = Wish(
                    mode=int(Mode.EVALUATE),
                    episodes=episodes,
                    seed=FIRST_SEED,
                    actor="policy",
                    temperature=temperature,
                )
                folder = self.out / "evaluations" / f"{policy.name}-{name}"
                report = evaluate(values.robots, wish, folder)
                if report["episodes"] < episodes:
                    raise WaitTimeout(
                        f"evaluation: {report['episodes']} of {episodes} episodes: "
                        f"{'; '.join(report['errors'])}"
                    )
                found[name] = {key: report[key] for key in REPORTED}
        return found

    def _practise(self) -> dict[str, Any]:
        left = self.seconds - (time.monotonic() - self._began) - LAST_STAGES_S
        arguments = {
            **self._world_arguments(),
            **{name: str(self._bundle(name)) for name in ("policy", "reward", "verifier")},
            "run": str(self.out / "practice"),
            "spool": str(self.out / "practice" / "spool"),
            "bundles": str(self.out / "practice" / "fetched"),
            "learning": json.dumps({"seed": self.seed, **self.recipe.learning}),
        }
        return practise(arguments, max(LEAST_PRACTICE_S, left))

    def _report(self) -> dict[str, Any]:
        stages = {name: self._read(name) for name in ("collect", "sft", "before", "practice", "after")}
        report = {
            "world": self.world,
            "robots": self.robots,
            "seed": self.seed,
            "before": stages["before"]["sampled"],
            "after": stages["after"]["sampled"],
            "before_greedy": stages["before"]["greedy"],
            "after_greedy": stages["after"]["greedy"],
            "demonstrations": stages["collect"]["demonstrations"],
            "detector": {
                k: stages["sft"]["detector"].get(k) for k in ("threshold", "hold", "recall", "precision")
            },
            "practice": {k: v for k, v in stages["practice"].items() if k not in ("best_path", "seconds")},
            "seconds": {name: stage["seconds"] for name, stage in stages.items()},
        }
        replace_json(self.out / "report.json", report)
        return report

    # Helpers

    def _settle(self) -> None:
        """Begins anew, goes on with a run of the same settings, or refuses to mix two."""
        settings = {"world": self.world, "robots": self.robots, "seed": self.seed}
        path = self.out / "settings.json"
        if (self.out / "report.json").exists():
            older = self.out.with_name(f"{self.out.name}-{time.strftime('%Y%m%d-%H%M%S')}")
            self.out.rename(older)
            print(f"the finished run before this one is kept in {older}")
        elif path.exists() and json.loads(path.read_text()) != settings:
            raise BadRequest(
                f"{self.out} holds an unfinished run with other settings ({path.read_text().strip()}); "
                "go on with those, or remove the folder"
            )
        self.stages.mkdir(parents=True, exist_ok=True)
        replace_json(path, settings)

    def _stage(self, name: str, work: Callable[[], Mapping[str, Any]]) -> None:
        if (self.stages / f"{name}.json").exists():
            print(f"== {name}: done before", flush=True)
            return
        print(f"== {name}", flush=True)
        began = time.monotonic()
        found = dict(work())
        replace_json(self.stages / f"{name}.json", {**found, "seconds": round(time.monotonic() - began, 1)})

    def _read(self, name: str) -> dict[str, Any]:
        return json.loads((self.stages / f"{name}.json").read_text())

    def _bundle(self, name: str) -> Path:
        return self.out / self._read("sft")["bundles"][name]

    def _world_arguments(self) -> dict[str, str]:
        return {
            "world": self.world,
            "robots": str(self.robots),
            "world_options": json.dumps(dict(self.recipe.world_options)),
        }

    def _sft_command(self, folder: str, episodes: str, seed: int) -> list[str]:
        command = [sys.executable, "-m", "efm_bringup.efm", "sft", "--out", str(self.out / folder)]
        command += [
            "--episodes",
            str(self.out / episodes),
            "--embodiment",
            self.world.partition(":")[0],
        ]
        settings = {"seed": seed, **self.recipe.training}
        for name, value in settings.items():
            command += ["--set", f"{name}={json.dumps(value)}"]
        return command

    def _command(self, *words: object) -> None:
        command = [sys.executable, "-m", "efm_bringup.efm", *map(str, words)]
        self._check(command, subprocess.run(command, stdin=subprocess.DEVNULL).returncode)

    def _check(self, command: Sequence[str], code: int) -> None:
        if code:
            raise BadRequest(f"the demo cannot go on: code {code} of {shlex.join(command)}")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EfmError as error:
        sys.exit(f"efm demo: {error}")
