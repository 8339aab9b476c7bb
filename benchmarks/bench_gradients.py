"""Which returns point towards true success? The gradient of practice, measured without practising.

    python benchmarks/bench_gradients.py push --seeds 1 2 --episodes 384 --out docs/results/gradients.json

A fine-tuned policy of `bench_self_improvement.py` plays episodes. From each half of them comes one policy
gradient for every way of making returns, and one for true success itself (the world's flag, for comparison
only). Reported are cosines between gradients of DIFFERENT halves, so that what one half has by chance counts
for nothing: with itself (how much is signal) and with that of true success (whether it is the right one). Few
episodes make all of them small: the greatest that can be had with true success is about the root of the
product of both "with itself".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_self_improvement import EXPERIMENTS, POLICY, Study
from in_process import Played, Player, upto

from efm_core.files import replace_json
from efm_learner.network import ACTION_LOGITS, EfmNetwork

FIRST_SEED = 7_000_000
ROWS = 256  # Decisions that are differentiated together.
TRUE = "true success"


def fall_of_d(played: Played, gamma: float, cap_at_start: bool) -> np.ndarray:
    """Returns what practice uses, float64 [T]."""
    return played.rollout.returns(gamma, cap_at_start)


def true_success(played: Played) -> np.ndarray:
    """Returns the world's flag at every decision, float64 [T]."""
    return np.full(len(played.rollout), float(played.true))


RETURNS: Mapping[str, Callable[[Played], np.ndarray]] = {
    "gamma 0.9": partial(fall_of_d, gamma=0.9, cap_at_start=False),
    "gamma 0.98": partial(fall_of_d, gamma=0.98, cap_at_start=False),
    "gamma 0.9, cap_at_start": partial(fall_of_d, gamma=0.9, cap_at_start=True),
    "gamma 0.98, cap_at_start": partial(fall_of_d, gamma=0.98, cap_at_start=True),
    TRUE: true_success,
}


def gradients(policy: EfmNetwork, played: Sequence[Played]) -> dict[str, torch.Tensor]:
    """Returns the policy gradient of each kind of returns, shifted to mean 0; the encoder is left out."""
    for parameter in policy.trunk.encoder_parameters():
        parameter.requires_grad_(False)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    rollouts = [p.rollout for p in played]
    inputs = {
        name: torch.as_tensor(np.concatenate([rollout.inputs[name] for rollout in rollouts]))
        for name in rollouts[0].inputs
    }
    tokens = torch.as_tensor(np.concatenate([rollout.tokens for rollout in rollouts])).long()
    weights = {}
    for kind, returns in RETURNS.items():
        values = np.concatenate([returns(p) for p in played])
        weights[kind] = torch.as_tensor((values - values.mean()) / (values.std() + 1e-8)).float()
    found = {kind: torch.zeros(sum(parameter.numel() for parameter in trained)) for kind in RETURNS}
    for start in range(0, len(tokens), ROWS):
        rows = slice(start, start + ROWS)
        logits = policy({name: array[rows] for name, array in inputs.items()}, (ACTION_LOGITS,))
        table = torch.log_softmax(logits[ACTION_LOGITS], dim=-1)
        chosen = table.gather(-1, tokens[rows].unsqueeze(-1)).sum((1, 2, 3))
        for kind, weight in weights.items():
            parts = torch.autograd.grad(
                (weight[rows] * chosen).sum(), trained, retain_graph=True, allow_unused=True
            )
            found[kind] += torch.cat(
                [
                    (torch.zeros_like(parameter) if part is None else part).flatten()
                    for part, parameter in zip(parts, trained, strict=True)
                ]
            )
    return found


def agreement(halves: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, dict[str, float]]:
    """Returns the cosines of each kind across the halves: with itself, and with true success."""

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.nn.functional.cosine_similarity(a, b, dim=0))

    first, second = halves
    return {
        kind: {
            "with_itself": cosine(first[kind], second[kind]),
            "with_true_success": (cosine(first[kind], second[TRUE]) + cosine(second[kind], first[TRUE])) / 2,
        }
        for kind in RETURNS
    }


def main() -> None:
    """Runs the seeds that have no entry in the output file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="of the fine-tuned policies")
    parser.add_argument("--episodes", type=int, default=384)
    parser.add_argument("--work", type=Path, default=Path("runs/bench"), help="of bench_self_improvement.py")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    experiment = EXPERIMENTS[options.experiment]
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    for seed in options.seeds:
        key = f"{options.experiment}, seed {seed}"
        if key not in results:
            study = Study(seed, experiment, options.work / f"{options.experiment}-{seed}")
            results[key] = measured(study, options.episodes)
            replace_json(options.out, results, indent=1)
            print(key, json.dumps(results[key], indent=1), flush=True)


def measured(study: Study, episodes: int) -> dict[str, Any]:
    """Plays with one policy and compares its gradients."""
    count = study.experiment.demonstrations
    policy = study.learn(POLICY, count, 1).policy
    judge, _ = study.judge(count, 1)
    player = Player(study.worlds(), study.embodiment, judge)
    seeds = upto(range(FIRST_SEED, FIRST_SEED + episodes))
    played = player.play(policy, seeds, 1.0, np.random.default_rng(study.seed))
    played.sort(key=lambda p: int(p.rollout.episode_id))
    returns = np.concatenate([fall_of_d(p, 0.9, False) for p in played])
    return {
        "episodes": len(played),
        "true_success": float(np.mean([p.true for p in played])),
        "mean_return": float(returns.mean()),
        "cosines": agreement([gradients(policy, played[half::2]) for half in range(2)]),
    }


if __name__ == "__main__":
    main()
