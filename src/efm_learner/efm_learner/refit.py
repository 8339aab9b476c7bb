"""Steps-to-go learned anew from demonstrations and the robot's own episodes, for a NEXT practice run.

Demonstrations never show the mistakes that practice makes, so steps-to-go is guesswork there. Here the same
training as in stage 1 also sees the episodes of a finished run: those that the detector ended and a verifier
agrees with count as successful, all others as "at least so many steps were left" (censored). A running run
keeps its frozen reward: what comes out is a new bundle, and a new run begins with it.

What it leaves out: episodes that succeeded without being detected are censored too, which is wrong for them;
and the verifier's opinion goes into the new reward, so that the next run needs a verifier of its own.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from efm_core.bundle import Bundle
from efm_core.episode import EndReason, list_episodes, read_episode
from efm_core.episode_file import bag_file, incomplete_episodes
from efm_core.errors import BadRequest, EpisodeInvalid
from efm_core.files import replace_json, sha256_of
from efm_learner.calibrate import calibrate, firing_times
from efm_learner.dataset import episode_arrays, load_episodes, split_episodes
from efm_learner.export import export_bundle, load_network
from efm_learner.frame_cache import Wanted
from efm_learner.guard import GuardSettings
from efm_learner.labelling import Judge, check_apart
from efm_learner.rollouts import check_practised
from efm_learner.samples import EpisodeArrays, StepTable, make_table
from efm_learner.sft import parity_frames
from efm_learner.sft_config import REFIT, config_of
from efm_learner.training import REWARD, train
from efm_learner.validation import episode_rows, predicted_steps

__all__ = ["RefitResult", "refit"]

SLACK = GuardSettings().slack  # The judge agrees as the guard's verifier does.

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RefitResult:
    """What came out.

    Attributes:
        reward: The new bundle.
        labelled: Practice episodes by what they count as: "successful", "censored", "left out".
        fooled: Share of the held-out censored practice episodes in which a detector fires, "before" and
            "after"; None without such episodes.
    """

    reward: Bundle
    labelled: dict[str, int]
    fooled: dict[str, float] | None


def refit(
    run: Path, reward: Bundle, verifier: Bundle, demonstrations: Path, out: Path, steps: int | None = None
) -> RefitResult:
    """Trains a new reward bundle into `<out>/bundles/`; `result.json` names it. Run again, it resumes.

    Args:
        run: Folder of a practice run.
        reward: That run's frozen reward, made by `efm sft` or `efm refit`; its settings are used again.
        verifier: A reward bundle trained apart.
        demonstrations: Folder of the episodes that the reward was made from.
        out: Folder of the training.
        steps: Gradient steps; None: as the reward was made.

    Raises:
        BadRequest: The reward was made by something else, the verifier is the reward itself, or `run` is no
            practice run.
        EpisodeInvalid: No usable episode in one of the folders.
        EmbodimentMismatch: The bundles or the demonstrations are of different robots.
    """
    check_apart(verifier, reward)
    embodiment = reward.embodiment
    verifier.check_embodiment(embodiment)
    config = config_of(reward)
    config = replace(
        config, episodes=str(demonstrations), out=str(out), steps=config.steps if steps is None else steps
    )
    practised = list_episodes(run / "episodes")
    if not practised:
        raise BadRequest(
            f"{run}: expected the folder of a practice run, with episodes in {run / 'episodes'}, found none; "
            "name the --run of efm practice"
        )
    wanted = [_wanted(path, reward, Judge(verifier)) for path in practised]
    own = {path.name for path in practised}
    cut = incomplete_episodes(run / "episodes")
    for path in cut:
        _log.warning("%s: expected a bag and its metadata.yaml, found one of them; it is left out", path)
    episodes, frames, _ = load_episodes(demonstrations, embodiment, out / ".cache", wanted)
    labelled = Counter("successful" if e.success else "censored" for e in episodes if e.id in own)
    if not labelled or labelled.total() == len(episodes):
        raise EpisodeInvalid(
            f"refit: expected demonstrations in {demonstrations} and practice episodes in {run}/episodes, "
            f"found {len(episodes) - labelled.total()} and {labelled.total()} that can be used"
        )
    labelled["left out"] = len(own) + len(cut) - labelled.total()

    def table(part: list[EpisodeArrays]) -> StepTable:
        made = make_table(part, embodiment, config.labelling, frames(part))
        return _relabelled(made, own, reward.manifest.success_hold)

    training, held_out = split_episodes(episodes, config.validation_share, config.seed)
    seen = table(training)
    unseen = table(held_out) if any(episode.success for episode in held_out) else None
    _log.info("practice episodes: %s", dict(labelled))
    trained = train(config, embodiment, seen, unseen, out)
    report = {} if unseen is None else calibrate(trained.reward, unseen, config.combine, config.calibration)
    detector = report.get("detector", {"threshold": None, "hold": 1})
    bundle = export_bundle(
        trained.reward,
        embodiment,
        out / "bundles",
        REWARD,
        parity_batch=parity_frames(trained.reward, unseen or seen),
        training={**config.lasting(), "stage": REFIT, "verifier": verifier.id, "practice": dict(labelled)},
        data_ids=sorted(seen.episode_ids),
        parent_id=reward.id,
        combine=config.combine,
        validation={"chosen": trained.state.best[REWARD], "calibration": report},
        success_threshold=detector["threshold"],
        success_hold=int(detector["hold"]),
    )
    summary = {"reward": bundle.id, "practice": dict(labelled), "calibration": report}
    replace_json(out / "result.json", summary)
    return RefitResult(bundle, dict(labelled), _fooled(reward, bundle, unseen, own))


@dataclass(frozen=True)
class _Practised:
    """Decodes and labels one practice episode when the cache asks for it."""

    path: Path
    reward: Bundle
    judge: Judge

    def __call__(self) -> EpisodeArrays:
        episode = read_episode(self.path)
        check_practised(episode, self.reward.embodiment, self.reward.id)
        detected = episode.summary.end_reason is EndReason.SUCCESS_DETECTED
        return replace(
            episode_arrays(episode),
            imitate=np.zeros(len(episode), bool),
            success=detected and self.judge.agrees(episode, SLACK),
        )


def _wanted(path: Path, reward: Bundle, judge: Judge) -> Wanted:
    """Its digest names the judges as well: with others the label may be another."""
    text = f"{sha256_of(bag_file(path))} {reward.id} {judge.bundle.id} {SLACK}"
    return Wanted(hashlib.sha256(text.encode()).hexdigest(), _Practised(path, reward, judge))


def _relabelled(table: StepTable, own: Set[str], hold: int) -> StepTable:
    """Sets the targets of practice episodes that succeeded: they end with the detector, without a rest.

    The first observation that the detector holds is the success, and has 0 steps left.
    """
    targets = table.steps_to_go.copy()
    for number, name in enumerate(table.episode_ids):
        if name in own and table.success[number]:
            rows = np.arange(table.first[number], table.last[number] + 1)
            targets[rows] = np.maximum(rows[-1] - rows - (hold - 1), 0)
    return table.relabelled(targets, table.censored)


def _fooled(before: Bundle, after: Bundle, table: StepTable | None, own: Set[str]) -> dict[str, float] | None:
    """Returns how often each detector fires in held-out practice episodes that count as censored."""
    if table is None or after.manifest.success_threshold is None:
        return None
    names = enumerate(table.episode_ids)
    chosen = [number for number, name in names if name in own and not table.success[number]]
    if not chosen:
        return None
    rows = episode_rows(table, chosen)
    ends = np.cumsum((table.last - table.first + 1)[chosen])[:-1]
    found = {}
    for name, bundle in (("before", before), ("after", after)):
        manifest = bundle.manifest
        d, _ = predicted_steps(load_network(bundle), table, rows, manifest.combine)
        threshold = np.array([manifest.success_threshold], np.float64)
        fired = [firing_times(part, threshold, manifest.success_hold)[0] >= 0 for part in np.split(d, ends)]
        found[name] = float(np.mean(fired))
    return found
