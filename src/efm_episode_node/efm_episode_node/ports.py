"""What a runner of episodes needs: its limits, and the parts it acts through, as small protocols without ROS.

The node fills them in; tests do so with small fakes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from efm_core.summary import Mode, Summary
from efm_episode_node.episode_watch import WatchLimits
from efm_episode_node.run_types import ActRequest, RunRequest, Scene


@dataclass(frozen=True)
class RunnerSettings:
    """Deadlines (steady clock) and limits.

    Attributes:
        ready_s: For nodes, topics and services that an episode needs.
        cancel_s: For an actor to confirm that it has stopped.
        instant_limit: Practice pauses after so many successes in a row that were seen at once after the
            reset.
        fault_limit: A run ends after so many faults in a row.
        fault_pause_s: Rest after a fault, longer after each that follows.
        watch: Limits within an episode.
    """

    ready_s: float = 60.0
    cancel_s: float = 5.0
    instant_limit: int = 3
    fault_limit: int = 5
    fault_pause_s: float = 1.0
    watch: WatchLimits = dataclasses.field(default_factory=WatchLimits)


class Station(Protocol):
    """The robot and the nodes around it. Called from the runner's thread; nothing blocks longer than it
    says.
    """

    def missing(self, request: RunRequest) -> str:
        """Names what an episode needs and is not there, for people; empty when all is there. Returns at
        once.
        """

    def reset(self, seed: int, instruction: str) -> Scene:
        """Makes the scene ready; raises WaitTimeout after its own deadline, BadRequest for what cannot be
        done.
        """

    def announce(self, episode_id: str, instruction: str, start_ns: int) -> None:
        """Tells all nodes which episode runs from now on; with an empty id that none does."""

    def act(self, request: ActRequest) -> int:
        """Lets somebody act and returns a ticket; `ActEnded` with the ticket comes when that has ended."""

    def cancel_act(self, ticket: int) -> None:
        """Asks an actor to stop; `ActEnded` still comes."""


class Closing(Protocol):
    """An episode on its way to the disk."""

    def done(self) -> bool:
        """Returns whether `result` would not wait."""

    def result(self) -> Path:
        """Waits with a deadline and returns the episode's folder.

        Raises:
            EpisodeInvalid, SpoolFull, WaitTimeout: It is not there and was dropped.
        """


class Recording(Protocol):
    """Records one episode at a time. Called from the runner's thread."""

    def begin(self, episode_id: str, start_ns: int, mode: Mode) -> None:
        """Records from the observation of `start_ns` on; raises SpoolFull."""

    def newest_ns(self) -> int:
        """Returns the stamp of the newest observation of which all parts have come; 0 before the first."""

    def finish(self, summary: Summary) -> Closing:
        """Ends the episode; the next one may begin while this one is being written."""

    def abort(self) -> None:
        """Drops the episode; does nothing when none is recorded."""


class Shelf(Protocol):
    """Where finished episodes go."""

    def require_space(self, mode: Mode) -> None:
        """Raises SpoolFull when there is no room for another episode."""

    def keep(self, summary: Summary, folder: Path) -> None:
        """Takes a finished episode and hands it over where its mode says so."""
