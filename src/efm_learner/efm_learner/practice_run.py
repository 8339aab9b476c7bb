"""A practice run on disk: takes episodes in, learns from them, gives bundles out, and survives being killed.

The run's folder:

    settings.json       settings and the ids of the bundles that it started from
    bundles/<id>/       every bundle that may still be asked for
    episodes/<id>/      episodes that were taken in
    journal.jsonl       one line per episode that was offered: taken or refused, and why
    metrics.jsonl       one line per iteration (`IterationReport`)
    checkpoint/         weights, optimiser and counters after the last iteration, written as a whole

An episode is taken in exactly once: its id is in the journal before it is acknowledged. After a restart the
episodes that were taken but not yet learned from are read again. Nothing here reads the world's ground truth,
and an episode that holds it is refused. How episodes arrive and bundles leave is the node's business.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from efm_core.bundle import Bundle, load_bundle
from efm_core.embodiment import Embodiment
from efm_core.episode import EndReason, Episode, Mode, Outcome, read_episode
from efm_core.errors import (
    BadRequest,
    EfmError,
    EpisodeDuplicate,
    EpisodeInvalid,
    EpisodeStale,
    Reason,
    reason_of,
)
from efm_core.files import write_synced
from efm_learner.checkpoint import TrainingState, checkpoints, load_checkpoint, save_checkpoint
from efm_learner.export import OnnxExporter, export_bundle, load_network
from efm_learner.guard import Guard, GuardSettings, Verdict
from efm_learner.labelling import Judge
from efm_learner.practice import IterationReport, PracticeSettings, PracticeTrainer, Rollout
from efm_learner.rollouts import rollout_of

__all__ = ["PracticeRun", "RunSettings", "Step"]

KEPT_BUNDLES = 5  # Newest ones that stay, and likewise of those that the guard ranks highest.


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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSettings:
        """Reads settings back from `dataclasses.asdict`."""
        plain = {name: values[name] for name in ("iterations", "episodes")}
        return cls(PracticeSettings.from_dict(values["practice"]), GuardSettings(**values["guard"]), **plain)


@dataclass(frozen=True)
class Step:
    """What `PracticeRun.advance` did.

    Attributes:
        report: The iteration's numbers.
        bundle: The new policy; after a stop, the best one.
        verdict: What the guard thinks.
    """

    report: IterationReport
    bundle: Bundle
    verdict: Verdict


class PracticeRun:
    """See the module's description. Not safe for threads: one thread calls `ingest` and `advance`.

    Args:
        folder: Of the run; made where it is missing, resumed where it exists.
        policy: Stage-1 policy. A resumed run refuses another one than it began with.
        reward: Frozen model of reward and success.
        verifier: Second reward model, trained apart; None: the guard trusts the detector.
        settings: Likewise fixed for the whole run, apart from its limits `iterations` and `episodes`.
    """

    def __init__(
        self,
        folder: Path | str,
        policy: Bundle,
        reward: Bundle,
        verifier: Bundle | None = None,
        settings: RunSettings | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.settings = settings or RunSettings()
        self.embodiment: Embodiment = policy.embodiment
        self.reward, self.verifier = reward, verifier
        for bundle in (reward, *([verifier] if verifier else [])):
            bundle.check_embodiment(self.embodiment)
        for name in ("bundles", "episodes"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._settle(policy)

        self.judge = Judge(reward)
        self._verifier = Judge(verifier) if verifier else None
        self.trainer = PracticeTrainer(load_network(policy), self.settings.practice)
        self.guard = Guard(self.settings.guard)
        self.first = self._adopt(policy)
        self.bundle = self.first
        self.version = 0
        self.message = ""
        self.stopped = False
        self.episodes_taken = self.steps_taken = self.episodes_refused = 0
        self._versions: dict[int, str] = {0: self.first.id}
        self._consumed: set[str] = set()
        self._exporter = OnnxExporter(policy.manifest.kind)
        self._buffer: list[Rollout] = []
        self._known = self._read_journal()
        self._restore()

    # -- episodes in ------------------------------------------------------------------------------------------

    def ingest(self, path: Path | str) -> Rollout:
        """Takes a finished episode in, or says why not; either way the journal knows.

        Args:
            path: Folder of the episode, already inside `episodes/` of this run.

        Raises:
            EpisodeDuplicate: It was taken in before; safe to acknowledge.
            EpisodeStale: Its policy is too many versions old; safe to acknowledge, it is of no use any more.
            EpisodeInvalid: It cannot be learned from: not from practice, discarded, of another robot, ...
        """
        path = Path(path)
        if path.name in self._known:
            raise EpisodeDuplicate(f"episode {path.name}: taken in before")
        try:
            rollout = self._rollout(read_episode(path))
        except EfmError as error:
            self._note(path.name, reason_of(error), str(error))
            self.episodes_refused += 1
            raise
        self._note(path.name, Reason.OK, "")
        self._take(rollout)
        return rollout

    @property
    def buffered(self) -> int:
        """Fresh decisions that wait to be learned from."""
        return sum(len(rollout) for rollout in self._buffer)

    @property
    def ready(self) -> bool:
        """Whether there is enough for an iteration."""
        return not self.stopped and self.buffered >= self.settings.practice.decisions

    def unseen(self) -> list[Path]:
        """Returns the episodes that arrived but were not offered to `ingest` yet, oldest first."""
        folders = sorted(path for path in (self.folder / "episodes").iterdir() if path.is_dir())
        return [path for path in folders if path.name not in self._known and not path.name.startswith(".")]

    @property
    def best(self) -> Bundle:
        """The bundle that the guard holds for the best."""
        version = next(iter(self.guard.ranking()), 0)
        return load_bundle(self.folder / "bundles" / self._versions[version], verify=False)

    # -- bundles out ------------------------------------------------------------------------------------------

    def advance(self) -> Step:
        """Takes one iteration: updates, verdict of the guard, export, checkpoint. Call when `ready`."""
        report = self.trainer.iterate(self._buffer)
        verdict = self.guard.judge(report.kl)
        self._consumed.update(rollout.episode_id for rollout in self._buffer)
        self._buffer.clear()
        limit = self.settings.iterations and report.iteration >= self.settings.iterations
        limit = limit or (self.settings.episodes and self.episodes_taken >= self.settings.episodes)
        self.stopped = verdict.stop or bool(limit)
        self.message = verdict.message or ("the run's budget is spent" if limit else "")
        self.version += 1
        if verdict.stop:
            self.bundle = load_bundle(
                self.folder / "bundles" / self._versions[verdict.best_version], verify=False
            )
        else:
            self.bundle = self._export(report)
        self._versions[self.version] = self.bundle.id
        self._checkpoint()
        self._prune()
        _append(
            self.folder / "metrics.jsonl",
            {**asdict(report), "version": self.version, "bundle": self.bundle.id, "guard": asdict(verdict)},
        )
        return Step(report, self.bundle, verdict)

    # -- inside -----------------------------------------------------------------------------------------------

    def _rollout(self, episode: Episode) -> Rollout:
        summary = episode.summary
        if summary.mode != Mode.PRACTICE:
            raise EpisodeInvalid(f"episode {episode.id}: expected mode PRACTICE, found {summary.mode.name}")
        if summary.outcome == Outcome.DISCARDED or summary.end_reason == EndReason.FAULT:
            raise EpisodeInvalid(f"episode {episode.id}: {summary.outcome.name}, {summary.end_reason.name}")
        if summary.embodiment_digest != self.embodiment.digest:
            raise EpisodeInvalid(
                f"episode {episode.id}: recorded on embodiment {summary.embodiment_digest}, the run's is "
                f"'{self.embodiment.name}' ({self.embodiment.digest})"
            )
        version = next((v for v, name in self._versions.items() if name == summary.policy_bundle_id), None)
        if version is None:
            raise EpisodeStale(
                f"episode {episode.id}: its policy {summary.policy_bundle_id or '(none)'} is not of this run"
            )
        # A version that a rollback brought back is as new as its announcement.
        version = max(v for v, name in self._versions.items() if name == summary.policy_bundle_id)
        if self.version - version > self.settings.practice.max_staleness:
            raise EpisodeStale(
                f"episode {episode.id}: its policy is version {version}, the newest is {self.version}, and "
                f"max_staleness is {self.settings.practice.max_staleness}"
            )
        rollout = rollout_of(episode, self.trainer.network, self.judge, version)
        if self._verifier and rollout.detected:
            rollout = replace(rollout, verified=self._verifier.agrees(episode, self.settings.guard.slack))
        elif self._verifier:
            rollout = replace(rollout, verified=False)
        return rollout

    def _take(self, rollout: Rollout) -> None:
        self._buffer.append(rollout)
        self.guard.record(rollout.version, rollout.detected, rollout.verified, len(rollout))
        self.episodes_taken += 1
        self.steps_taken += len(rollout)

    def _export(self, report: IterationReport) -> Bundle:
        return export_bundle(
            self.trainer.network,
            self.embodiment,
            self.folder / "bundles",
            self.first.manifest.kind,
            parity_batch=self.trainer.sample,
            exporter=self._exporter,
            parent_id=self.bundle.id,
            version=self.version,
            training={"practice": asdict(self.settings), "reward": self.reward.id},
            # A figure that is not known has no place in JSON.
            validation={name: value for name, value in asdict(report).items() if value == value},
            data_ids=[],
            combine=self.first.manifest.combine,
        )

    def _adopt(self, bundle: Bundle) -> Bundle:
        """Copies a bundle into the run, so that it can be served from one folder."""
        target = self.folder / "bundles" / bundle.id
        if not target.exists():
            partial = target.with_name(f".{bundle.id}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(bundle.path, partial)
            os.rename(partial, target)
        return load_bundle(target)

    def _prune(self) -> None:
        """Removes bundles that neither a robot nor the guard can ask for any more."""
        wanted = (0, *sorted(self._versions)[-KEPT_BUNDLES:], *self.guard.ranking()[:KEPT_BUNDLES])
        keep = {self._versions[version] for version in wanted}
        for path in (self.folder / "bundles").iterdir():
            if path.name not in keep:
                shutil.rmtree(path)

    def _settle(self, policy: Bundle) -> None:
        """Writes settings.json, or compares it with what the run began with."""
        path = self.folder / "settings.json"
        mine: dict[str, Any] = {
            "policy": policy.id,
            "reward": self.reward.id,
            "verifier": self.verifier.id if self.verifier else None,
            **asdict(self.settings),
        }
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            write_synced(partial, json.dumps(mine, indent=2).encode())
            partial.rename(path)
            return
        found = json.loads(path.read_text())
        limits = ("iterations", "episodes")
        changed = [k for k in mine if k not in limits and found.get(k) != json.loads(json.dumps(mine[k]))]
        if changed:
            raise BadRequest(
                f"{path}: this run began with other {', '.join(changed)}; go on with the same ones, or name a "
                "new folder"
            )

    def _note(self, episode_id: str, reason: Reason, message: str) -> None:
        line = {"episode": episode_id, "reason": int(reason), "message": message}
        _append(self.folder / "journal.jsonl", line)
        self._known[episode_id] = int(reason)

    def _read_journal(self) -> dict[str, int]:
        path = self.folder / "journal.jsonl"
        if not path.exists():
            return {}
        known: dict[str, int] = {}
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # A line cut off by a crash was never acknowledged.
            known[entry["episode"]] = entry["reason"]
        return known

    # -- checkpoint -------------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        progress = {
            "iteration": self.trainer.iteration,
            "version": self.version,
            "versions": {str(version): name for version, name in self._versions.items()},
            "bundle": self.bundle.id,
            "guard": self.guard.state(),
            "stopped": self.stopped,
            "message": self.message,
            "consumed": sorted(self._consumed),
            "episodes": self.episodes_taken,
            "steps": self.steps_taken,
            "refused": self.episodes_refused,
        }
        state = TrainingState(step=self.trainer.updates, progress=progress)
        save_checkpoint(self.folder, state, self.trainer.network, self.trainer.optimizer)

    def _restore(self) -> None:
        if checkpoints(self.folder):
            state = load_checkpoint(self.folder, self.trainer.network, self.trainer.optimizer, {})
            progress = state.progress
            self.trainer.updates, self.trainer.iteration = state.step, progress["iteration"]
            self.version = progress["version"]
            self._versions = {int(version): name for version, name in progress["versions"].items()}
            self.bundle = load_bundle(self.folder / "bundles" / progress["bundle"])
            self.guard.restore(progress["guard"])
            self.stopped, self.message = progress["stopped"], progress["message"]
            self._consumed = set(progress["consumed"])
            self.episodes_taken, self.steps_taken = progress["episodes"], progress["steps"]
            self.episodes_refused = progress["refused"]
        for name, reason in self._known.items():
            if reason != Reason.OK or name in self._consumed:
                continue
            try:
                self._take(self._rollout(read_episode(self.folder / "episodes" / name)))
            except EfmError:
                self._consumed.add(name)  # It went stale while the learner was away.


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line to a file of JSON lines and waits until it is on the disk."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
