"""Watches one episode: takes its events in order and says when and how it ended.

A success counts at the observation that it was seen in; what the actor did later is trimmed. An actor that
reached the greatest length has one more observation to be judged, so that the end waits for it. Silence of
the actor, of the robot or of the reward node ends the episode as a fault. Without ROS, clock and threads:
time is an argument where it matters.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from efm_core.errors import BadRequest, Reason, WaitTimeout
from efm_core.summary import EndReason, Outcome, Summary
from efm_episode_node.run_types import (
    ACTORS,
    ActEnded,
    Event,
    Fault,
    Judged,
    Mark,
    RunRequest,
    Scene,
    Stepped,
    TruthSeen,
)

# An actor that says one of these at once is not ready yet: no model, not active, or busy with something else.
NOT_READY_REASONS = (Reason.NOT_ACTIVE, Reason.BUNDLE_UNKNOWN, Reason.BUSY)
# Stale input is not among them: a camera or simulator that stops says nothing about the policy's work.
SAFETY_REASONS = (Reason.NOT_FINITE, Reason.ESTOP, Reason.LIMIT)


@dataclass(frozen=True)
class WatchLimits:
    """Silences that end an episode (steady clock).

    Attributes:
        stall_s: Without a step of the actor, or a judgement of the reward node.
        settle_s: Without the last observation, or its judgement, after the actor's last step.
        behind_s: For steps that the actor counts in its result and that have not come yet.
    """

    stall_s: float = 15.0
    settle_s: float = 10.0
    behind_s: float = 2.0


@dataclass(frozen=True)
class End:
    """How an episode ended; `stamp_ns` is the last observation that counts, 0: the newest at that moment."""

    reason: EndReason
    outcome: Outcome
    stamp_ns: int = 0
    message: str = ""


class ActorNotReady(WaitTimeout):
    """The actor did not begin; it may later."""


class EpisodeWatch:
    """One episode from its first observation to its end. Used by one thread."""

    def __init__(
        self,
        request: RunRequest,
        episode_id: str,
        start_ns: int,
        limits: WatchLimits,
        newest_ns: Callable[[], int],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins; `newest_ns` gives the stamp of the newest observation that was recorded whole."""
        self.episode_id = episode_id
        self.ticket = 0
        self.act: ActEnded | None = None
        self.held = 0
        self._request = request
        self._start_ns = start_ns
        self._limits = limits
        self._newest_ns = newest_ns
        self._now = now
        self._step_stamps: list[int] = []
        # With those that held still, which an actor counts too.
        self._heard, self._heard_ns = 0, start_ns - 1
        self._judged: list[Judged] = []
        self._bundle_id = ""
        self._remarks: list[str] = []
        self._last_sign = now()
        self._last_judged = now()
        self._settling: End | None = None
        self._terminal_ns = 0

    @property
    def steps(self) -> int:
        """Control steps seen so far."""
        return len(self._step_stamps)

    @property
    def act_ended(self) -> bool:
        """True when the actor has given its result."""
        return self.act is not None

    def is_behind(self, until_ns: float = math.inf) -> bool:
        """Returns whether steps before an observation are still to come: those that the actor counts in its
        result travel apart from it, and from judgements.
        """
        claimed = self.act.steps if self.act is not None else 0
        is_silent = self._now() - self._last_sign >= self._limits.behind_s
        return self._heard < claimed and self._heard_ns < until_ns and not is_silent

    def remark(self, text: str) -> None:
        """Adds words for people to the summary."""
        self._remarks.append(text)

    def note(self, event: Event) -> None:
        """Keeps what an event says about the episode, without a judgement whether it ends."""
        # Who goes on past the greatest length is not heard any more; an actor's own last steps may come late.
        is_over = self._settling is not None and self.act is None
        if isinstance(event, Stepped) and event.episode_id in ("", self.episode_id) and not is_over:
            self._last_sign = self._now()
            # An observation that is shown again may be answered again; it is one step.
            if event.stamp_ns > self._heard_ns:
                self._heard, self._heard_ns = self._heard + 1, event.stamp_ns
            if event.moved and event.stamp_ns > self._last_step_ns:
                self._step_stamps.append(event.stamp_ns)
                self._bundle_id = event.bundle_id or self._bundle_id
        elif isinstance(event, Judged) and event.episode_id == self.episode_id:
            self._judged.append(event)
            self._last_judged = self._now()

    def note_end(self, event: ActEnded) -> None:
        """Keeps the actor's result."""
        if event.ticket == self.ticket:
            self.act = event

    def take(self, event: Event) -> End | None:
        """Takes one event; gives the end if it ends the episode."""
        self.note(event)
        if isinstance(event, Judged) and self._is_success(event):
            self.held = event.held
            return End(EndReason.SUCCESS_DETECTED, Outcome.SUCCESS, event.stamp_ns)
        if isinstance(event, TruthSeen):
            if self._request.end_on_truth and event.success and event.stamp_ns > self._start_ns:
                return End(EndReason.TRUTH, Outcome.SUCCESS, event.stamp_ns)
        elif isinstance(event, Mark):
            return _marked(event, bool(self._heard))
        elif isinstance(event, Fault):
            return End(EndReason.FAULT, Outcome.FAILURE, message=event.message)
        elif isinstance(event, ActEnded) and event.ticket == self.ticket:
            self.note_end(event)
            end = self._after_act(event)
            if end.reason not in (EndReason.MAX_STEPS, EndReason.ACTOR_DONE):
                return end
            self._settle(end)
        elif isinstance(event, Stepped) and self._settling is None:
            # Who commands from outside, and an actor that counts otherwise, is stopped here.
            slack = 0 if self._request.actor == "external" else 2
            if self.steps >= self._request.max_steps + slack:
                self._settle(End(EndReason.MAX_STEPS, Outcome.FAILURE))
        return self.look(self._now())

    def look(self, now: float) -> End | None:
        """Gives the end if the last observation has settled, or if somebody was silent for too long."""
        return self._silence(now) if self._settling is None else self._settled(self._settling, now)

    def _silence(self, now: float) -> End | None:
        """Gives the end if the actor or the reward node was silent for too long."""
        limit_s, actor = self._limits.stall_s, self._request.actor
        where = f"after step {self.steps}" if self.steps else "since the reset"
        if now - self._last_sign >= limit_s:
            what = "a command" if actor == "external" else f"a step of the {actor}"
            return _fault(f"expected {what}, found none for {limit_s:g} s {where}")
        if self._request.judged and now - self._last_judged >= limit_s:
            return _fault(f"expected a judgement of the reward node, found none for {limit_s:g} s {where}")
        return None

    def summary(self, end: End, scene: Scene, robot: str) -> Summary:
        """Makes the summary of the episode that ended so."""
        stamp_ns = max(end.stamp_ns, self._start_ns)
        judged = [event for event in self._judged if event.stamp_ns <= stamp_ns]
        return Summary(
            episode_id=self.episode_id,
            start_ns=self._start_ns,
            stamp_ns=stamp_ns,
            robot=robot,
            instruction=scene.instruction,
            mode=self._request.mode,
            outcome=end.outcome,
            end_reason=end.reason,
            actor=ACTORS[self._request.actor],
            seed=scene.seed,
            steps=sum(step_ns < stamp_ns for step_ns in self._step_stamps),
            policy_bundle_id=(self.act.bundle_id if self.act is not None else "") or self._bundle_id,
            policy_version=self.act.version if self.act is not None else 0,
            reward_bundle_id=judged[-1].bundle_id if judged else "",
            steps_to_go_first=judged[0].expectation if judged else math.nan,
            steps_to_go_last=judged[-1].expectation if judged else math.nan,
            message="; ".join(filter(None, (end.message, *self._remarks))),
        )

    def _settled(self, end: End, now: float) -> End | None:
        """Waits for the observation that the last command led to, and for its judgement."""
        if not self._terminal_ns and not self.is_behind() and self._newest_ns() > self._last_step_ns:
            self._terminal_ns = self._newest_ns()
        judged_ns = self._judged[-1].stamp_ns if self._judged else -1
        if self._terminal_ns and (not self._request.judged or judged_ns >= self._terminal_ns):
            return dataclasses.replace(end, stamp_ns=self._terminal_ns)
        limit_s = self._limits.settle_s
        if now - self._last_sign < limit_s:
            return None
        if not self._terminal_ns:
            return _fault(f"expected an observation after the last command, found none for {limit_s:g} s")
        return _fault(
            f"expected the reward node's judgement of the last observation, found none for {limit_s:g} s; it "
            f"judged {len(self._judged)} observations of this episode"
        )

    @property
    def _last_step_ns(self) -> int:
        return self._step_stamps[-1] if self._step_stamps else self._start_ns - 1

    def _is_success(self, event: Judged) -> bool:
        mine = event.episode_id == self.episode_id and event.stamp_ns >= self._start_ns
        return self._request.judged and mine and event.success

    def _settle(self, end: End) -> None:
        self._settling = end
        self._last_sign = self._now()

    def _after_act(self, act: ActEnded) -> End:
        """Says what an actor's result means for the episode.

        Raises:
            ActorNotReady: It did not begin, and may later.
            BadRequest: It cannot do what it is asked for, and would not the next time either.
        """
        if act.reason in NOT_READY_REASONS and not self.steps:
            raise ActorNotReady(f"the {self._request.actor}: {act.reason.name}: {act.message}")
        if act.reason in SAFETY_REASONS:
            return End(EndReason.SAFETY, Outcome.FAILURE, message=act.message)
        if act.reason is Reason.BAD_REQUEST:
            raise BadRequest(f"the {self._request.actor} refused: {act.message}")
        if act.reason is not Reason.OK:
            name = act.reason.name
            return _fault(f"the {self._request.actor} ended with {name}: {act.message}")
        claimed = act.outcome is Outcome.SUCCESS
        if act.steps >= self._request.max_steps and not claimed:
            return End(EndReason.MAX_STEPS, Outcome.FAILURE)
        outcome = act.outcome if act.outcome is not Outcome.UNSET else Outcome.FAILURE
        return End(EndReason.ACTOR_DONE, outcome)


def _marked(mark: Mark, acted: bool) -> End | None:
    if mark is Mark.SUCCESS and not acted:
        words = "marked as a success before the first control step: there is nothing to learn from"
        return End(EndReason.PERSON, Outcome.DISCARDED, message=words)
    return {
        Mark.SUCCESS: End(EndReason.PERSON, Outcome.SUCCESS),
        Mark.FAILURE: End(EndReason.PERSON, Outcome.FAILURE),
        Mark.DISCARD: End(EndReason.PERSON, Outcome.DISCARDED),
    }.get(mark)


def _fault(message: str) -> End:
    return End(EndReason.FAULT, Outcome.FAILURE, message=message)
