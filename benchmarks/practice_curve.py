"""Practice in one process, evaluated on the way, with the guard's word beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from in_process import Played, Player, upto
from safetensors.torch import load_file, save

from efm_core.files import replace_file, replace_json
from efm_learner.checkpoint import load_optimizer, save_optimizer
from efm_learner.guard import Guard, GuardSettings
from efm_learner.practice import PracticeTrainer

FIRST_SEED = 1_000_000


class Practice:
    """Practice that can be resumed: the policy, its optimiser and the curve so far lie in a folder.

    Args:
        trainer: Of the policy that practises.
        player: Plays; its judge is the reward, its verifier the guard's.
        seed: Of what is sampled.
        evaluate: Plays so many episodes on fixed seeds and counts.
        folder: For what resumes.
    """

    def __init__(
        self,
        trainer: PracticeTrainer,
        player: Player,
        seed: int,
        evaluate: Callable[[int], dict[str, Any]],
        folder: Path,
    ) -> None:
        self.trainer, self.player, self.seed = trainer, player, seed
        self.evaluate, self.folder = evaluate, folder
        assert player.judge is not None
        self.guard = Guard(GuardSettings(), player.judge.hold)
        self.state: dict[str, Any] = {
            "iteration": 0,
            "episodes": 0,
            "steps": 0,
            "history": [],
            "curve": [],
            "stop": None,
        }
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    def run(self, before: Mapping[str, Any], iterations: int, every: int, episodes: int) -> dict[str, Any]:
        """Practises to the end and returns the curve, what every iteration saw, and the guard's word.

        `guarded` is the policy that the guard went back to when it stopped, or would choose at the end.

        Args:
            before: Counts of the policy as it comes, the first point of the curve.
            iterations: In all.
            every: Iterations between two evaluations.
            episodes: Of an evaluation on the way; the last one has twice as many.
        """
        state = self.state
        if not state["curve"]:
            state["curve"].append({"iteration": 0, "practised": 0, **before})
            self._keep_policy()
        while state["iteration"] < iterations:
            self._iterate()
            done = state["iteration"] == iterations
            if done or state["iteration"] % every == 0:
                self._evaluate(episodes * (2 if done else 1))
                self._save()
        guarded = self._guarded(2 * episodes)
        found = {key: state[key] for key in ("episodes", "steps", "curve", "history", "stop")}
        return {**found, "guarded": guarded}

    def _iterate(self) -> None:
        state, trainer = self.state, self.trainer
        first = FIRST_SEED * self.seed + state["episodes"]
        rng = np.random.default_rng([self.seed, state["iteration"]])
        played = self._play(first, rng)
        report = trainer.iterate([p.rollout for p in played])
        state["iteration"] += 1
        self._keep_policy()
        state["episodes"] += len(played)
        state["steps"] += sum(len(p.rollout) for p in played)
        for p in played:
            version = state["iteration"] - 1
            self.guard.record(version, p.detected, p.rollout.verified, len(p.rollout))
        verdict = self.guard.judge(report.kl, report.episodes, report.mean_return)
        if verdict.stop and state["stop"] is None:
            state["stop"] = {
                "iteration": state["iteration"],
                "episodes": state["episodes"],
                "message": verdict.message,
                "best_version": verdict.best_version,
            }
        seen = {
            "episodes": len(played),
            "true": float(np.mean([p.true for p in played])),
            "detected": report.detected,
            "verified": report.verified or 0.0,
            "false": float(np.mean([p.detected and not p.true for p in played])),
            "steps": float(np.mean([len(p.rollout) for p in played])),
            "return": report.mean_return,
            "kl": report.kl,
            "entropy": report.entropy,
            "updates": report.updates,
        }
        state["history"].append({key: round(value, 3) for key, value in seen.items()})

    def _play(self, first: int, rng: np.random.Generator) -> list[Played]:
        """Plays whole episodes until there are enough decisions; no episode is preferred for being short."""
        decisions = 0
        played: list[Played] = []
        while decisions < self.trainer.settings.decisions:
            seeds = upto(range(first + len(played), first + len(played) + len(self.player.worlds)))
            more = self.player.play(self.trainer.network, seeds, 1.0, rng, self.state["iteration"])
            played += more
            decisions += sum(len(p.rollout) for p in more)
        return played

    def _evaluate(self, episodes: int) -> None:
        point = {"iteration": self.state["iteration"], "practised": self.state["episodes"]}
        self.state["curve"].append({**point, **self.evaluate(episodes)})
        last = self.state["history"][-1] if self.state["history"] else {}
        print(self.folder, json.dumps({**last, **self.state["curve"][-1]}), flush=True)

    def _guarded(self, episodes: int) -> dict[str, Any]:
        stop = self.state["stop"]
        version = stop["best_version"] if stop else self.guard.ranking()[0]
        last = {name: value.clone() for name, value in self.trainer.network.state_dict().items()}
        self.trainer.network.load_state_dict(load_file(self._policy_of(version)))
        found = {"version": version, **self.evaluate(episodes)}
        self.trainer.network.load_state_dict(last)
        return found

    def _policy_of(self, version: int) -> Path:
        return self.folder / f"policy-{version}.safetensors"

    def _keep_policy(self) -> None:
        content = save(self.trainer.network.state_dict())
        replace_file(self._policy_of(self.state["iteration"]), content)

    def _save(self) -> None:
        version = self.state["iteration"]
        optimizer = self.folder / f"optimizer-{version}.safetensors"
        optimizer.unlink(missing_ok=True)  # Of a version that was begun but never named in the state.
        save_optimizer(self.trainer.optimizer, optimizer)
        content = {**self.state, "guard": self.guard.state(), "updates": self.trainer.updates}
        replace_json(self.folder / "state.json", content)

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
        self.trainer.network.load_state_dict(load_file(self._policy_of(version)))
        load_optimizer(self.trainer.optimizer, self.folder / f"optimizer-{version}.safetensors")
