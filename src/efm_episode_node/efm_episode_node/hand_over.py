"""Where finished episodes go: into the spool, and from there to the learner in the background.

Practice is handed over whenever a learner is named; demonstrations only where the node is there to collect
for it, so that a practising robot does not give away the data set that lies in its spool. Evaluations stay in
`evaluation/`, apart from everything that trains, and episodes that a fault ended in `.faulty/`, the newest
few. Left out: how parts are sent and resumed (`efm_ros.transfer`), and how space is counted
(`efm_core.spool`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from rclpy.node import Node

from efm_core.episode import list_episodes, read_summary
from efm_core.errors import EfmError, Reason, SpoolFull
from efm_core.spool import Spool
from efm_core.summary import EndReason, Mode, Summary
from efm_ros.transfer import EpisodeSender

# Hidden, so that whoever reads a spool for training never meets them.
EVALUATION = ".evaluation"
FAULTY = ".faulty"
FAULTY_KEPT = 20


class Outgoing:
    """The episodes of a spool that are for the learner, as `EpisodeSender` sees a spool."""

    def __init__(self, spool: Spool, modes: tuple[Mode, ...], log: Callable[[str], None]) -> None:
        """Shows the episodes of `modes`; `log` is told once of each that cannot be read."""
        self._spool = spool
        self._modes = modes
        self._log = log
        self._wanted: dict[str, bool] = {}

    @property
    def path(self) -> Path:
        """The spool's folder."""
        return self._spool.path

    def pending(self) -> list[Path]:
        """Returns the folders of the episodes that wait for the learner, oldest first."""
        return [path for path in self._spool.pending() if self._is_wanted(path)]

    def acknowledge(self, episode_id: str, sha256: str) -> None:
        """Removes an episode that the learner has."""
        self._spool.acknowledge(episode_id, sha256)
        self._wanted.pop(episode_id, None)

    def _is_wanted(self, path: Path) -> bool:
        if path.name not in self._wanted:
            try:
                self._wanted[path.name] = read_summary(path).mode in self._modes
            except EfmError as error:
                self._wanted[path.name] = False
                self._log(f"not handed over: {error}")
        return self._wanted[path.name]


class HandOver:
    """The `Shelf` of `runner`, with the robot's spool and the sender behind it."""

    def __init__(
        self, node: Node, folder: Path, quota_bytes: int, learner: str, collecting: bool, robot: str
    ) -> None:
        """Takes the spool.

        Args:
            node: For the sender's client and the log.
            folder: Of the spool.
            quota_bytes: What the spool may hold, and the evaluations as much again.
            learner: Namespace of the learner. Empty: nothing is handed over.
            collecting: Demonstrations are for the learner too.
            robot: Robot's namespace, as the learner shall know it.

        Raises:
            SpoolLocked: Another process owns the folder.
        """
        self._log = node.get_logger()
        self.spool = Spool(folder, quota_bytes)
        self._sender: EpisodeSender | None = None
        self._sending = False
        self.last_word = ""
        try:
            self.evaluations = Spool(folder / EVALUATION, quota_bytes)
        except BaseException:
            self.spool.close()
            raise
        for path in (*self.spool.broken, *self.evaluations.broken):
            self._log.warning(f"a recording that a dead process left unfinished is kept in {path}")
        if learner:
            modes = (Mode.PRACTICE, Mode.COLLECT) if collecting else (Mode.PRACTICE,)
            outgoing = Outgoing(self.spool, modes, self._log.error)
            self._sender = EpisodeSender(node, outgoing, learner, robot, self._told)  # type: ignore[arg-type]

    def start(self) -> None:
        """Begins to hand over what waits; does nothing the second time."""
        if self._sender is not None and not self._sending:
            self._sending = True
            self._sender.start()

    def folder_of(self, mode: Mode) -> Path:
        """Returns where episodes of a mode are written."""
        return self._spool_of(mode).path

    def require_space(self, mode: Mode) -> None:
        """Raises SpoolFull when there is no room for another episode."""
        try:
            self._spool_of(mode).require_space()
        except SpoolFull as error:
            if mode is not Mode.EVALUATE:
                raise
            raise SpoolFull(
                f"no room for evaluations, which are kept until somebody removes them: {error}"
            ) from error

    def keep(self, summary: Summary, folder: Path) -> None:
        """Takes a finished episode: hands it over, or puts a faulty one aside."""
        if summary.end_reason is EndReason.FAULT:
            aside = self.spool.path / FAULTY
            aside.mkdir(exist_ok=True)
            folder.rename(aside / folder.name)
            for old in list_episodes(aside)[:-FAULTY_KEPT]:
                shutil.rmtree(old)
        elif self._sender is not None and summary.mode is not Mode.EVALUATE:
            self._sender.notify()

    def refused(self) -> dict[str, str]:
        """Returns the episodes that the learner refused for good, with its words; they stay in the spool."""
        return self._sender.refused if self._sender is not None else {}

    def close(self) -> None:
        """Ends the sender and gives the spool back."""
        if self._sender is not None:
            self._sender.stop()
            self._sender = None
        self.spool.close()
        self.evaluations.close()

    def _spool_of(self, mode: Mode) -> Spool:
        return self.evaluations if mode is Mode.EVALUATE else self.spool

    def _told(self, episode_id: str, reason: Reason, message: str) -> None:
        """Hears from the sender's thread what became of an episode."""
        if reason in (Reason.OK, Reason.EPISODE_DUPLICATE):
            self.last_word = ""
        elif message != self.last_word:
            self.last_word = message
            self._log.warning(f"episode {episode_id} is not handed over yet: {reason.name}: {message}")
