"""A recorded practice episode -> what REINFORCE needs of it."""

from __future__ import annotations

import numpy as np

from efm_core.episode import Actor, EndReason, Episode
from efm_core.errors import EpisodeInvalid
from efm_learner.dataset import episode_arrays
from efm_learner.labelling import Judge
from efm_learner.network import EfmNetwork, input_specs
from efm_learner.practice import Rollout
from efm_learner.samples import Labelling, make_table

__all__ = ["rollout_of"]


def rollout_of(episode: Episode, network: EfmNetwork, judge: Judge, version: int) -> Rollout:
    """Makes a rollout; frames that the reward node did not label live are labelled by the judge.

    A decision is one inference of the policy: with chunks, the steps up to the next inference belong to it. Steps
    that a person or the hold decided stay in the returns, but no gradient follows from them.

    Args:
        episode: Of mode PRACTICE.
        network: Decides which inputs are kept.
        judge: The run's frozen reward bundle.
        version: Of the policy that acted.

    Raises:
        EpisodeInvalid: The policy decided nothing in it.
    """
    by_policy = episode.actors == Actor.POLICY
    if not by_policy.any():
        raise EpisodeInvalid(
            f"episode {episode.id}: the policy decided no step of it; nothing to practise on"
        )
    chunk, size = episode.embodiment.action.chunk, episode.embodiment.action_size
    steps = np.arange(len(episode) - 1)
    # Every step of somebody else begins a decision of its own, without tokens.
    decisions = steps[~by_policy[:-1] | (episode.chunk_index[:-1] == 0)]
    if len(decisions) == 0 or decisions[0] != 0:
        raise EpisodeInvalid(f"episode {episode.id}: it begins in the middle of a chunk")
    tokens = np.full((len(decisions), chunk, size), -1, np.int64)
    log_probs = np.zeros(len(decisions), np.float32)
    ends = np.append(decisions[1:], len(episode) - 1)
    for index, (start, end) in enumerate(zip(decisions, ends, strict=True)):
        mine = np.arange(start, end)[by_policy[start:end]]
        tokens[index, episode.chunk_index[mine]] = episode.tokens[mine]
        log_probs[index] = np.nansum(episode.log_probs[mine])
    table = make_table([episode_arrays(episode)], episode.embodiment, Labelling())
    names = tuple(input_specs(network))
    inputs = table.inputs(decisions, episode.embodiment, names, network.instruction)
    judged = np.append(decisions, len(episode) - 1)
    return Rollout(
        episode_id=episode.id,
        version=version,
        inputs={name: value.numpy() for name, value in inputs.items()},
        tokens=tokens,
        log_probs=log_probs,
        steps_to_go=_labelled(episode, judge)[judged],
        detected=episode.summary.end_reason == EndReason.SUCCESS_DETECTED,
    )


def _labelled(episode: Episode, judge: Judge) -> np.ndarray:
    """Steps-to-go of every row, float32 [N]: live where the judge's own bundle labelled, else judged now."""
    live = episode.steps_to_go
    if episode.reward_bundle_ids == (judge.bundle.id,) and np.isfinite(live).all():
        return live
    return judge.steps_to_go(episode)
