"""What an episode run is asked for, hears, and tells: plain values, without ROS.

Events reach the runner from the threads of the node through one queue; stamps are in nanoseconds of the
robot's clock.
"""

from __future__ import annotations

import collections
import itertools
import math
from dataclasses import dataclass
from enum import Enum, IntEnum

from efm_core.errors import BadRequest, Reason, nearest
from efm_core.summary import Actor, Mode, Outcome, Summary

ACTORS = {
    "policy": Actor.POLICY,
    "expert": Actor.EXPERT,
    "teleop": Actor.HUMAN,
    "external": Actor.EXTERNAL,
}


class Phase(IntEnum):
    """PHASE constants of EpisodeStatus."""

    UNSET = 0
    IDLE = 1
    RESETTING = 2
    WAITING = 3
    ACTING = 4
    SAVING = 5
    PAUSED = 6
    FAULT = 7


@dataclass(frozen=True)
class RunRequest:
    """One run of episodes; the fields of the goal of RunEpisodes, with the node's defaults filled in.

    Attributes:
        mode: COLLECT, PRACTICE or EVALUATE.
        episodes: How many; 0: until cancelled.
        instructions: To draw from. Empty: the reset chooses.
        max_steps: Greatest length of an episode in control steps.
        seed: Of the first episode; episode i uses seed + i. 0: seeds are drawn.
        actor: One of ACTORS.
        temperature: Of a policy. 0: its default; negative: greedy.
        end_on_truth: End an evaluation's episode at the world's own success.
    """

    mode: Mode
    actor: str
    max_steps: int
    episodes: int = 0
    instructions: tuple[str, ...] = ()
    seed: int = 0
    temperature: float = 0.0
    end_on_truth: bool = False

    def __post_init__(self) -> None:
        """Checks the fields against one another.

        Raises:
            BadRequest: One is out of range or contradicts another.
        """
        if self.mode is Mode.UNSET:
            raise BadRequest("mode: expected COLLECT (1), PRACTICE (2) or EVALUATE (3), found 0")
        if self.actor not in ACTORS:
            near = nearest(self.actor, ACTORS)
            raise BadRequest(f"actor: expected one of {', '.join(ACTORS)}, found '{self.actor}'{near}")
        if self.mode is not Mode.COLLECT and self.actor != "policy":
            raise BadRequest(
                f"actor: expected policy in {self.mode.name}, found '{self.actor}'; only COLLECT takes others"
            )
        if self.end_on_truth and self.mode is not Mode.EVALUATE:
            raise BadRequest(
                f"end_on_truth: expected mode EVALUATE, found {self.mode.name}; nothing that trains may see "
                "the truth"
            )
        if self.max_steps < 1 or not math.isfinite(self.temperature):
            raise BadRequest(
                f"expected max_steps >= 1 and a finite temperature, found {self.max_steps} and "
                f"{self.temperature}"
            )
        if any(not text.strip() for text in self.instructions):
            raise BadRequest("instructions: expected texts, found an empty one")

    @property
    def judged(self) -> bool:
        """True when the success detector ends episodes, so that a reward node is needed."""
        return self.mode is not Mode.COLLECT and not self.end_on_truth


@dataclass(frozen=True)
class Scene:
    """What a reset gave: the stamp of the first observation that counts, the seed (0: none) and the
    instruction.
    """

    start_ns: int
    seed: int
    instruction: str


@dataclass(frozen=True)
class ActRequest:
    """What an actor is asked to do; see Act.action."""

    actor: str
    episode_id: str
    instruction: str
    start_ns: int
    temperature: float
    seed: int
    max_steps: int


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    reason: Reason
    episodes: int = 0
    successes: int = 0
    episode_ids: tuple[str, ...] = ()
    message: str = ""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the fields of EpisodeStatus that the runner knows."""

    phase: Phase = Phase.IDLE
    mode: Mode = Mode.UNSET
    actor: Actor = Actor.UNSET
    episode_id: str = ""
    instruction: str = ""
    step: int = 0
    episodes_done: int = 0
    episodes_wanted: int = 0
    successes: int = 0
    message: str = ""


class Tally:
    """Which episodes of a run were done and which are next; an episode is its index, which decides its seed.

    Attributes:
        ids: Of the episodes that count, in order.
        successes: How many of them ended with success.
    """

    def __init__(self, wanted: int) -> None:
        """Begins; `wanted` 0: there is no end."""
        self._wanted = wanted
        self._fresh = itertools.count()
        self._again: collections.deque[int] = collections.deque()
        self.ids: list[str] = []
        self.successes = 0

    def is_short(self, expected: int) -> bool:
        """Returns whether more episodes are needed than those that count and those that are expected to."""
        return self._wanted == 0 or len(self.ids) + expected < self._wanted

    def next(self) -> int:
        """Returns the index of the next episode."""
        return self._again.popleft() if self._again else next(self._fresh)

    def repeat(self, index: int) -> None:
        """Puts an episode back that was not done."""
        self._again.append(index)

    def count(self, summary: Summary) -> None:
        """Counts an episode that was done."""
        self.ids.append(summary.episode_id)
        self.successes += summary.outcome is Outcome.SUCCESS


# Events -----------------------------------------------------------------------------------------------------


class Mark(Enum):
    """What a person says."""

    SUCCESS = "mark_success"
    FAILURE = "mark_failure"
    DISCARD = "discard"
    RESET_DONE = "reset_done"


@dataclass(frozen=True)
class Stepped:
    """The actor did one control step.

    Attributes:
        stamp_ns: When it was due: stamp of the observation, and control periods more within a chunk of
            actions.
        episode_id: Episode that the step belongs to; empty when the actor does not say.
        bundle_id: Of a policy.
        moved: False for holding still and dry runs: a sign of life, but no step.
    """

    stamp_ns: int
    episode_id: str
    bundle_id: str = ""
    moved: bool = True


@dataclass(frozen=True)
class Judged:
    """The reward node judged the observation of that stamp."""

    stamp_ns: int
    episode_id: str
    bundle_id: str
    expectation: float
    held: int
    success: bool


@dataclass(frozen=True)
class TruthSeen:
    """The world says whether its success rule holds in the observation of that stamp."""

    stamp_ns: int
    success: bool


@dataclass(frozen=True)
class ActEnded:
    """The actor's result; `accepted` is False when it did not take the goal."""

    ticket: int
    reason: Reason
    outcome: Outcome = Outcome.UNSET
    steps: int = 0
    bundle_id: str = ""
    version: int = 0
    message: str = ""
    accepted: bool = True


@dataclass(frozen=True)
class Fault:
    """Something in the recording or the middleware failed while an episode ran."""

    message: str


@dataclass(frozen=True)
class Wake:
    """A flag of `Controls` changed."""


Event = Mark | Stepped | Judged | TruthSeen | ActEnded | Fault | Wake


@dataclass
class Controls:
    """What holds a run back or ends it; set by the node, read by the runner. Post `Wake` after a change.

    Attributes:
        paused: By a person, between episodes.
        estop: Pressed.
        learner_pauses: Why the learner takes no episodes; empty: it does.
        cancelled: The run shall end.
        closing: The node shuts down, and nobody takes answers any more.
    """

    paused: bool = False
    estop: bool = False
    learner_pauses: str = ""
    cancelled: bool = False
    closing: bool = False
