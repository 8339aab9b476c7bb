"""Stage 2: REINFORCE on the fall of steps-to-go (arXiv 2509.15155, Algorithm 1).

`PracticeTrainer` turns finished rollouts into gradient steps and nothing else: no ROS, no files, no clock.
What a rollout's reward is was decided by the frozen reward bundle before it came here; the world's ground
truth has no way in. The paper's recipe is the default; what goes beyond it is a switch in `PracticeSettings`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from efm_core.errors import BadRequest
from efm_core.reward import discounted_returns, rewards
from efm_learner.network import ACTION_LOGITS, EfmNetwork

__all__ = ["Cancelled", "IterationReport", "PracticeSettings", "PracticeTrainer", "Rollout"]

# Decisions, spread over an iteration, that the KL divergence is measured and an export is checked on.
SAMPLE_ROWS = 64
# Greatest difference of log-probabilities that enters a ratio: beyond any clip range, and its exp is finite.
LOG_RATIO_LIMIT = 20.0


class Cancelled(Exception):
    """An iteration was given up half-way; the trainer's weights are between two versions."""


@dataclass(frozen=True)
class PracticeSettings:
    """How practice learns. Recorded in every bundle that comes out of it.

    Attributes:
        gamma: Discount per decision. 1 does not work: path length drops out of the return.
        c: Factor of the loss, (1 - gamma) / (steps that a good policy gains per step).
        updates: Gradient steps per iteration, N.
        batch: Decisions per gradient step, B; an iteration starts when N * B decisions are there.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        gradient_norm: Greatest norm of a gradient; 0 means no limit.
        freeze_encoder: Keep the image encoder as Stage 1 left it.
        cap_at_start: Count no d as greater than the first one of its episode. A policy that fails more often
            than the demonstrations did ends most episodes further from the goal than they began; without the
            cap, standing still is then better than trying.
        normalise_advantages: Shift and scale the returns of an iteration to mean 0 and deviation 1.
        epochs: Times that each decision is used. Above 1 the ratio to the acting policy is clipped (`clip`).
        clip: Clip range of that ratio.
        step_kl: Mean KL from the policy at an iteration's beginning, per decision [nats], beyond which the
            rest of its updates is left out; 0: no limit. A learning rate that suits one network ruins
            another within one iteration.
        kl_anchor: Weight of KL(policy || Stage-1 policy), in nats.
        entropy_bonus: Weight of the policy's entropy, in nats.
        max_staleness: Versions that an episode's policy may lie behind the newest one.
        seed: Of the minibatch order.
    """

    gamma: float = 0.9
    c: float = 0.05
    updates: int = 16
    batch: int = 64
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    freeze_encoder: bool = True
    cap_at_start: bool = False
    normalise_advantages: bool = False
    epochs: int = 1
    clip: float = 0.2
    step_kl: float = 0.2
    kl_anchor: float = 0.0
    entropy_bonus: float = 0.0
    max_staleness: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "gamma": 0.0 <= self.gamma <= 1.0,
            "c": 0.0 < self.c < math.inf,
            "updates": self.updates >= 1,
            "batch": self.batch >= 1,
            "learning_rate": 0.0 < self.learning_rate < math.inf,
            "weight_decay": 0.0 <= self.weight_decay < math.inf,
            "gradient_norm": 0.0 <= self.gradient_norm < math.inf,
            "epochs": self.epochs >= 1,
            "clip": 0.0 < self.clip < 1.0,
            "step_kl": 0.0 <= self.step_kl < math.inf,
            "kl_anchor": 0.0 <= self.kl_anchor < math.inf,
            "entropy_bonus": 0.0 <= self.entropy_bonus < math.inf,
            "max_staleness": self.max_staleness >= 0,
        }
        wrong = [f"{name}={getattr(self, name)}" for name, fine in checks.items() if not fine]
        if wrong:
            raise BadRequest(f"practice settings out of range: {', '.join(wrong)}; see PracticeSettings")

    @property
    def decisions(self) -> int:
        """Fresh decisions that one iteration takes, N * B / epochs."""
        return max(self.batch, self.updates * self.batch // self.epochs)


@dataclass(frozen=True)
class Rollout:
    """One finished episode as the learner needs it: T decisions and T + 1 judged observations.

    Attributes:
        episode_id: Where it came from.
        version: Version of the policy that acted.
        inputs: Network input name -> array [T, ...], one row per decision.
        tokens: int64 [T, C, D]; -1 where a chunk's step was not executed.
        log_probs: float32 [T], of the executed tokens under the acting policy at temperature 1.
        steps_to_go: float32 [T + 1], d before every decision and after the last.
        detected: Whether the success detector ended it.
        verified: Whether the verifier agrees that it ended in success; None where there is no verifier.
    """

    episode_id: str
    version: int
    inputs: Mapping[str, np.ndarray]
    tokens: np.ndarray
    log_probs: np.ndarray
    steps_to_go: np.ndarray
    detected: bool
    verified: bool | None = None

    def __post_init__(self) -> None:
        decisions = len(self.tokens)
        if self.learnable == 0:
            raise BadRequest(
                f"episode {self.episode_id}: the policy decided nothing, so there is nothing to learn from"
            )
        lengths = {name: len(array) for name, array in self.inputs.items()}
        lengths["log_probs"] = len(self.log_probs)
        wrong = {name: length for name, length in lengths.items() if length != decisions}
        if wrong:
            raise BadRequest(f"episode {self.episode_id}: {decisions} decisions, but {wrong}")
        if self.steps_to_go.shape != (decisions + 1,) or not np.isfinite(self.steps_to_go).all():
            raise BadRequest(
                f"episode {self.episode_id}: expected {decisions + 1} finite steps-to-go, got shape "
                f"{self.steps_to_go.shape}; label the episode with the run's reward bundle"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def learnable(self) -> int:
        """Decisions with at least one executed token of the policy."""
        return int(_by_policy(self.tokens).sum())

    def returns(self, gamma: float, cap_at_start: bool = False) -> np.ndarray:
        """Monte-Carlo returns of the fall of d, float64 [T]; see `PracticeSettings`."""
        d = self.steps_to_go
        return discounted_returns(rewards(np.minimum(d, d[0]) if cap_at_start else d), gamma)


@dataclass(frozen=True)
class IterationReport:
    """What one iteration saw and did; every number is label-free.

    Attributes:
        iteration: Counted from 1.
        updates: Gradient steps taken so far, all iterations.
        episodes: Rollouts of this iteration.
        decisions: Decisions used, of those that were the policy's.
        mean_return: Mean discounted return.
        mean_steps: Mean decisions per episode.
        detected: Share of episodes that the detector ended.
        verified: Share of episodes that ended in success by detector and verifier; None without a verifier.
        steps_to_go_last: Mean d of the last observations.
        loss: Mean loss of the gradient steps.
        entropy: Mean entropy per action dimension of the policy before the updates [nats].
        kl: Mean KL divergence from the Stage-1 policy after the updates, per decision [nats].
        log_prob_gap: Mean difference of the acting policy's log-probabilities from the learner's before the
            first update, per decision [nats]. It is 0 when all episodes are of the newest version and the
            learner sees what the robot saw; recorded images that lost detail (JPEG) show up here.
    """

    iteration: int
    updates: int
    episodes: int
    decisions: int
    mean_return: float
    mean_steps: float
    detected: float
    verified: float | None
    steps_to_go_last: float
    loss: float
    entropy: float
    kl: float
    log_prob_gap: float


class PracticeTrainer:
    """Takes REINFORCE steps on a policy network.

    Args:
        network: Stage-1 policy; trained in place, on the device where it is. Its `encoder_parameters()` are
            frozen on request.
        settings: See `PracticeSettings`.
    """

    def __init__(self, network: EfmNetwork, settings: PracticeSettings) -> None:
        self.network = network
        self.settings = settings
        self.device = next(network.parameters()).device
        self.anchor = copy.deepcopy(network).eval().requires_grad_(False)
        if settings.freeze_encoder:
            for parameter in network.trunk.encoder_parameters():
                parameter.requires_grad_(False)
        trained = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.iteration = 0
        self.updates = 0
        self.sample: dict[str, torch.Tensor] = {}  # Some inputs of the last iteration.
        # Dropout off: the log-probabilities must be those of the policy that acted.
        self.network.eval()

    def iterate(
        self, rollouts: Sequence[Rollout], cancelled: Callable[[], bool] = lambda: False
    ) -> IterationReport:
        """Takes the updates of one iteration; each decision is used `epochs` times at most.

        Args:
            rollouts: Episodes of the current policy, `settings.decisions` learnable decisions or more; what
                is over is left out at random.
            cancelled: Looked at before every update.

        Raises:
            BadRequest: Less than one batch of decisions, or the loss is not finite any more.
            Cancelled: `cancelled` said so.
        """
        settings = self.settings
        inputs, tokens, old_log_probs, returns = self._table(rollouts)
        spread = torch.linspace(0, len(tokens) - 1, SAMPLE_ROWS).long()
        self.sample = {name: array[spread] for name, array in inputs.items()}
        rng = np.random.default_rng([settings.seed, self.iteration])
        weights = torch.as_tensor(settings.c * returns, dtype=torch.float32)
        if settings.normalise_advantages:
            weights = (weights - weights.mean()) / (weights.std(unbiased=False) + 1e-8)
        with torch.no_grad():
            begun = self._log_probs(self.network, self.sample)
        updates: list[tuple[float, float, float]] = []
        for rows in self._minibatches(len(tokens), rng):
            if cancelled():
                raise Cancelled(f"iteration {self.iteration + 1} was given up after {len(updates)} updates")
            chosen = {name: array[rows] for name, array in inputs.items()}
            updates.append(self._update(chosen, tokens[rows], old_log_probs[rows], weights[rows]))
            if settings.step_kl and self._moved(begun) > settings.step_kl:
                break
        self.iteration += 1
        verdicts = [rollout.verified for rollout in rollouts]
        known = all(verdict is not None for verdict in verdicts)
        losses, entropies, gaps = zip(*updates, strict=True)
        return IterationReport(
            iteration=self.iteration,
            updates=self.updates,
            episodes=len(rollouts),
            decisions=min(len(tokens), len(updates) * settings.batch, settings.decisions),
            mean_return=float(returns.mean()),
            mean_steps=float(np.mean([len(rollout) for rollout in rollouts])),
            detected=float(np.mean([rollout.detected for rollout in rollouts])),
            verified=float(np.mean([bool(verdict) for verdict in verdicts])) if known else None,
            steps_to_go_last=float(np.mean([rollout.steps_to_go[-1] for rollout in rollouts])),
            loss=float(np.mean(losses)),
            entropy=entropies[0],
            kl=self.kl_from_anchor(self.sample),
            log_prob_gap=gaps[0],
        )

    def _minibatches(self, count: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
        """Gives the rows of each update: every decision once in each of the epochs."""
        settings = self.settings
        for _ in range(settings.epochs):
            order = rng.permutation(count)[: settings.decisions]
            for start in range(0, len(order) - settings.batch + 1, settings.batch):
                yield torch.as_tensor(order[start : start + settings.batch])

    def _moved(self, begun: torch.Tensor) -> float:
        """Mean KL(policy || policy when `begun` was made of the sample) per decision, in nats."""
        with torch.no_grad():
            return float(_kl(self._log_probs(self.network, self.sample), begun).mean())

    def kl_from_anchor(self, inputs: Mapping[str, torch.Tensor]) -> float:
        """Mean KL(policy || Stage-1 policy) per decision, in nats."""
        with torch.no_grad():
            now, before = self._log_probs(self.network, inputs), self._log_probs(self.anchor, inputs)
            return float(_kl(now, before).mean())

    def _table(
        self, rollouts: Sequence[Rollout]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, np.ndarray]:
        """Returns the decisions that the policy took: inputs, tokens, their log-probabilities, returns."""
        mine = [_by_policy(rollout.tokens) for rollout in rollouts]
        tokens = _stacked(rollout.tokens[rows] for rollout, rows in zip(rollouts, mine, strict=True))
        if len(tokens) < self.settings.batch:
            raise BadRequest(
                f"expected at least one batch of {self.settings.batch} decisions, got {len(tokens)}"
            )
        inputs = {
            name: _stacked(rollout.inputs[name][rows] for rollout, rows in zip(rollouts, mine, strict=True))
            for name in rollouts[0].inputs
        }
        log_probs = _stacked(rollout.log_probs[rows] for rollout, rows in zip(rollouts, mine, strict=True))
        gamma, cap = self.settings.gamma, self.settings.cap_at_start
        returns = [rollout.returns(gamma, cap)[rows] for rollout, rows in zip(rollouts, mine, strict=True)]
        return inputs, tokens.long(), log_probs.float(), np.concatenate(returns)

    def _log_probs(self, network: EfmNetwork, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities of all bins, [B, C, D, bins]."""
        on_device = {name: value.to(self.device) for name, value in inputs.items()}
        return functional.log_softmax(network(on_device, (ACTION_LOGITS,))[ACTION_LOGITS], dim=-1)

    def _update(
        self,
        inputs: Mapping[str, torch.Tensor],
        tokens: torch.Tensor,
        old_log_probs: torch.Tensor,
        weights: torch.Tensor,
    ) -> tuple[float, float, float]:
        """Takes one gradient step; returns loss, entropy and log-probability gap before it."""
        settings = self.settings
        tokens, old_log_probs, weights = (value.to(self.device) for value in (tokens, old_log_probs, weights))
        table = self._log_probs(self.network, inputs)
        chosen = table.gather(-1, tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        log_prob = (chosen * (tokens >= 0)).sum(dim=(1, 2))
        if settings.epochs == 1:
            loss = -(weights * log_prob).mean()
        else:
            ratio = torch.exp((log_prob - old_log_probs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
            clipped = ratio.clamp(1.0 - settings.clip, 1.0 + settings.clip)
            loss = -torch.minimum(weights * ratio, weights * clipped).mean()
        entropy = -(table.exp() * table).sum(-1).mean()
        if settings.entropy_bonus:
            loss = loss - settings.entropy_bonus * entropy
        if settings.kl_anchor:
            with torch.no_grad():
                before = self._log_probs(self.anchor, inputs)
            loss = loss + settings.kl_anchor * _kl(table, before).mean()
        if not torch.isfinite(loss):
            raise BadRequest(
                f"practice: the loss of update {self.updates + 1} is {float(loss.detach())}; lower the "
                "learning rate, and go on from an earlier bundle in a new run"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if settings.gradient_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), settings.gradient_norm)
        self.optimizer.step()
        self.updates += 1
        gap = (log_prob.detach() - old_log_probs).abs().mean()
        return float(loss.detach()), float(entropy.detach()), float(gap)


def _kl(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """KL(now || before) per decision, summed over chunk and dimensions, [B]."""
    return (now.exp() * (now - before)).sum(dim=(1, 2, 3))


def _by_policy(tokens: np.ndarray) -> np.ndarray:
    """Decisions with a token of the policy, bool [T]."""
    return np.asarray((tokens >= 0).any(axis=(1, 2)))


def _stacked(arrays: Iterable[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(list(arrays)))
