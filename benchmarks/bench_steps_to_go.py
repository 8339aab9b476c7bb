"""What each switch of steps-to-go is worth: is the detector right about states that nobody demonstrated?

    python benchmarks/bench_steps_to_go.py --seeds 1 2 3 --out docs/results/steps_to_go.json

Point mass, state only. One fixed set of demonstrations per seed (sloppy experts, a quarter of the episodes
failed), one policy per seed, and for each variant of the labels and of the network a reward of its own, whose
detector is calibrated on held-out demonstrations. Each detector then ends fresh episodes

- of the same cloned policy, and
- of that policy after it has practised on this very reward, which seeks the places where it is wrong.

Ground truth is read for counting only. Precision: of the detected episodes, how many had reached the goal.
Recall: of those that reached it, how many were detected. Every finished part is written at once, and a second
call goes on with what is missing.

Left out: rewound histories need a camera and mismatched instructions need two tasks; this world has neither.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_pointmass import EVALUATION_SEED, PRACTICE_SEED, Play

from efm_core.embodiment import Embodiment, load_embodiment
from efm_core.files import replace_json
from efm_core.statistics import wilson_interval
from efm_learner.batches import Mixture
from efm_learner.calibrate import CalibrationSettings, calibrate
from efm_learner.network import EfmNetwork
from efm_learner.practice import PracticeSettings, PracticeTrainer
from efm_learner.samples import EpisodeArrays, Labelling, make_table
from efm_learner.sft_config import SftConfig
from efm_learner.training import train
from efm_sim.expert import ExpertStyle
from efm_sim.pointmass import run_expert_episodes

REST = 5
GOALS = {"goal_x": "x", "goal_y": "y"}


@dataclass(frozen=True)
class Variant:
    """Switches against the paper's plain head."""

    rest_steps: int = 0
    censored: float = 0.0
    hindsight: float = 0.0
    heads: int = 1
    combine: str = "mean"
    backbone: dict[str, Any] = field(default_factory=lambda: {"name": "state", "shared_trunk": False})


PLAIN = Variant()
RESTED = Variant(rest_steps=REST)
CENSORED = replace(RESTED, censored=0.25)
VARIANTS = {
    "plain head": PLAIN,
    "+ rest": RESTED,
    "+ rest, censored": CENSORED,
    "+ rest, ensemble of 3 (mean)": replace(RESTED, heads=3),
    "+ rest, ensemble of 3 (max)": replace(RESTED, heads=3, combine="max"),
    "+ rest, hindsight": replace(RESTED, hindsight=0.25),
    "+ rest, censored, ensemble (max)": replace(CENSORED, heads=3, combine="max"),
    "all": replace(CENSORED, heads=3, combine="max", hindsight=0.25),
}


def demonstrations(count: int, seed: int) -> list[EpisodeArrays]:
    """Records sloppy experts; the marks are their own claims."""
    style = ExpertStyle.named("sloppy", rest_steps=(REST, REST + 3))
    found = []
    for number, e in enumerate(run_expert_episodes(style, range(seed * 100_000, seed * 100_000 + count))):
        actions = np.concatenate([e.actions, np.full((1, 2), np.nan, np.float32)])
        imitate = np.append(np.ones(len(e.actions), bool), False)
        success = e.intends_success and e.succeeded
        found.append(EpisodeArrays(str(number), e.instruction, {}, e.states, actions, imitate, success))
    return found


def fit(
    variant: Variant, embodiment: Embodiment, episodes: list[EpisodeArrays], seed: int, steps: int
) -> tuple[EfmNetwork, EfmNetwork, dict[str, Any]]:
    """Trains one variant; returns policy, reward and the calibration's report."""
    labelling = Labelling(rest_steps=variant.rest_steps, hindsight_goals=GOALS if variant.hindsight else {})
    cut = len(episodes) // 5
    held_out, table = (make_table(part, embodiment, labelling) for part in (episodes[:cut], episodes[cut:]))
    config = SftConfig(
        backbone=variant.backbone,
        heads=variant.heads,
        combine=variant.combine,
        steps=steps,
        mixture=Mixture(
            batch_size=256, censored=variant.censored, hindsight=variant.hindsight, shift_pixels=0
        ),
        labelling=labelling,
        validate_every=max(100, steps // 10),
        checkpoint_every=steps,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        trained = train(config, embodiment, table, held_out, Path(folder))
    settings = CalibrationSettings(holds=(1, 2, 3))
    return trained.policy, trained.reward, calibrate(trained.reward, held_out, variant.combine, settings)


def judged(play: Play, policy: EfmNetwork, episodes: int) -> dict[str, Any]:
    """Plays fresh episodes that the detector ends, and counts by ground truth how often it was right."""
    rng = np.random.default_rng(0)
    verdicts = [
        (rollout.detected, true)
        for rollout, true in play.episodes(policy, EVALUATION_SEED, {"episodes": episodes}, False, rng)
    ]
    both = sum(detected and true for detected, true in verdicts)
    detected, true = (sum(column) for column in zip(*verdicts, strict=True))
    return {
        "episodes": len(verdicts),
        "true_success": true / len(verdicts),
        "detected_success": detected / len(verdicts),
        "false_success": (detected - both) / len(verdicts),
        "precision": both / detected if detected else None,
        "precision_interval": wilson_interval(both, detected),
        "recall": both / true if true else None,
    }


def practised(play: Play, policy: EfmNetwork, seed: int, iterations: int) -> EfmNetwork:
    """Practises a policy on the reward of `play`."""
    trainer = PracticeTrainer(policy, PracticeSettings(seed=seed))
    rng = np.random.default_rng(seed)
    wanted = {"decisions": trainer.settings.decisions}
    for iteration in range(iterations):
        first = PRACTICE_SEED * seed + iteration * 100_000
        rollouts = [rollout for rollout, _ in play.episodes(policy, first, wanted, False, rng)]
        trainer.iterate(rollouts)
    return policy.requires_grad_(True)


def measure(
    name: str, embodiment: Embodiment, policy: EfmNetwork, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Returns all figures of one variant with one seed."""
    began, variant = time.monotonic(), VARIANTS[name]
    episodes = demonstrations(options.demonstrations, seed)
    _, reward, report = fit(variant, embodiment, episodes, seed, options.steps)
    detector = report["detector"]
    play = Play(embodiment, reward, detector["threshold"], int(detector["hold"]), variant.combine)
    before = judged(play, policy, options.episodes)
    after = judged(play, practised(play, policy, seed, options.iterations), options.episodes)
    return {
        "held_out": {
            **{key: detector[key] for key in ("threshold", "hold", "recall", "precision", "limits_kept")},
            "expected_false_success": detector["expected_false_success"],
            "mean_absolute_error": report["mean_absolute_error"],
            "rank_correlation": report["rank_correlation"],
        },
        "cloned": before,
        "practised": after,
        "seconds": time.monotonic() - began,
    }


def table(results: dict[str, Any]) -> str:
    """Returns means over the seeds as Markdown."""
    lines = [
        "| variant | seeds | cloned policy: precision / recall | after practice: precision / recall | "
        "after practice: true / detected / false | held-out error [steps] |",
        "|---|---|---|---|---|---|",
    ]
    for name in VARIANTS:
        found = [value for key, value in results.items() if key.partition("/")[2] == name]
        if not found:
            continue

        def mean(part: str, key: str, found: list[dict[str, Any]] = found) -> str:
            values = [item[part][key] for item in found if item[part][key] is not None]
            return f"{np.mean(values):.2f}" if values else "-"

        rates = " / ".join(
            mean("practised", key) for key in ("true_success", "detected_success", "false_success")
        )
        cells = [" / ".join(mean(part, key) for key in ("precision", "recall")) for part in PARTS]
        error = mean("held_out", "mean_absolute_error")
        lines.append(f"| {name} | {len(found)} | {cells[0]} | {cells[1]} | {rates} | {error} |")
    return "\n".join(lines)


PARTS = ("cloned", "practised")


def main() -> None:
    """Runs what is missing in the output file, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--demonstrations", type=int, default=300)
    parser.add_argument("--steps", type=int, default=2000, help="gradient steps of each training")
    parser.add_argument("--iterations", type=int, default=30, help="of practice, 16 updates each")
    parser.add_argument("--episodes", type=int, default=300, help="judged, each time")
    parser.add_argument("--out", type=Path, default=Path("docs/results/steps_to_go.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    embodiment = load_embodiment("pointmass")
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        missing = [name for name in VARIANTS if f"{seed}/{name}" not in results]
        if not missing:
            continue
        episodes = demonstrations(options.demonstrations, seed)
        policy, _, _ = fit(CENSORED, embodiment, episodes, seed, options.steps)
        start = {name: value.clone() for name, value in policy.state_dict().items()}
        for name in missing:
            policy.load_state_dict(start)
            results[f"{seed}/{name}"] = measure(name, embodiment, policy, seed, options)
            replace_json(options.out, results, indent=1)
            print(seed, name, json.dumps(results[f"{seed}/{name}"]), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
