"""Self-improvement: does a policy of middling success get better by itself, and what does the guard save?

    python benchmarks/bench_self_improvement.py table --seeds 1 2 --out docs/results/table.json
    python benchmarks/bench_self_improvement.py push --seeds 1 2 --out docs/results/push.json

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
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("LP_NUM_THREADS", "1")  # Read by the software renderer when it starts.

import numpy as np
import torch
from in_process import Judge, Player, counts, fitted, upto
from practice_curve import Practice
from recorded import load, record
from safetensors.torch import load_file, save

from efm_core.embodiment import load_embodiment
from efm_core.files import replace_file, replace_json
from efm_learner.batches import Mixture
from efm_learner.calibrate import CalibrationSettings, calibrate
from efm_learner.network import EfmNetwork, RewardEnsemble, build_network
from efm_learner.practice import PracticeSettings, PracticeTrainer
from efm_learner.samples import Labelling, StepTable, make_table
from efm_learner.sft_config import SftConfig
from efm_learner.training import train
from efm_sim.expert import ExpertStyle
from efm_sim.world import World, make_world

EVALUATION_SEED = 5_000_000
WORLDS = 16
MOST_HELD_OUT = 500  # Demonstrations; judging more takes long and tells no more.
POLICY, SECOND, VERIFIER = "policy", "second", "verifier"
SEED_OF = {POLICY: 0, SECOND: 3000, VERIFIER: 2000}
# Where the seeds of a kind's own demonstrations begin.
OWN_DEMONSTRATIONS = {SECOND: 60_000, VERIFIER: 30_000}


@dataclass(frozen=True)
class Experiment:
    """How one world is treated.

    Attributes:
        world: Its name.
        options: Of the world.
        expert: Changes to the expert's style "imperfect".
        demonstrations: For the policy that practises; a tenth of them is held out.
        backbone: Of the networks.
        frames: Of the camera, that the networks see: the newest and those before it.
        multiples: How many times the demonstrations the comparisons get.
        training: Settings of `SftConfig`.
        second: What is different, as in `changed`, for a second reward, of demonstrations of its own; the
            reward is then the ensemble of it and of the one that the policy's training gives. Empty: there is
            none.
        verifier: What is different for the verifier; with another expert it gets demonstrations of its own.
        steps: Gradient steps of fine-tuning on 1,000 demonstrations; with m times the data, the square root
            of m times as many.
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
    second: Mapping[str, Any] = field(default_factory=dict)
    verifier: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=lambda: {"name": "small"})
    frames: int = 1
    multiples: tuple[int, ...] = (2, 4)
    holds: tuple[int, ...] = (1, 2, 3)
    practice: Mapping[str, Any] = field(default_factory=dict)
    iterations: int = 60
    evaluate_every: int = 10
    evaluated: int = 50


TRAINING: Mapping[str, Any] = {
    "heads": 3,
    "learning_rate": 1e-3,
    "precision": "bf16",
    "mixture": Mixture(batch_size=512, shift_pixels=2),
    "foresight_weight": 1.0,
    "validate_every": 500,
    "checkpoint_every": 1000,
    "labelling": Labelling(rest_steps=5),
}
IMAGES: Mapping[str, Any] = {"name": "small", "dropout": 0.1}
# Episodes may be long: with batches of 64 an iteration would learn from half of 16 of them.
PRACTICE: Mapping[str, Any] = {"learning_rate": 1e-4, "step_kl": 0.1, "batch": 256, "cap_at_start": True}
TABLE = Experiment(
    world="table",
    options={"blocks": 4, "image_size": 64},
    expert={"wander": 0, "pause": 0.0, "noise_burst": 0.03, "slip": 0.03, "fail": 0.15},
    demonstrations=3000,
    training=TRAINING,
    second={"expert": {"fail": 0.4}},
    verifier={"expert": {"fail": 0.4}},
    backbone=IMAGES,
    steps=924,
    practice=PRACTICE,
    iterations=50,
)
PUSH = Experiment(
    world="metaworld:push-v3",
    options={"image_size": 64},
    expert={},
    demonstrations=1000,
    training=TRAINING,
    # They must have seen what practice finds: the hand at the goal without the object.
    second={"expert": {"fail": 0.4}, "steps": 2000},
    verifier={"expert": {"fail": 0.4}, "steps": 2000},
    backbone=IMAGES,
    steps=3000,
    practice=PRACTICE,
    iterations=50,
)
EXPERIMENTS: Mapping[str, Experiment] = {"table": TABLE, "push": PUSH}


@dataclass(frozen=True)
class Learnt:
    """What a fine-tuning gave; `found` is its part of the results."""

    policy: EfmNetwork
    reward: EfmNetwork
    found: Mapping[str, Any]


class Study:
    """All parts of one world and seed; files lie in `folder`, demonstrations beside it."""

    def __init__(self, seed: int, experiment: Experiment, folder: Path, device: str = "cpu") -> None:
        self.world, self.seed, self.experiment, self.folder = experiment.world, seed, experiment, folder
        self.device = device
        self._worlds: list[World] = []
        known = load_embodiment(self.world.partition(":")[0])
        self.embodiment = fitted(known, int(self.experiment.options["image_size"]), self.experiment.frames)

    def worlds(self) -> list[World]:
        """Returns the copies to act in, made once."""
        if not self._worlds:
            self._worlds = [make_world(self.world, **self.experiment.options) for _ in range(WORLDS)]
        return self._worlds

    def treated(self, kind: str) -> Experiment:
        """Returns the experiment as it is for a policy, its rewards or its verifier."""
        own = {SECOND: self.experiment.second, VERIFIER: self.experiment.verifier}
        return changed(self.experiment, own.get(kind, {}))

    def recorded(self, kind: str) -> tuple[Path, int]:
        """Returns the folder of the demonstrations, and their first seed."""
        name, seed = f"{self.folder.name}-demonstrations", self.seed * 100_000
        if self.treated(kind).expert == self.experiment.expert:
            return self.folder.with_name(name), seed
        return self.folder.with_name(f"{name}-of-{kind}"), seed + OWN_DEMONSTRATIONS[kind]

    def record(self, kind: str, count: int, processes: int) -> None:
        """Records what is missing of `count` demonstrations."""
        style = ExpertStyle.named("imperfect", **self.treated(kind).expert)
        make = partial(make_world, self.world, **self.experiment.options)
        folder, seed = self.recorded(kind)
        record(folder, count, seed, make, style, processes)

    def tables(self, kind: str, count: int) -> tuple[StepTable, StepTable]:
        """Returns the first `count` demonstrations, (to train on, held out)."""
        episodes, apart = load(self.recorded(kind)[0], count), min(count // 10, MOST_HELD_OUT)
        labelling = self.experiment.training["labelling"]
        return (
            make_table(episodes[apart:], self.embodiment, labelling),
            make_table(episodes[:apart], self.embodiment, labelling),
        )

    def learn(self, kind: str, count: int, processes: int) -> Learnt:
        """Fine-tunes on `count` demonstrations; gives the networks and the calibration of the reward.

        What a finished fine-tuning gave lies in `<folder>/<kind>-<count>`, and needs no demonstrations.

        Args:
            kind: What it is for: each has its own seed and settings.
            count: Of demonstrations.
            processes: That record what is missing of them.
        """
        folder = self.folder / f"{kind}-{count}"
        if not (folder / "found.json").exists():
            self.record(kind, count, processes)
            self._learn(folder, kind, count)
        found = json.loads((folder / "found.json").read_text())
        networks = [
            build_network(self.embodiment, found["backbone"], self.experiment.training["heads"])
            for _ in range(2)
        ]
        for network, file in zip(networks, ("policy", "reward"), strict=True):
            network.load_state_dict(load_file(folder / f"{file}.safetensors"))
            network.eval()
        return Learnt(*networks, found)

    def _learn(self, folder: Path, kind: str, count: int) -> None:
        experiment = self.treated(kind)
        table, held_out = self.tables(kind, count)
        config = SftConfig(
            backbone=experiment.backbone,
            steps=round(experiment.steps * (count / 1000) ** 0.5),
            seed=self.seed + SEED_OF[kind],
            device=self.device,
            **experiment.training,
        )
        began = time.monotonic()
        trained = train(config, self.embodiment, table, held_out, folder)
        seconds = time.monotonic() - began
        device = "cuda" if self.device == "auto" and torch.cuda.is_available() else "cpu"
        settings = CalibrationSettings(holds=experiment.holds)
        report = calibrate(trained.reward.to(device), held_out, config.combine, settings)
        for network, file in ((trained.policy, "policy"), (trained.reward, "reward")):
            replace_file(folder / f"{file}.safetensors", save(network.cpu().state_dict()))
        found = {
            "demonstrations": count,
            "steps": config.steps,
            **judged(report),
            "chosen": trained.state.best,
            "backbone": trained.policy.backbone_settings,
            "rows_per_second": round(trained.samples_per_second),
            "seconds": round(seconds, 1),
        }
        replace_json(folder / "found.json", found, indent=1)

    def judge(self, count: int, processes: int) -> tuple[Judge, Mapping[str, Any]]:
        """Gives the reward, joined with the second one where there is one, and its calibration."""
        first = self.learn(POLICY, count, processes)
        if not self.experiment.second:
            return judge_of(first), first.found
        second = self.learn(SECOND, count, processes)
        joined = RewardEnsemble([first.reward, second.reward]).eval()
        path = self.folder / f"ensemble-{count}.json"
        if not path.exists():
            settings = CalibrationSettings(holds=self.experiment.holds)
            report = calibrate(joined, self.tables(SECOND, count)[1], "max", settings)
            replace_json(path, {"of": [first.found, second.found], **judged(report)}, indent=1)
        found = json.loads(path.read_text())
        return Judge(joined, found["detector"]["threshold"], found["detector"]["hold"], "max"), found

    def evaluate(
        self, player: Player, policy: EfmNetwork, episodes: int, greedy: bool = False
    ) -> dict[str, Any]:
        """Plays fixed seeds."""
        seeds = upto(range(EVALUATION_SEED, EVALUATION_SEED + episodes))
        return counts(player.play(policy, seeds, 0.0 if greedy else 1.0, np.random.default_rng(0)))


def judged(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns of a calibration what goes into the results."""
    kept = ("threshold", "hold", "recall", "precision", "expected_false_success")
    found = {key: report[key] for key in ("mean_absolute_error", "rank_correlation")}
    return {"detector": {key: report["detector"][key] for key in kept}, **found}


def judge_of(learnt: Learnt) -> Judge:
    """Returns the reward network as a judge."""
    detector = learnt.found["detector"]
    return Judge(learnt.reward, detector["threshold"], detector["hold"])


def main() -> None:
    """Runs what is missing in the output file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/bench"), help="for what resumes")
    parser.add_argument("--out", type=Path, help="results; needed unless --record or --fine-tune")
    parser.add_argument("--change", default="{}", help="JSON of changed fields of the experiment")
    parser.add_argument("--processes", type=int, default=2, help="that record side by side")
    parser.add_argument("--device", choices=("cpu", "auto"), default="cpu", help="of fine-tuning")
    parser.add_argument("--record", type=int, help="record so many demonstrations and stop")
    parser.add_argument("--fine-tune", nargs="+", help="fine-tune these, such as policy-3000, and stop")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # Several experiments run side by side.
    experiment = changed(EXPERIMENTS[options.experiment], json.loads(options.change))
    studies = [
        Study(seed, experiment, options.work / f"{options.experiment}-{seed}", options.device)
        for seed in options.seeds
    ]
    for study in studies:
        if options.record:
            study.record(POLICY, options.record, options.processes)
            for kind in OWN_DEMONSTRATIONS:
                study.record(kind, options.record, options.processes)
        for name in options.fine_tune or ():
            kind, _, count = name.partition("-")
            print(name, json.dumps(study.learn(kind, int(count), options.processes).found), flush=True)
    if options.record or options.fine_tune:
        return
    if options.out is None:
        parser.error("--out: expected a file for the results")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    results.setdefault("experiment", json.loads(json.dumps(vars(experiment), default=asdict)))

    def keep(key: str, value: Any) -> None:
        results[key] = value
        replace_json(options.out, results, indent=1)
        print(key, json.dumps(value)[:500], flush=True)

    for study in studies:
        run_seed(study, results, keep, options.processes)


def changed(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """Returns an experiment with some fields changed; of a field that is a mapping, some entries."""
    values = {
        name: {**getattr(experiment, name), **value} if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    mixture = values.get("training", {}).get("mixture")
    if isinstance(mixture, dict):
        values["training"]["mixture"] = replace(experiment.training["mixture"], **mixture)
    return replace(experiment, **values)


def run_seed(study: Study, results: Mapping[str, Any], keep: Any, processes: int) -> None:
    """Runs the parts of one seed that have no result."""
    experiment, seed, count = study.experiment, study.seed, study.experiment.demonstrations
    names = [f"{seed}/sft", f"{seed}/practice", *(f"{seed}/sft x{m}" for m in experiment.multiples)]
    if all(name in results for name in names):
        return
    learnt, verifier = (study.learn(kind, count, processes) for kind in (POLICY, VERIFIER))
    judge, calibration = study.judge(count, processes)
    player = Player(study.worlds(), study.embodiment, judge, judge_of(verifier))
    if f"{seed}/sft" not in results:
        sampled = study.evaluate(player, learnt.policy, 2 * experiment.evaluated)
        greedy = study.evaluate(player, learnt.policy, experiment.evaluated, greedy=True)
        found = {**learnt.found, "judge": calibration, "sampled": sampled, "greedy": greedy}
        keep(f"{seed}/sft", found)
    if f"{seed}/practice" not in results:
        began = time.monotonic()
        trainer = PracticeTrainer(learnt.policy, PracticeSettings(seed=seed, **experiment.practice))
        evaluate = partial(study.evaluate, player, learnt.policy)
        practice = Practice(trainer, player, seed, evaluate, study.folder / f"practice-{count}")
        found = practice.run(
            results[f"{seed}/sft"]["sampled"],
            experiment.iterations,
            experiment.evaluate_every,
            experiment.evaluated,
        )
        greedy = study.evaluate(player, learnt.policy, experiment.evaluated, greedy=True)
        keep(f"{seed}/practice", {**found, "greedy": greedy, "seconds": time.monotonic() - began})
    for multiple in experiment.multiples:
        if f"{seed}/sft x{multiple}" not in results:
            more = study.learn(POLICY, count * multiple, processes)
            # Ended by the same detector, so that only the policy differs.
            sampled = study.evaluate(player, more.policy, 2 * experiment.evaluated)
            keep(f"{seed}/sft x{multiple}", {**more.found, "sampled": sampled})


if __name__ == "__main__":
    main()
