"""A practice run on disk: takes episodes in, learns from them, gives bundles out, and survives being killed.

The run's folder:

    settings.json       settings and the ids of the bundles that it began with
    bundles/<id>/       every bundle that may still be asked for
    episodes/<id>/      episodes that arrived
    journal.jsonl       one line per episode that was offered: taken or refused, and why
    metrics.jsonl       one line per iteration (`IterationReport`, the bundle, the guard, seconds spent)
    checkpoints/        weights, optimiser and counters after the last iterations, each written as a whole

An episode is taken in exactly once, when its line is in the journal. A checkpoint names the number of lines
that it has learned from; after a restart those after it are read again, so that killing the process at any
moment changes nothing of what is learned. How episodes arrive and bundles leave is the node's business.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from efm_core.bundle import Bundle
from efm_core.embodiment import Embodiment
from efm_core.episode import EndReason, Episode, Summary, read_episode
from efm_core.errors import (
    BundleInvalid,
    EfmError,
    EpisodeDuplicate,
    EpisodeInvalid,
    EpisodeStale,
    LearnerPaused,
    Reason,
    reason_of,
)
from efm_learner.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from efm_learner.export import OnnxExporter, export_bundle, load_network
from efm_learner.guard import BLIND, Guard, GuardSettings, Verdict
from efm_learner.json_lines import JsonLines
from efm_learner.labelling import Judge, check_apart
from efm_learner.practice import IterationReport, PracticeSettings, PracticeTrainer, Rollout
from efm_learner.rollouts import check_practised, rollout_of
from efm_learner.run_folder import RunFolder

__all__ = ["PracticeRun", "RunSettings", "Step", "Taken"]

KEPT_BUNDLES = 5  # Newest ones that stay, and likewise of those that the guard ranks highest.
# Ends that say something about the policy. What a person or a safety stop cut short does not.
TELLING_ENDS = (EndReason.SUCCESS_DETECTED, EndReason.MAX_STEPS, EndReason.ACTOR_DONE)
BUDGET_SPENT = "the run's budget is spent"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """All settings of a run.

    Attributes:
        practice: How it learns.
        guard: When it stops.
        iterations: Iterations after which the run is over; 0 means no limit.
        episodes: Episodes after which the run is over; 0 means no limit.
    """

    practice: PracticeSettings = field(default_factory=PracticeSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    iterations: int = 0
    episodes: int = 0


@dataclass(frozen=True)
class Taken:
    """An episode that was taken in."""

    rollout: Rollout
    summary: Summary


@dataclass(frozen=True)
class Step:
    """What `PracticeRun.advance` did.

    Attributes:
        report: The iteration's numbers.
        control_steps: Mean control steps of its episodes.
        bundle: The new policy; after a stop, the best one.
        verdict: What the guard thinks.
    """

    report: IterationReport
    control_steps: float
    bundle: Bundle
    verdict: Verdict


class PracticeRun:
    """See the module's description. Not safe for threads: one thread calls `ingest` and `advance`.

    After `Cancelled` or `SpoolFull` the run in memory is of no use any more: close it and open it anew.

    Args:
        folder: Of the run; made where it is missing, resumed where it exists.
        policy: Stage-1 policy.
        reward: Frozen model of reward and success.
        verifier: Second reward model, trained apart; None: the guard trusts the detector.
        settings: Fixed for the whole run, as the bundles are, apart from `iterations` and `episodes`.
        device: That torch learns on.
        exporter: One of an earlier run of this network, which need not be traced again; None: a new one.

    Attributes:
        folder: Of the run.
        bundle, version: The policy to act with now, and its number within the run.
        buffered: Fresh decisions that wait to be learned from.
        episodes_taken, steps_taken, episodes_refused: Since the run began; steps are control steps.

    Raises:
        BadRequest: The run was begun with other settings or bundles.
        BundleInvalid: A bundle is of the wrong kind. EmbodimentMismatch: They are for different robots.
        SpoolLocked: Another process owns the run. SpoolFull: The disk is full.
    """

    def __init__(
        self,
        folder: Path | str,
        policy: Bundle,
        reward: Bundle,
        verifier: Bundle | None = None,
        settings: RunSettings | None = None,
        device: str = "cpu",
        exporter: OnnxExporter | None = None,
    ) -> None:
        self.settings = settings or RunSettings()
        self.embodiment: Embodiment = policy.embodiment
        if policy.manifest.kind == "reward":
            raise BundleInvalid(f"bundle {policy.id}: expected a policy to practise with, found a reward")
        for other in (reward, *([verifier] if verifier else [])):
            other.check_embodiment(self.embodiment)
        if verifier:
            check_apart(verifier, reward)
        self.reward = reward
        self.judge = Judge(reward)
        self._verifier = Judge(verifier) if verifier else None
        self._blind = verifier is None and self.settings.guard.enabled
        self.trainer = PracticeTrainer(load_network(policy).to(device), self.settings.practice)
        self.guard = Guard(self.settings.guard, self.judge.hold)
        self.exporter = exporter or OnnxExporter("policy")
        self.folder = RunFolder(folder)
        try:
            names = {"policy": policy.id, "reward": reward.id, "verifier": verifier.id if verifier else None}
            self.folder.settle({**names, **asdict(self.settings)}, free=("iterations", "episodes"))
            self._journal = JsonLines(self.folder.path / "journal.jsonl")
            self._metrics = JsonLines(self.folder.path / "metrics.jsonl")
            self.bundle = self.folder.adopt(policy)
            self._restore()
        except BaseException:
            self.folder.close()
            raise

    def close(self) -> None:
        """Gives the folder to others; everything is on disk."""
        self.folder.close()

    def ingest(self, path: Path | str) -> Taken:
        """Takes a finished episode in, or says why not; either way the journal knows.

        Args:
            path: Folder of the episode, inside `episodes/` of this run.

        Raises:
            EpisodeDuplicate: It was offered before.
            EpisodeStale: Its policy is not of this run, or too many versions old.
            EpisodeInvalid, EmbodimentMismatch, ...: It cannot be learned from.
            LearnerPaused: The run is over; the journal does not know of it, and a longer run will take it.
            SpoolFull: The journal cannot be written; it is not taken in.
        """
        path = Path(path)
        if path.name in self._known:
            raise EpisodeDuplicate(f"episode {path.name}: was offered before")
        if self.stopped:
            raise LearnerPaused(f"episode {path.name}: this run is over: {self.message}")
        try:
            taken = self._read(path)
        except OSError:
            raise
        except Exception as error:  # One odd episode must not end the run at every start.
            self._note(path.name, reason_of(error), str(error) or type(error).__name__)
            self.episodes_refused += 1
            if isinstance(error, EfmError):
                raise
            raise EpisodeInvalid(f"episode {path.name}: {type(error).__name__}: {error}") from error
        self._note(path.name, Reason.OK, "", version=taken.rollout.version, steps=taken.summary.steps)
        self._take(taken)
        verdict = self.guard.glance()
        if verdict.stop:
            self._stop(verdict)
            self._checkpoint()
        return taken

    @property
    def ready(self) -> bool:
        """Whether there is enough for an iteration."""
        return not self.stopped and self.buffered >= self.settings.practice.decisions

    @property
    def stopped(self) -> bool:
        """Whether the run is over: the guard stopped it, or its budget is spent."""
        spent = (
            0 < self.settings.iterations <= self.trainer.iteration
            or 0 < self.settings.episodes <= self.episodes_taken
        )
        return bool(self._verdict) or spent

    @property
    def message(self) -> str:
        """Why the run is over; empty while it is not."""
        return self._verdict or (BUDGET_SPENT if self.stopped else "")

    @property
    def alarm(self) -> str:
        """Why the guard stopped the run, or would have, or what it cannot see; empty when all is well."""
        return self._verdict or self._warning or (BLIND if self._blind else "")

    def unseen(self) -> list[Path]:
        """Returns the episodes that arrived but were not offered to `ingest` yet, oldest first."""
        return [path for path in self.folder.arrived() if path.name not in self._known]

    @property
    def best_id(self) -> str:
        """The bundle that the guard holds for the best; it is never removed."""
        return self._versions[next(iter(self.guard.ranking()), 0)]

    def prepare(self) -> None:
        """Traces the network, which takes seconds, so that the first export does not have to."""
        self.exporter.prepare(self.trainer.network)

    def advance(
        self, cancelled: Callable[[], bool] = lambda: False, times: Mapping[str, float] | None = None
    ) -> Step:
        """Takes one iteration: updates, verdict of the guard, export, checkpoint. Call when `ready`.

        Args:
            cancelled: Looked at before every update.
            times: What the caller spent on it before; goes into metrics.jsonl.

        Raises:
            Cancelled: `cancelled` said so. SpoolFull: The disk is full. Both times the disk is as before.
            BadRequest, BundleUnusable: The weights are not finite any more.
        """
        began = time.monotonic()
        rollouts = [taken.rollout for taken in self._buffer]
        steps = sum(taken.summary.steps for taken in self._buffer) / len(self._buffer)
        report = self.trainer.iterate(rollouts, cancelled)
        updated = time.monotonic()
        verdict = self.guard.judge(report.kl, report.episodes, report.mean_return)
        self._warning = verdict.message
        if verdict.stop:
            self._stop(verdict)
        else:
            self.version += 1
            self.bundle = self._export(report, [rollout.episode_id for rollout in rollouts])
            self._versions[self.version] = self.bundle.id
        self._metrics.append(
            {
                **asdict(report),
                "control_steps": steps,
                "version": self.version,
                "bundle": self.bundle.id,
                "best": self.best_id,
                "guard": asdict(verdict),
                "total_episodes": self.episodes_taken,
                "total_steps": self.steps_taken,
                "unix_time": time.time(),
                **(times or {}),
                "update_s": updated - began,
                "export_s": time.monotonic() - updated,
            }
        )
        self._checkpoint()
        self._prune()
        return Step(report, steps, self.bundle, verdict)

    # Inside

    def _read(self, path: Path) -> Taken:
        """Reads and judges an episode."""
        episode = read_episode(path)
        check_practised(episode, self.embodiment, self.reward.id)
        version = self._version_of(episode)
        rollout = rollout_of(episode, self.trainer.network, self.judge, version)
        if self._verifier:
            agrees = rollout.detected and self._verifier.agrees(episode, self.settings.guard.slack)
            rollout = replace(rollout, verified=agrees)
        return Taken(rollout, episode.summary)

    def _version_of(self, episode: Episode) -> int:
        bundles = episode.policy_bundle_ids
        if len(bundles) != 1:
            raise EpisodeInvalid(f"episode {episode.id}: expected steps of one policy, found {bundles}")
        version = next((v for v, name in self._versions.items() if name == bundles[0]), None)
        if version is None:
            raise EpisodeStale(f"episode {episode.id}: its policy {bundles[0]} is not of this run")
        if self.version - version > self.settings.practice.max_staleness:
            raise EpisodeStale(
                f"episode {episode.id}: its policy is version {version}, the newest is {self.version}, and "
                f"max_staleness is {self.settings.practice.max_staleness}"
            )
        return version

    def _take(self, taken: Taken) -> None:
        rollout, summary = taken.rollout, taken.summary
        self._buffer.append(taken)
        self.buffered += rollout.learnable
        self.episodes_taken += 1
        self.steps_taken += summary.steps
        if summary.end_reason in TELLING_ENDS:
            self.guard.record(rollout.version, rollout.detected, rollout.verified, summary.steps)

    def _stop(self, verdict: Verdict) -> None:
        """Ends the run, with the best version as the last one."""
        self._verdict = verdict.message
        self.version += 1
        self._versions[self.version] = self._versions[verdict.best_version]
        self.bundle = self.folder.bundle(self._versions[self.version])

    def _export(self, report: IterationReport, episodes: list[str]) -> Bundle:
        return export_bundle(
            self.trainer.network,
            self.embodiment,
            self.folder.bundles,
            "policy",
            parity_batch=self.trainer.sample,
            exporter=self.exporter,
            parent_id=self.bundle.id,
            version=self.version,
            training={"stage": "practice", **asdict(self.settings), "reward": self.reward.id},
            validation=asdict(report),
            data_ids=episodes,
        )

    def _prune(self) -> None:
        """Removes bundles that neither a robot nor the guard can ask for any more."""
        newest = max(KEPT_BUNDLES, self.settings.practice.max_staleness + 1)
        wanted = (0, *sorted(self._versions)[-newest:], *self.guard.ranking()[:KEPT_BUNDLES])
        self.folder.keep_bundles(self._versions[version] for version in wanted)

    def _note(self, episode_id: str, reason: Reason, message: str, **more: int) -> None:
        self._journal.append({"episode": episode_id, "reason": int(reason), "message": message, **more})
        self._known.add(episode_id)

    # Checkpoint

    def _checkpoint(self) -> None:
        """Everything in the buffer counts as learned from."""
        self._buffer.clear()
        self.buffered = 0
        progress = {
            "iteration": self.trainer.iteration,
            "journal_lines": len(self._journal.entries),
            "version": self.version,
            "versions": {str(version): name for version, name in self._versions.items()},
            "guard": self.guard.state(),
            "verdict": self._verdict,
            "warning": self._warning,
        }
        state = TrainingState(step=self.trainer.updates, progress=progress)
        save_checkpoint(self.folder.path, state, self.trainer.network, self.trainer.optimizer)

    def _restore(self) -> None:
        self.version, self.buffered = 0, 0
        self._versions = {0: self.bundle.id}
        self._verdict = self._warning = ""
        self._buffer: list[Taken] = []
        state = load_checkpoint(self.folder.path, self.trainer.network, self.trainer.optimizer, {})
        progress: dict[str, Any] = state.progress
        if progress:
            self.trainer.updates, self.trainer.iteration = state.step, progress["iteration"]
            self.version = progress["version"]
            self._versions = {int(version): name for version, name in progress["versions"].items()}
            self.bundle = self.folder.bundle(self._versions[self.version])
            self.guard.restore(progress["guard"])
            self._verdict, self._warning = progress["verdict"], progress["warning"]
        lines = progress.get("journal_lines", 0)
        learned = [entry for entry in self._journal.entries[:lines] if entry["reason"] == Reason.OK]
        self._known = {entry["episode"] for entry in self._journal.entries}
        self.episodes_refused = sum(entry["reason"] != Reason.OK for entry in self._journal.entries)
        self.episodes_taken = len(learned)
        self.steps_taken = sum(entry["steps"] for entry in learned)
        self._metrics.keep(self.trainer.iteration)
        for entry in self._journal.entries[lines:]:
            if entry["reason"] == Reason.OK:
                try:
                    self._take(self._read(self.folder.episodes / entry["episode"]))
                except EfmError as error:  # It was whole when it came: somebody removed or changed it.
                    _log.warning("an episode that was taken in is lost: %s", error)
