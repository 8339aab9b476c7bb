"""Self-improvement: does a policy of middling success get better by itself, and what does the guard save?

    python benchmarks/bench_self_improvement.py table --seeds 1 2 --out docs/results/table.json
    python benchmarks/bench_self_improvement.py push-state --seeds 1 2 3 --out docs/results/push_state.json

Demonstrations of an imperfect expert, supervised fine-tuning of policy, reward and verifier, then practice on
the steps-to-go reward with our own detector and no ground truth; against it, fine-tuning on several times the
demonstrations. Practice goes on past the guard's stop, so that one run shows the curve with the guard (its
stop and the version it chose) and without. The experiment's numbers are recorded in the results.

Everything runs in one process by the code of the stack (`in_process.py`). Finished parts are written at once,
trainings and practice resume in the middle: call it again. Evaluation: fixed seeds, at the policy's own
sampling, ended by our detector; success is the world's flag.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("LP_NUM_THREADS", "1")  # Read by the software renderer when it starts.

import numpy as np
from in_process import Judge, Played, Player, counts, demonstrations, fitted, upto
from safetensors.torch import load_file, save

from efm_core.embodiment import Embodiment, load_embodiment
from efm_learner.batches import Mixture
from efm_learner.calibrate import CalibrationSettings, calibrate
from efm_learner.checkpoint import load_optimizer, save_optimizer
from efm_learner.guard import Guard, GuardSettings
from efm_learner.json_lines import replace_file
from efm_learner.network import EfmNetwork
from efm_learner.practice import PracticeSettings, PracticeTrainer
from efm_learner.samples import EpisodeArrays, Labelling, StepTable, make_table
from efm_learner.sft_config import SftConfig
from efm_learner.training import Trained, train
from efm_sim.expert import ExpertStyle
from efm_sim.world import World, make_world

EVALUATION_SEED = 5_000_000
PRACTICE_SEED = 1_000_000
WORLDS = 16
BLOCK = 100  # Demonstrations in one file.


@dataclass(frozen=True)
class Experiment:
    """How one world is treated.

    Attributes:
        world: Its name.
        options: Of the world.
        expert: Changes to the expert's style "imperfect".
        demonstrations: For the policy that practises; a tenth of them is held out.
        backbone: Of the networks.
        multiples: How many times the demonstrations the comparisons get.
        training: Settings of `SftConfig`.
        steps: Gradient steps of fine-tuning; with m times the data, the square root of m times as many.
        verifier_steps: The same for the verifier, of which only the steps-to-go are used.
        holds: Candidates for the observations that the detector needs at or below its threshold.
        practice: Settings of `PracticeSettings`.
        iterations: Of practice.
        evaluate_every: Iterations between two evaluations.
        evaluated: Episodes of an evaluation on the way; those at the ends have twice as many.
    """

    world: str
    options: Mapping[str, Any]
    expert: Mapping[str, Any]
    demonstrations: int
    training: Mapping[str, Any]
    steps: int
    verifier_steps: int
    backbone: Mapping[str, Any] = field(default_factory=lambda: {"name": "small"})
    multiples: tuple[int, ...] = (2, 4)
    holds: tuple[int, ...] = (1, 2, 3)
    practice: Mapping[str, Any] = field(default_factory=dict)
    iterations: int = 150
    evaluate_every: int = 10
    evaluated: int = 100


TRAINING: Mapping[str, Any] = {
    "heads": 3,
    "learning_rate": 1e-3,
    "precision": "bf16",
    "mixture": Mixture(batch_size=128, shift_pixels=0),
    "validate_every": 250,
    "checkpoint_every": 1000,
    "labelling": Labelling(rest_steps=5),
}
TABLE = Experiment(
    world="table",
    options={"blocks": 4, "image_size": 64},
    expert={"wander": 0, "pause": 0.0, "noise_burst": 0.03, "slip": 0.03, "fail": 0.15},
    demonstrations=3000,
    training=TRAINING,
    steps=7000,
    verifier_steps=3500,
    practice={"normalise_advantages": True, "learning_rate": 5e-5, "updates": 32},
)
PUSH = Experiment(
    world="metaworld:push-v3",
    options={"image_size": 64},
    expert={},
    demonstrations=300,
    training=TRAINING,
    steps=6000,
    verifier_steps=3000,
    practice=TABLE.practice,
)
PUSH_STATE = Experiment(
    world="metaworld:push-v3",
    options={"images": False, "state": "full"},
    expert={"wander": 0, "pause": 0.0, "slip": 0.04, "fail": 0.0},
    demonstrations=100,
    training={**TRAINING, "precision": "no", "policy_weights": "last"},
    steps=6000,
    verifier_steps=3000,
    backbone={"name": "state", "shared_trunk": False},
    multiples=(),
    iterations=200,
    practice={"normalise_advantages": True},
)
EXPERIMENTS: Mapping[str, Experiment] = {
    "table": TABLE,
    "push": PUSH,
    "push-state": PUSH_STATE,
    # Failed attempts, taught as far in steps-to-go only.
    "push-state-robust": replace(PUSH_STATE, expert={**PUSH_STATE.expert, "fail": 0.4}, demonstrations=100),
}


class Study:
    """All parts of one world and seed; files lie in `folder`."""

    def __init__(self, seed: int, experiment: Experiment, folder: Path) -> None:
        self.world, self.seed, self.experiment, self.folder = experiment.world, seed, experiment, folder
        self._worlds: list[World] = []
        self.embodiment = self._embodiment()
        folder.mkdir(parents=True, exist_ok=True)
        self._episodes: list[EpisodeArrays] = []

    def _embodiment(self) -> Embodiment:
        known = load_embodiment(self.world.partition(":")[0])
        spec = self.worlds()[0].spec
        if spec.cameras:
            return fitted(known, int(self.experiment.options["image_size"]))
        assert known.state is not None
        entries = tuple(replace(known.state.entries[0], name=name) for name in spec.state_names)
        return replace(known, cameras=(), state=replace(known.state, entries=entries))

    def worlds(self) -> list[World]:
        """Returns the copies to act in, made once."""
        if not self._worlds:
            self._worlds = [make_world(self.world, **self.experiment.options) for _ in range(WORLDS)]
        return self._worlds

    def tables(self, count: int) -> tuple[StepTable, StepTable]:
        """Returns the first `count` demonstrations, (to train on, held out)."""
        while len(self._episodes) < count:
            self._episodes += self._block(len(self._episodes))
        chosen, apart = self._episodes[:count], count // 10
        labelling = Labelling(**asdict(self.experiment.training["labelling"]))
        return (
            make_table(chosen[apart:], self.embodiment, labelling),
            make_table(chosen[:apart], self.embodiment, labelling),
        )

    def _block(self, start: int) -> list[EpisodeArrays]:
        """Returns the demonstrations from number `start` on, recorded or from the block's file."""
        path = self.folder.with_name(f"{self.folder.name}-demonstrations") / f"{start}.npz"
        if not path.exists():
            style = ExpertStyle.named("imperfect", **self.experiment.expert)
            first = self.seed * 100_000 + start
            found = demonstrations(self.worlds()[0], style, range(first, first + BLOCK))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_suffix(".partial").open("wb") as file:
                np.savez(file, **packed(found))
            path.with_suffix(".partial").rename(path)
            print(f"{self.world}: {start + BLOCK} demonstrations of seed {self.seed}", flush=True)
        return unpacked(dict(np.load(path)))

    def learn(self, name: str, count: int, seed: int, steps: int) -> tuple[Trained, dict[str, Any]]:
        """Fine-tunes on `count` demonstrations; gives the networks and the calibration of the reward."""
        table, held_out = self.tables(count)
        config = SftConfig(
            backbone=self.experiment.backbone, steps=steps, seed=seed, **self.experiment.training
        )
        began = time.monotonic()
        trained = train(config, self.embodiment, table, held_out, self.folder / name)
        settings = CalibrationSettings(holds=self.experiment.holds)
        report = calibrate(trained.reward, held_out, config.combine, settings)
        kept = ("threshold", "hold", "recall", "precision", "expected_false_success")
        found = {key: report["detector"][key] for key in kept}
        found["mean_absolute_error"] = report["mean_absolute_error"]
        best = {choice: value["step"] for choice, value in trained.state.best.items()}
        return trained, {"detector": found, "chosen_steps": best, "seconds": time.monotonic() - began}

    def player(self, judge: Judge, verifier: Judge | None = None) -> Player:
        """Returns a player with these judges."""
        return Player(self.worlds(), self.embodiment, judge, verifier)

    def evaluate(
        self, player: Player, policy: EfmNetwork, episodes: int, greedy: bool = False
    ) -> dict[str, Any]:
        """Plays fixed seeds."""
        seeds = upto(range(EVALUATION_SEED, EVALUATION_SEED + episodes))
        return counts(player.play(policy, seeds, 0.0 if greedy else 1.0, np.random.default_rng(0)))


def packed(episodes: list[EpisodeArrays]) -> dict[str, np.ndarray]:
    """Returns episodes as plain arrays, one after another."""
    arrays = {
        "ids": np.array([e.id for e in episodes]),
        "instructions": np.array([e.instruction for e in episodes]),
        "success": np.array([e.success for e in episodes]),
        "lengths": np.array([len(e) for e in episodes]),
        **{
            key: np.concatenate([getattr(e, key) for e in episodes])
            for key in ("state", "actions", "imitate")
        },
    }
    for camera in episodes[0].images:
        arrays[f"images.{camera}"] = np.concatenate([e.images[camera] for e in episodes])
    return arrays


def unpacked(arrays: Mapping[str, np.ndarray]) -> list[EpisodeArrays]:
    """Returns the episodes of `packed` arrays."""
    ends = np.cumsum(arrays["lengths"])
    cameras = {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith("images.")}
    return [
        EpisodeArrays(
            id=str(arrays["ids"][index]),
            instruction=str(arrays["instructions"][index]),
            images={camera: value[end - length : end] for camera, value in cameras.items()},
            state=arrays["state"][end - length : end],
            actions=arrays["actions"][end - length : end],
            imitate=arrays["imitate"][end - length : end],
            success=bool(arrays["success"][index]),
            digest=str(arrays["ids"][index]),
        )
        for index, (end, length) in enumerate(zip(ends, arrays["lengths"], strict=True))
    ]


def judge_of(trained: Trained, found: Mapping[str, Any]) -> Judge:
    """Returns the reward network as a judge."""
    detector = found["detector"]
    return Judge(trained.reward, detector["threshold"], detector["hold"])


class Practice:
    """Practice that can be resumed: the policy, its optimiser and the curve so far lie in a folder."""

    def __init__(self, study: Study, policy: EfmNetwork, player: Player, folder: Path) -> None:
        self.study, self.policy, self.player, self.folder = study, policy, player, folder
        self.trainer = PracticeTrainer(policy, PracticeSettings(seed=study.seed, **study.experiment.practice))
        judge = player.judge
        assert judge is not None
        self.guard = Guard(GuardSettings(), judge.hold)
        self.state: dict[str, Any] = {"iteration": 0, "episodes": 0, "steps": 0, "curve": [], "stop": None}
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    def run(self) -> dict[str, Any]:
        """Practises to the end and returns the curve and the guard's word."""
        experiment, state = self.study.experiment, self.state
        if not state["curve"]:
            self._evaluate(experiment.evaluated * 2)
        while state["iteration"] < experiment.iterations:
            report = self._iterate()
            done = state["iteration"] == experiment.iterations
            if done or state["iteration"] % experiment.evaluate_every == 0:
                self._evaluate(experiment.evaluated * (2 if done else 1), report)
                self._save()
        return {key: state[key] for key in ("episodes", "steps", "curve", "stop")}

    def _iterate(self) -> dict[str, float]:
        state, trainer = self.state, self.trainer
        first = PRACTICE_SEED * self.study.seed + state["episodes"]
        rng = np.random.default_rng([self.study.seed, state["iteration"]])
        played = self._play(first, rng)
        report = trainer.iterate([p.rollout for p in played])
        state["iteration"] += 1
        state["episodes"] += len(played)
        state["steps"] += sum(len(p.rollout) for p in played)
        for p in played:
            version = state["iteration"] - 1
            self.guard.record(version, p.detected, p.rollout.verified, len(p.rollout))
        verdict = self.guard.judge(report.kl)
        if verdict.stop and state["stop"] is None:
            state["stop"] = {
                "iteration": state["iteration"],
                "episodes": state["episodes"],
                "message": verdict.message,
                "best_version": verdict.best_version,
            }
        return {
            "practice_true": round(float(np.mean([p.true for p in played])), 3),
            "practice_detected": round(report.detected, 3),
            "practice_verified": round(report.verified or 0.0, 3),
            "return": round(report.mean_return, 3),
            "kl": round(report.kl, 3),
            "entropy": round(report.entropy, 3),
        }

    def _play(self, first: int, rng: np.random.Generator) -> list[Played]:
        """Plays whole episodes until there are enough decisions; no episode is preferred for being short."""
        decisions = 0
        played: list[Played] = []
        while decisions < self.trainer.settings.decisions:
            seeds = upto(range(first + len(played), first + len(played) + WORLDS))
            more = self.player.play(self.policy, seeds, 1.0, rng, self.state["iteration"])
            played += more
            decisions += sum(len(p.rollout) for p in more)
        return played

    def _evaluate(self, episodes: int, report: Mapping[str, float] | None = None) -> None:
        found = self.study.evaluate(self.player, self.policy, episodes)
        point = {"iteration": self.state["iteration"], "practised": self.state["episodes"], **found}
        self.state["curve"].append({**point, **(report or {})})
        print(self.study.world, self.study.seed, json.dumps(self.state["curve"][-1]), flush=True)

    def _save(self) -> None:
        version = self.state["iteration"]
        replace_file(self.folder / f"policy-{version}.safetensors", save(self.policy.state_dict()))
        optimizer = self.folder / f"optimizer-{version}.safetensors"
        optimizer.unlink(missing_ok=True)  # Of a version that was begun but never named in the state.
        save_optimizer(self.trainer.optimizer, optimizer)
        content = {**self.state, "guard": self.guard.state(), "updates": self.trainer.updates}
        write(self.folder / "state.json", content)

    def _resume(self) -> None:
        path = self.folder / "state.json"
        if not path.exists():
            return
        content = json.loads(path.read_text())
        self.guard.restore(content.pop("guard"))
        self.trainer.updates = content.pop("updates")
        self.state = content
        version = content["iteration"]
        self.trainer.iteration = version
        self.policy.load_state_dict(load_file(self.folder / f"policy-{version}.safetensors"))
        load_optimizer(self.trainer.optimizer, self.folder / f"optimizer-{version}.safetensors")


def write(path: Path, content: Any) -> None:
    """Writes JSON as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(content, indent=1, default=asdict) + "\n").encode())


def main() -> None:
    """Runs what is missing in the output file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/bench"), help="for what resumes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--change", default="{}", help="JSON of changed fields of the experiment")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    experiment = replace(EXPERIMENTS[options.experiment], **json.loads(options.change))
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    results.setdefault("experiment", json.loads(json.dumps(vars(experiment), default=asdict)))

    def keep(key: str, value: Any) -> None:
        results[key] = value
        write(options.out, results)

    for seed in options.seeds:
        run_seed(Study(seed, experiment, options.work / f"{options.experiment}-{seed}"), results, keep)


def run_seed(study: Study, results: Mapping[str, Any], keep: Any) -> None:
    """Runs the parts of one seed that have no result."""
    experiment, seed = study.experiment, study.seed
    count, steps = experiment.demonstrations, experiment.steps
    names = [f"{seed}/sft", f"{seed}/practice", *(f"{seed}/sft x{m}" for m in experiment.multiples)]
    if all(name in results for name in names):
        return
    trained, found = study.learn("sft", count, seed, steps)
    other, other_found = study.learn("verifier", count, seed + 1000, experiment.verifier_steps)
    judge, verifier = judge_of(trained, found), judge_of(other, other_found)
    player = study.player(judge, verifier)
    if f"{seed}/sft" not in results:
        sampled = study.evaluate(player, trained.policy, 2 * experiment.evaluated)
        greedy = study.evaluate(player, trained.policy, experiment.evaluated, greedy=True)
        keep(f"{seed}/sft", {**found, "demonstrations": count, "sampled": sampled, "greedy": greedy})
        print(f"{seed}/sft", json.dumps(results[f"{seed}/sft"]), flush=True)
    if f"{seed}/practice" not in results:
        began = time.monotonic()
        practice = Practice(study, trained.policy, player, study.folder / "practice")
        found = practice.run()
        greedy = study.evaluate(player, trained.policy, experiment.evaluated, greedy=True)
        keep(f"{seed}/practice", {**found, "greedy": greedy, "seconds": time.monotonic() - began})
    for multiple in experiment.multiples:
        name = f"{seed}/sft x{multiple}"
        if name not in results:
            more = round(steps * multiple**0.5)
            policy, found = study.learn(f"sft-x{multiple}", count * multiple, seed, more)
            # Ended by the same detector, so that only the policy differs.
            sampled = study.evaluate(player, policy.policy, 2 * experiment.evaluated)
            keep(name, {**found, "demonstrations": count * multiple, "sampled": sampled})
            print(name, json.dumps(results[name]), flush=True)


if __name__ == "__main__":
    main()
