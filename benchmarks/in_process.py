"""The whole loop in one process, without ROS and without files: the yardstick of the other benchmarks.

Worlds are stepped side by side, inference is batched over them, and everything that learns is the code of
`efm_learner`. Ground truth is read for counting only: `Played.truth` never reaches a trainer, unless an
experiment asks for it by name (`end_on_truth`, the authors' notebook protocol).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from efm_core.action_tokens import ActionTokenizer
from efm_core.embodiment import Embodiment
from efm_core.instruction import encode_instruction
from efm_core.policy import sample_actions
from efm_core.reward import SuccessDetector
from efm_core.statistics import wilson_interval
from efm_core.steps_to_go import StepsToGoBins, combine
from efm_learner.backbones import INSTRUCTION, STATE, image_input
from efm_learner.network import EfmNetwork, Network, input_specs
from efm_learner.practice import Rollout
from efm_learner.samples import EpisodeArrays
from efm_sim.expert import ExpertEpisode, ExpertStyle, run_expert_episode
from efm_sim.world import Observation, World


def fitted(embodiment: Embodiment, image_size: int | None, frames: int | None = None) -> Embodiment:
    """Returns the embodiment with square images of another size or so many frames; None changes nothing."""
    changes = {"width": image_size, "height": image_size, "frames": frames}
    wanted = {name: value for name, value in changes.items() if value is not None}
    return replace(embodiment, cameras=tuple(replace(c, **wanted) for c in embodiment.cameras))


def demonstrations(world: World, style: ExpertStyle, seeds: Sequence[int]) -> list[EpisodeArrays]:
    """Records a scripted expert; the mark of an episode is the expert's own claim, as in collection."""
    return [arrays_of(run_expert_episode(world, style, seed), str(seed)) for seed in seeds]


def arrays_of(episode: ExpertEpisode, name: str) -> EpisodeArrays:
    """Turns an expert's episode into training data."""
    length = len(episode.states)
    actions = np.full((length, episode.actions.shape[1]), np.nan, np.float32)
    actions[:-1] = episode.actions
    imitate = np.ones(length, bool)
    imitate[-1] = False
    success = episode.intends_success and episode.succeeded
    return EpisodeArrays(
        name, episode.instruction, dict(episode.images), episode.states, actions, imitate, success, name
    )


@dataclass(frozen=True)
class Judge:
    """A reward network with its detector's settings."""

    network: Network
    threshold: float
    hold: int
    combine: str = "mean"


@dataclass(frozen=True)
class Played:
    """One finished episode of a policy.

    Attributes:
        rollout: For the trainer.
        truth: bool [T + 1], the world's own flag at every observation; for counting.
        seconds: Nothing but the number of decisions times the control period.
    """

    rollout: Rollout
    truth: np.ndarray

    @property
    def detected(self) -> bool:
        """Whether our detector ended it."""
        return self.rollout.detected

    @property
    def true(self) -> bool:
        """Whether the world's flag held at any observation, as `efm evaluate` counts it."""
        return bool(self.truth.any())


class Player:
    """Plays episodes of a policy in several copies of a world, inference batched.

    Args:
        worlds: Copies of one world.
        embodiment: Of the networks.
        judge: Gives d and success; None: episodes end on the truth, and d is zero.
        verifier: A second judge, for the guard.
        max_steps: Greatest length; None: the embodiment's.
        end_on_truth: End episodes by the world's flag instead of the detector.
        instruction: The one instruction to give; None: the world samples.
    """

    def __init__(
        self,
        worlds: Sequence[World],
        embodiment: Embodiment,
        judge: Judge | None,
        verifier: Judge | None = None,
        max_steps: int | None = None,
        end_on_truth: bool = False,
        instruction: str | None = None,
        slack: float = 2.0,
    ) -> None:
        self.worlds, self.embodiment, self.judge, self.verifier = list(worlds), embodiment, judge, verifier
        self.max_steps = max_steps or embodiment.max_steps
        self.end_on_truth, self.instruction, self.slack = end_on_truth, instruction, slack
        self.tokenizer = ActionTokenizer(embodiment.action)
        self.bins = StepsToGoBins(embodiment.steps_to_go.bins, embodiment.steps_to_go.width)
        self.frames = {camera.name: camera.frames for camera in embodiment.cameras}

    def play(
        self,
        policy: EfmNetwork,
        seeds: Callable[[], int | None],
        temperature: float = 1.0,
        rng: np.random.Generator | None = None,
        version: int = 0,
    ) -> list[Played]:
        """Plays until `seeds` gives None for every world; episodes come in the order in which they end."""
        rng = rng or np.random.default_rng(0)
        slots = [_Slot(self, world) for world in self.worlds]
        running = [slot for slot in slots if slot.begin(seeds())]
        done: list[Played] = []
        while running:
            inputs = _stack([slot.inputs(policy) for slot in running])
            with torch.no_grad():
                logits = policy(inputs, ("action_logits",))["action_logits"].numpy()
            tokens, log_probs = sample_actions(logits, temperature, rng)
            d = self._distances(self.judge, running)
            other = self._distances(self.verifier, running)
            still = []
            for index, slot in enumerate(running):
                slot.judge(d[index], other[index])
                if slot.ended:
                    done.append(slot.played(version))
                    if slot.begin(seeds()):
                        still.append(slot)
                    continue
                row = {name: value[index].numpy() for name, value in inputs.items()}
                action = self.tokenizer.decode(tokens[index, 0])
                slot.act(row, tokens[index], float(log_probs[index].sum()), action)
                still.append(slot)
            running = still
        return done

    def _distances(self, judge: Judge | None, slots: Sequence[_Slot]) -> np.ndarray:
        if judge is None:
            return np.zeros(len(slots))
        with torch.no_grad():
            logits = judge.network(_stack([s.inputs(judge.network) for s in slots]), ("steps_to_go_logits",))
        return np.asarray(combine(logits["steps_to_go_logits"].numpy(), judge.combine, self.bins)[0])


class _Slot:
    """One world in the middle of one episode."""

    def __init__(self, player: Player, world: World) -> None:
        self.player, self.world = player, world

    def begin(self, seed: int | None) -> bool:
        if seed is None:
            return False
        self.seed = seed
        player = self.player
        self.observation = self.world.reset(seed, player.instruction)
        self.history = {
            name: [image] * player.frames[name] for name, image in self.observation.images.items()
        }
        self.rows: list[dict[str, np.ndarray]] = []
        self.tokens: list[np.ndarray] = []
        self.log_probs: list[float] = []
        self.d: list[float] = []
        self.other: list[float] = []
        self.truth: list[bool] = []
        judge = player.judge
        self.detector = SuccessDetector(judge.threshold, judge.hold) if judge else None
        self.ended = self.detected = False
        return True

    def inputs(self, network: Network) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for name in input_specs(network):
            if name == STATE:
                found[name] = self.observation.state
            elif name == INSTRUCTION:
                found[name] = np.asarray(encode_instruction(self.world.instruction, network.instruction))
            else:
                camera = next(c for c in self.history if image_input(c) == name)
                found[name] = np.stack(self.history[camera])
        return found

    def judge(self, d: float, other: float) -> None:
        self.d.append(float(d))
        self.other.append(float(other))
        self.truth.append(self.world.truth().success)
        fired = self.detector.update(float(d)) if self.detector else False
        self.detected = self.truth[-1] if self.player.end_on_truth else fired
        self.ended = self.detected or len(self.d) > self.player.max_steps
        if len(self.d) == 1:  # An episode without a decision teaches nothing; it goes on for one step.
            self.ended = False

    def act(
        self, row: dict[str, np.ndarray], tokens: np.ndarray, log_prob: float, action: np.ndarray
    ) -> None:
        self.rows.append(row)
        self.tokens.append(tokens)
        self.log_probs.append(log_prob)
        self.observation: Observation = self.world.step(action)
        for name, image in self.observation.images.items():
            self.history[name] = [*self.history[name][1:], image]

    def played(self, version: int) -> Played:
        verifier = self.player.verifier
        verified: bool | None = None
        if verifier is not None:
            last = float(np.mean(self.other[-verifier.hold :]))
            verified = self.detected and last <= verifier.threshold + self.player.slack
        rollout = Rollout(
            episode_id=str(self.seed),
            version=version,
            inputs={name: np.stack([row[name] for row in self.rows]) for name in self.rows[0]},
            tokens=np.stack(self.tokens),
            log_probs=np.asarray(self.log_probs, np.float32),
            steps_to_go=np.asarray(self.d, np.float32),
            detected=self.detected,
            verified=verified,
        )
        return Played(rollout, np.asarray(self.truth))


def _stack(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def upto(seeds: Sequence[int]) -> Callable[[], int | None]:
    """Returns a function that gives the seeds one by one and then None."""
    iterator = iter(seeds)
    return lambda: next(iterator, None)


def counts(played: Sequence[Played]) -> dict[str, object]:
    """Success by ground truth and by our detector, with 95 % intervals."""
    n = len(played)
    true = sum(p.true for p in played)
    false = sum(p.detected and not p.true for p in played)
    return {
        "episodes": n,
        "true_success": round(true / n, 3),
        "interval": [round(v, 3) for v in wilson_interval(true, n)],
        "detected_success": round(sum(p.detected for p in played) / n, 3),
        "false_success": round(false / n, 3),
        "mean_steps": round(float(np.mean([len(p.rollout) for p in played])), 1),
    }
