"""A recorded practice episode -> what REINFORCE needs of it, or the reason why it cannot be learned from.

The world's ground truth has no way in: reading an episode leaves it out (`efm_core.episode`), and an episode
that holds it, or that was ended by it, is refused here, since practice never records it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from efm_core.bundle import embodiment_differences
from efm_core.embodiment import Embodiment
from efm_core.episode import TRUTH_TOPIC, Actor, EndReason, Episode, Mode, Outcome
from efm_core.errors import EmbodimentMismatch, EpisodeInvalid
from efm_learner.dataset import episode_arrays
from efm_learner.labelling import Judge
from efm_learner.network import EfmNetwork, input_specs
from efm_learner.practice import Rollout
from efm_learner.samples import IntArray, Labelling, make_table

__all__ = ["check_practised", "rollout_of"]

SECOND_NS = 1_000_000_000


def check_practised(episode: Episode, embodiment: Embodiment, reward_id: str) -> None:
    """Does nothing where an episode may be learned from.

    Args:
        episode: Offered.
        embodiment: Of the run.
        reward_id: The run's frozen reward bundle.

    Raises:
        EmbodimentMismatch: It was recorded on another robot; says what differs.
        EpisodeInvalid: It is not of practice, is worth nothing, holds ground truth, or was ended by another
            detector than the run's.
    """
    summary = episode.summary
    if episode.embodiment.digest != embodiment.digest:
        differences = embodiment_differences(episode.embodiment, embodiment)
        raise EmbodimentMismatch(
            f"episode {episode.id}: recorded on '{episode.embodiment.name}', this run is for "
            f"'{embodiment.name}': {'; '.join(differences)}"
        )
    faults = []
    if summary.mode is not Mode.PRACTICE:
        faults.append(f"expected mode PRACTICE, found {summary.mode.name}")
    if summary.outcome is Outcome.DISCARDED or summary.end_reason is EndReason.FAULT:
        faults.append(
            f"expected a whole episode, found {summary.outcome.name} after {summary.end_reason.name}"
        )
    if summary.end_reason is EndReason.TRUTH or any(name.endswith(TRUTH_TOPIC) for name in episode.topics):
        faults.append("holds or was ended by the world's ground truth, from which nobody may learn")
    detected = summary.end_reason is EndReason.SUCCESS_DETECTED
    if detected and summary.reward_bundle_id not in ("", reward_id):
        faults.append(
            f"success was detected by reward bundle {summary.reward_bundle_id}, the run's is {reward_id}; "
            "start the reward node with that one"
        )
    if faults:
        raise EpisodeInvalid(f"episode {episode.id}: {'; '.join(faults)}")


def rollout_of(episode: Episode, network: EfmNetwork, judge: Judge, version: int) -> Rollout:
    """Makes a rollout; frames that the reward node did not label live are labelled by the judge.

    A decision is one inference of the policy: with chunks, the steps up to the next inference belong to it,
    and its inputs are those of the observation that it was inferred from. Steps that a person or the hold
    decided stay in the returns as decisions without tokens, from which no gradient follows.

    Args:
        episode: Of mode PRACTICE.
        network: Decides which inputs are kept.
        judge: The run's frozen reward bundle.
        version: Of the policy that acted.

    Raises:
        EpisodeInvalid: The policy decided nothing in it, or only greedily, without trying anything.
    """
    origin = _origins(episode)
    by_policy = origin >= 0
    if not by_policy.any():
        raise EpisodeInvalid(
            f"episode {episode.id}: the policy decided no step of it; nothing to practise on"
        )
    if (episode.temperatures[:-1][by_policy] == 0).all():
        raise EpisodeInvalid(
            f"episode {episode.id}: acted greedily, which tries nothing new; practise at temperature 1"
        )
    begins = np.ones(len(origin), bool)
    begins[1:] = ~by_policy[1:] | (origin[1:] != origin[:-1])
    first = np.flatnonzero(begins)
    decision = np.cumsum(begins) - 1
    chunk, size = episode.embodiment.action.chunk, episode.embodiment.action_size
    tokens = np.full((len(first), chunk, size), -1, np.int64)
    log_probs = np.zeros(len(first), np.float32)
    rows = np.flatnonzero(by_policy)
    tokens[decision[rows], episode.chunk_index[rows]] = episode.tokens[rows]
    np.add.at(log_probs, decision[rows], episode.log_probs[rows])
    table = make_table([episode_arrays(episode)], episode.embodiment, Labelling())
    seen = np.where(by_policy, origin, np.arange(len(origin)))[first]
    inputs = table.inputs(seen, episode.embodiment, tuple(input_specs(network)), network.instruction)
    return Rollout(
        episode_id=episode.id,
        version=version,
        inputs={name: value.numpy() for name, value in inputs.items()},
        tokens=tokens,
        log_probs=log_probs,
        steps_to_go=_labelled(episode, judge)[np.append(first, len(origin))],
        detected=episode.summary.end_reason is EndReason.SUCCESS_DETECTED,
    )


def _origins(episode: Episode) -> IntArray:
    """Returns, for each step [N - 1], the row of the observation that it was inferred from; -1 without one.

    A step of a chunk is executed `chunk_index` control periods after its observation. Where that was not
    recorded, or somebody else decided the step, there is none.
    """
    period_ns = SECOND_NS / episode.embodiment.control_rate_hz
    seen_ns = episode.stamps[:-1] - np.round(episode.chunk_index[:-1] * period_ns).astype(np.int64)
    after = np.searchsorted(episode.stamps, seen_ns).clip(1, len(episode) - 1)
    closer = seen_ns - episode.stamps[after - 1] <= episode.stamps[after] - seen_ns
    nearest = np.where(closer, after - 1, after)
    known = (
        (episode.actors[:-1] == Actor.POLICY)
        & (episode.chunk_index[:-1] < episode.embodiment.action.chunk)
        & (episode.tokens[:-1] >= 0).all(axis=1)
        & np.isfinite(episode.log_probs[:-1])
        & (np.abs(episode.stamps[nearest] - seen_ns) <= period_ns / 2)
    )
    return np.where(known, nearest, -1)


def _labelled(episode: Episode, judge: Judge) -> npt.NDArray[np.float32]:
    """Steps-to-go of every row, float32 [N]: live where the judge's own bundle labelled, else judged now."""
    live = episode.steps_to_go
    if episode.reward_bundle_ids == (judge.bundle.id,) and np.isfinite(live).all():
        return live
    return judge.steps_to_go(episode)
