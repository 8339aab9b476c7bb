"""The authors' point mass: does the learner reach what the notebook reaches, and does gamma matter?

    python benchmarks/bench_pointmass.py --seeds 1 2 3 --out docs/results/pointmass.json

10,000 wandering demonstrations, supervised fine-tuning, then practice by the paper's budget (2,048 updates,
2,048 control steps per iteration, batches of 64, gamma 0.9). First with the world's flag ending episodes, as
in the notebook, then with our calibrated detector in its place and no ground truth anywhere. Seed 1 also
tries other gammas, and the switches of practice one by one. Every finished part is written at once, and a
second call goes on with what is missing. Evaluation: 500 episodes at the policy's own sampling, fixed seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efm_core.action_tokens import ActionTokenizer
from efm_core.embodiment import Embodiment, load_embodiment
from efm_core.files import replace_json
from efm_core.policy import sample_actions
from efm_core.statistics import wilson_interval
from efm_core.steps_to_go import StepsToGoBins, combine
from efm_learner.batches import Mixture
from efm_learner.calibrate import CalibrationSettings, calibrate
from efm_learner.network import EfmNetwork
from efm_learner.practice import PracticeSettings, PracticeTrainer, Rollout
from efm_learner.samples import EpisodeArrays, Labelling, make_table
from efm_learner.sft_config import SftConfig
from efm_learner.training import train
from efm_sim.pointmass import MAX_STEPS, NOTEBOOK_STYLE, PointMassBatch, run_expert_episodes

STATE = "observation.state"
DEMONSTRATIONS = 10_000
EVALUATED = 500
EVALUATION_SEED = 5_000_000
PRACTICE_SEED = 1_000_000
ROBOTS = 64
# The authors' recipe knows no limit of the step.
RECIPE: dict[str, Any] = {"gamma": 0.9, "updates": 32, "batch": 64, "step_kl": 0.0}
# Each changes the recipe in one way; with 2 epochs half as many fresh decisions.
SWITCHES: tuple[dict[str, Any], ...] = (
    {"step_kl": 0.2},
    {"cap_at_start": True, "step_kl": 0.2},
    {"normalise_advantages": True, "step_kl": 0.2},
    {"normalise_advantages": True},
    {"epochs": 2},
    {"kl_anchor": 0.01},
    {"entropy_bonus": 0.01},
    {"learning_rate": 1e-4},
    {"c": 0.2},
)


class Play:
    """Episodes of a policy in many point masses at once."""

    def __init__(
        self, embodiment: Embodiment, reward: EfmNetwork, threshold: float, hold: int, how: str = "mean"
    ) -> None:
        self.tokenizer = ActionTokenizer(embodiment.action)
        self.bins = StepsToGoBins(embodiment.steps_to_go.bins, embodiment.steps_to_go.width)
        self.reward, self.threshold, self.hold, self.how = reward, threshold, hold, how

    def distances(self, states: np.ndarray) -> np.ndarray:
        """Returns d of every state, [N]."""
        with torch.no_grad():
            logits = self.reward({STATE: torch.from_numpy(states)}, ("steps_to_go_logits",))
        return np.asarray(combine(logits["steps_to_go_logits"].numpy(), self.how, self.bins)[0])

    def episodes(
        self,
        policy: EfmNetwork,
        first_seed: int,
        wanted: dict[str, int],
        flag: bool,
        rng: np.random.Generator,
    ) -> list[tuple[Rollout, bool]]:
        """Plays until `wanted` decisions or episodes are there; gives rollouts with the world's verdict."""
        batch = PointMassBatch(ROBOTS)
        seeds = iter(range(first_seed, first_seed + 10_000_000))
        states = batch.reset([next(seeds) for _ in range(ROBOTS)])
        rows: list[list[tuple[Any, ...]]] = [[] for _ in range(ROBOTS)]
        held = np.zeros(ROBOTS, int)
        true = np.zeros(ROBOTS, bool)
        d = self.distances(states)
        done: list[tuple[Rollout, bool]] = []
        steps = 0
        while steps < wanted.get("decisions", 1 << 60) and len(done) < wanted.get("episodes", 1 << 60):
            with torch.no_grad():
                logits = policy({STATE: torch.from_numpy(states)}, ("action_logits",))[
                    "action_logits"
                ].numpy()
            tokens, log_probs = sample_actions(logits, 1.0, rng)
            before, states = states, batch.step(self.tokenizer.decode(tokens[:, 0])).copy()
            after = self.distances(states)
            success = batch.successes()
            true |= success
            held = np.where(after <= self.threshold, held + 1, 0)
            fired = success if flag else held >= self.hold
            for robot in range(ROBOTS):
                rows[robot].append((before[robot], tokens[robot], log_probs[robot].sum(), d[robot]))
            d = after
            ended = np.nonzero(fired | np.array([len(row) >= MAX_STEPS for row in rows]))[0]
            for robot in ended:
                done.append((_rollout(rows[robot], after[robot], bool(fired[robot])), bool(true[robot])))
                steps += len(rows[robot])
                rows[robot], held[robot], true[robot] = [], 0, False
            if len(ended):
                states = batch.reset([next(seeds) for _ in ended], ended.tolist())
                d = self.distances(states)
        return done


def _rollout(rows: list[tuple[Any, ...]], last: float, detected: bool) -> Rollout:
    states, tokens, log_probs, d = (list(column) for column in zip(*rows, strict=True))
    return Rollout(
        "",
        0,
        {STATE: np.stack(states)},
        np.stack(tokens),
        np.array(log_probs, np.float32),
        np.array([*d, last], np.float32),
        detected,
    )


def evaluate(play: Play, policy: EfmNetwork) -> dict[str, Any]:
    """Success by the world's flag, with the flag ending episodes, and by our detector."""
    by_flag = play.episodes(policy, EVALUATION_SEED, {"episodes": EVALUATED}, True, np.random.default_rng(0))
    by_detector = play.episodes(
        policy, EVALUATION_SEED, {"episodes": EVALUATED}, False, np.random.default_rng(0)
    )
    n, true = len(by_flag), sum(verdict for _, verdict in by_flag)
    return {
        "episodes": n,
        "true_success": true / n,
        "interval": wilson_interval(true, n),
        "mean_steps": float(np.mean([len(rollout) for rollout, _ in by_flag])),
        "detector": {
            "episodes": len(by_detector),
            "detected": float(np.mean([rollout.detected for rollout, _ in by_detector])),
            "true": float(np.mean([verdict for _, verdict in by_detector])),
            "false": float(np.mean([rollout.detected and not verdict for rollout, verdict in by_detector])),
            "mean_steps": float(np.mean([len(rollout) for rollout, _ in by_detector])),
        },
    }


def stage_one(embodiment: Embodiment, seed: int, steps: int) -> tuple[EfmNetwork, EfmNetwork, dict[str, Any]]:
    """Trains policy and reward, and calibrates the detector on held-out demonstrations."""
    began = time.monotonic()
    episodes = [
        EpisodeArrays(
            str(index),
            "reach the goal",
            {},
            e.states,
            np.concatenate([e.actions, np.full((1, 2), np.nan, np.float32)]),
            np.append(np.ones(len(e.actions), bool), False),
            e.succeeded,
        )
        for index, e in enumerate(
            run_expert_episodes(NOTEBOOK_STYLE, range(seed * 100_000, seed * 100_000 + DEMONSTRATIONS))
        )
    ]
    labelling = Labelling(rest_steps=5)
    held_out = make_table(episodes[: DEMONSTRATIONS // 20], embodiment, labelling)
    table = make_table(episodes[DEMONSTRATIONS // 20 :], embodiment, labelling)
    config = SftConfig(
        backbone={"name": "state", "shared_trunk": False},
        steps=steps,
        learning_rate=3e-4,
        mixture=Mixture(batch_size=512, shift_pixels=0),
        labelling=labelling,
        validate_every=max(200, steps // 10),
        checkpoint_every=steps,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        trained = train(config, embodiment, table, held_out, Path(folder))
    report = calibrate(trained.reward, held_out, "mean", CalibrationSettings(holds=(1, 2, 3)))
    detector = {key: report["detector"][key] for key in ("threshold", "hold", "recall", "precision")}
    detector["mean_absolute_error"] = report["mean_absolute_error"]
    return trained.policy, trained.reward, {**detector, "seconds": time.monotonic() - began}


def practise(
    play: Play,
    policy: EfmNetwork,
    seed: int,
    flag: bool,
    iterations: int,
    changes: Mapping[str, Any],
) -> tuple[EfmNetwork, list[dict[str, float]]]:
    """Practises by the notebook's budget and gives the policy with its curve."""
    settings = PracticeSettings(**{**RECIPE, "seed": seed, **changes})
    trainer = PracticeTrainer(policy, settings)
    rng = np.random.default_rng(seed)
    curve = []
    for iteration in range(iterations):
        first = PRACTICE_SEED * seed + iteration * 100_000
        played = play.episodes(policy, first, {"decisions": trainer.settings.decisions}, flag, rng)
        report = trainer.iterate([rollout for rollout, _ in played])
        curve.append(
            {
                "steps": report.mean_steps,
                "detected": report.detected,
                "true": float(np.mean([verdict for _, verdict in played])),
                "return": report.mean_return,
                "kl": report.kl,
            }
        )
    return policy, curve


def key_of(seed: int, ending: str, changes: Mapping[str, Any]) -> str:
    """Returns the name of a part in the results."""
    return f"{seed}/{ending}/" + ",".join(f"{name}={value}" for name, value in changes.items())


def main() -> None:
    """Runs what is missing in the output file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--sft-steps", type=int, default=16_384)
    parser.add_argument("--iterations", type=int, default=64, help="of 32 updates; 64 is the paper's budget")
    parser.add_argument("--out", type=Path, default=Path("docs/results/pointmass.json"))
    options = parser.parse_args()
    embodiment = load_embodiment("pointmass")
    torch.set_num_threads(1)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def keep(key: str, value: dict[str, Any]) -> None:
        results[key] = value
        replace_json(options.out, results, indent=1)
        shown = {name: v for name, v in value.items() if name != "curve"}
        print(key, json.dumps(shown), flush=True)

    for seed in options.seeds:
        wanted: list[tuple[str, dict[str, Any]]] = [("flag", {"gamma": 0.9}), ("detector", {"gamma": 0.9})]
        if seed == 1:
            wanted += [("flag", {"gamma": 0.0}), ("flag", {"gamma": 1.0})]
            wanted += [("flag", {"gamma": 0.0, "step_kl": 0.2})]
            wanted += [("detector", changes) for changes in SWITCHES]
        missing = [(e, changes) for e, changes in wanted if key_of(seed, e, changes) not in results]
        if not missing:
            continue
        policy, reward, detector = stage_one(embodiment, seed, options.sft_steps)
        start = {name: value.clone() for name, value in policy.state_dict().items()}
        play = Play(embodiment, reward, detector["threshold"] or 0.0, detector["hold"])
        keep(f"{seed}/sft", {**evaluate(play, policy), "calibration": detector})
        for ending, changes in missing:
            policy.load_state_dict(start)
            policy.requires_grad_(True)
            began = time.monotonic()
            trained, curve = practise(play, policy, seed, ending == "flag", options.iterations, changes)
            found = {**evaluate(play, trained), "seconds": time.monotonic() - began, "curve": curve}
            keep(key_of(seed, ending, changes), found)


if __name__ == "__main__":
    main()
