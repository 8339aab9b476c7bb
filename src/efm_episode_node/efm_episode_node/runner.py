"""Runs episodes: reset, act, stop, save, hand over; again and again, and says at every moment what it waits
for.

One plain sequence in a thread of its own, without ROS. It acts through a `Station` (the robot and the nodes
around it) and a `Recording`, and hears of everything through one queue of events. Every wait has a deadline
and names what it waits for, except for pauses, which name who can end them.
Left out: how a scene is reset (`resets`), how messages are recorded (`recorder`), and the hand-over itself.
"""

from __future__ import annotations

import dataclasses
import math
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from efm_core.errors import BadRequest, EfmError, EpisodeInvalid, Reason, SpoolFull, WaitTimeout, reason_of
from efm_core.ids import new_episode_id
from efm_core.summary import EndReason, Mode, Outcome, Summary
from efm_episode_node.episode_watch import ActorNotReady, End, EpisodeWatch
from efm_episode_node.pauses import Pauses
from efm_episode_node.ports import Closing, Recording, RunnerSettings, Shelf, Station
from efm_episode_node.run_types import (
    ACTORS,
    ActEnded,
    ActRequest,
    Controls,
    Event,
    Mark,
    Phase,
    Progress,
    RunRequest,
    RunResult,
    Scene,
    Tally,
)

POLL_S = 0.2
# Faults that another attempt may not meet again.
REPEATABLE = (WaitTimeout, SpoolFull, EpisodeInvalid)


@dataclass(frozen=True)
class _Saving:
    """An episode that is being written to its end."""

    index: int
    summary: Summary
    closing: Closing

    @property
    def counts(self) -> bool:
        """False for one that a fault ended."""
        return self.summary.end_reason is not EndReason.FAULT


class _Cancelled(Exception):
    """The run was cancelled, by its client or a person."""


class EpisodeRunner:
    """Runs one request at a time; `run` blocks and is called from one thread, everything else from any."""

    def __init__(
        self,
        station: Station,
        recording: Recording,
        shelf: Shelf,
        settings: RunnerSettings,
        tell: Callable[[Progress], None],
        robot: str = "",
        rng: np.random.Generator | None = None,
    ) -> None:
        """Takes its parts; `tell` is called with every change."""
        self._station = station
        self._recording = recording
        self._shelf = shelf
        self._settings = settings
        self._tell = tell
        self._robot = robot
        self._rng = rng if rng is not None else np.random.default_rng()
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.controls = Controls()
        self.progress = Progress()
        self._pauses = Pauses(self.controls, shelf, settings.instant_limit)
        self._faults: list[EfmError] = []
        self._refused_since: float | None = None
        self._tally = Tally(0)
        self._saving: _Saving | None = None
        self._finished: Callable[[Summary], None] = lambda summary: None

    def run(self, request: RunRequest, finished: Callable[[Summary], None]) -> RunResult:
        """Runs episodes until the wanted number, a cancel, or an error that another episode would not mend.

        Args:
            request: What to do.
            finished: Called after every episode that counts or was discarded.
        """
        self._pauses.begin()
        self._faults, self._refused_since = [], None
        self._tally, self._finished = Tally(request.episodes), finished
        self._set(
            mode=request.mode,
            actor=ACTORS[request.actor],
            episodes_wanted=request.episodes,
            episodes_done=0,
            successes=0,
        )
        result = RunResult(Reason.OK)
        try:
            while self._saving is not None or self._tally.is_short(0):
                self._raise_if_hopeless()
                if self._tally.is_short(self._saving is not None and self._saving.counts):
                    self._wait_until_free(request)
                    self._attempt(request)
                else:
                    self._settle()
        except _Cancelled as error:
            result = RunResult(Reason.CANCELLED, message=str(error))
        except EfmError as error:
            result = RunResult(reason_of(error), message=str(error))
        self._settle()
        failed = result.reason not in (Reason.OK, Reason.CANCELLED)
        self.progress = Progress(
            phase=Phase.FAULT if failed else Phase.IDLE, message=result.message if failed else ""
        )
        self._tell(self.progress)
        tally = self._tally
        return dataclasses.replace(
            result, episodes=len(tally.ids), successes=tally.successes, episode_ids=tuple(tally.ids)
        )

    # One episode --------------------------------------------------------------------------------------------

    def _attempt(self, request: RunRequest) -> None:
        """Runs one episode; one that ended in a fault is repeated later.

        Raises:
            EfmError: What a repetition would not mend.
        """
        self._wait_until_ready(request)
        index = self._tally.next()
        try:
            summary = self._episode(request, index)
        except ActorNotReady as error:
            self._tally.repeat(index)
            self._rest_until_actor_is_ready(error)
            return
        except REPEATABLE as error:
            failure: EfmError = error
        else:
            self._refused_since = None
            if summary.end_reason is not EndReason.FAULT:
                if summary.outcome is Outcome.DISCARDED and summary.end_reason is EndReason.PERSON:
                    self._tally.repeat(index)
                return
            failure = WaitTimeout(summary.message)
        self._tally.repeat(index)
        self._faults.append(failure)
        self._raise_if_hopeless()
        self._set(phase=Phase.FAULT, message=f"{failure}; the episode is repeated", episode_id="", step=0)
        self._rest(self._settings.fault_pause_s * len(self._faults))

    def _raise_if_hopeless(self) -> None:
        """Raises the last fault when there were too many in a row."""
        if len(self._faults) >= self._settings.fault_limit:
            last = self._faults[-1]
            raise type(last)(f"{len(self._faults)} faults in a row, the last one: {last}") from last

    def _rest_until_actor_is_ready(self, error: ActorNotReady) -> None:
        """Rests before the actor is asked again.

        Raises:
            WaitTimeout: It was asked for too long.
        """
        now = time.monotonic()
        since = self._refused_since = self._refused_since or now
        limit_s = self._settings.ready_s
        if now - since >= limit_s:
            raise WaitTimeout(f"waited {limit_s:g} s for {error}") from error
        self._set(
            phase=Phase.RESETTING, message=f"waits at most {limit_s:g} s for {error}", episode_id="", step=0
        )
        self._rest(self._settings.fault_pause_s)

    def _episode(self, request: RunRequest, index: int) -> Summary:
        seed = request.seed + index if request.seed else 0
        self._set(phase=Phase.RESETTING, message="", step=0, episode_id="")
        scene = self._station.reset(seed, self._instruction(request, seed))
        if not scene.instruction:
            raise BadRequest("instructions: expected at least one, found none, and the reset chooses none")
        episode_id = new_episode_id(datetime.now(timezone.utc), self._rng)
        self._drain()
        self._recording.begin(episode_id, scene.start_ns, request.mode)
        try:
            self._station.announce(episode_id, scene.instruction, scene.start_ns)
            self._set(phase=Phase.ACTING, episode_id=episode_id, instruction=scene.instruction, message="")
            watch = EpisodeWatch(
                request, episode_id, scene.start_ns, self._settings.watch, self._recording.newest_ns
            )
            end = self._act(request, scene, watch)
        except BaseException:
            self._recording.abort()
            raise
        finally:
            self._station.announce("", "", 0)
        summary = self._judge(request, scene, watch, end)
        self._save(index, summary)
        return summary

    def _act(self, request: RunRequest, scene: Scene, watch: EpisodeWatch) -> End:
        """Lets the actor act until something ends it, stops it, and returns how it ended."""
        ticket = 0
        if request.actor != "external":
            ticket = self._station.act(
                ActRequest(
                    request.actor,
                    watch.episode_id,
                    scene.instruction,
                    scene.start_ns,
                    request.temperature,
                    scene.seed if request.seed else 0,
                    request.max_steps,
                )
            )
            watch.ticket = ticket
        end: End | None = None
        while end is None:
            event = self._hear()
            end = watch.look(time.monotonic()) if event is None else watch.take(event)
            if end is None:
                end = self._interrupted()
            if watch.steps != self.progress.step:
                self.progress = dataclasses.replace(self.progress, step=watch.steps)
        # Before the actor is stopped, which takes a while: what a camera shows meanwhile is no part of it.
        end = dataclasses.replace(end, stamp_ns=end.stamp_ns or self._recording.newest_ns())
        if ticket:
            if not watch.act_ended:
                self._station.cancel_act(ticket)
            self._await_stop(request, watch, end.stamp_ns or math.inf)
        return end

    def _await_stop(self, request: RunRequest, watch: EpisodeWatch, until_ns: float) -> None:
        """Waits for the actor's result, which says which model acted, and for its steps before an
        observation; goes on without them after the deadline.
        """
        deadline = time.monotonic() + self._settings.cancel_s
        while not watch.act_ended or watch.is_behind(until_ns):
            if time.monotonic() >= deadline or self.controls.closing:
                break
            event = self._hear()
            if isinstance(event, ActEnded):
                watch.note_end(event)
            elif event is not None and not isinstance(event, Mark):
                watch.note(event)
        if not watch.act_ended:
            limit_s = self._settings.cancel_s
            watch.remark(f"the {request.actor} did not confirm within {limit_s:g} s that it stopped")

    def _interrupted(self) -> End | None:
        if self.controls.cancelled:
            # Cut short, it shows neither success nor failure.
            return End(EndReason.CANCELLED, Outcome.DISCARDED)
        if self.controls.estop:
            return End(EndReason.SAFETY, Outcome.FAILURE, message="the e-stop is pressed")
        return None

    def _judge(self, request: RunRequest, scene: Scene, watch: EpisodeWatch, end: End) -> Summary:
        """Writes the summary, and turns a success that was seen at once into a discarded episode of
        practice.
        """
        summary = watch.summary(end, scene, self._robot)
        if self._pauses.is_instant(summary, watch.held) and request.mode is Mode.PRACTICE:
            return dataclasses.replace(
                summary,
                outcome=Outcome.DISCARDED,
                message=f"the success detector fired {summary.steps} steps after the reset",
            )
        return summary

    def _save(self, index: int, summary: Summary) -> None:
        """Lets the episode be written to its end, while the next one begins."""
        is_kept = summary.outcome is not Outcome.DISCARDED
        if not is_kept:
            self._recording.abort()
        self._settle()
        if not is_kept:
            self._finished(summary)
            return
        self._set(phase=Phase.SAVING, message="")
        self._saving = _Saving(index, summary, self._recording.finish(summary))

    def _settle(self, wait: bool = True) -> None:
        """Counts the episode that was being written, once it is on the disk; one that failed is repeated."""
        saving = self._saving
        if saving is None or not (wait or saving.closing.done()):
            return
        self._saving = None
        try:
            folder = saving.closing.result()
        except REPEATABLE as error:
            if saving.counts:
                self._tally.repeat(saving.index)
            self._faults.append(error)
            # Told in passing: the episode that runs meanwhile is not touched.
            self._tell(
                dataclasses.replace(self.progress, phase=Phase.FAULT, message=f"{error}; repeated later")
            )
            return
        self._shelf.keep(saving.summary, folder)
        if saving.counts:
            self._faults.clear()
            self._tally.count(saving.summary)
            self._set(episodes_done=len(self._tally.ids), successes=self._tally.successes)
            self._finished(saving.summary)

    def _instruction(self, request: RunRequest, seed: int) -> str:
        if not request.instructions:
            return ""
        rng = np.random.default_rng(seed) if seed else self._rng
        return request.instructions[int(rng.integers(len(request.instructions)))]

    # Waits --------------------------------------------------------------------------------------------------

    def _wait_until_free(self, request: RunRequest) -> None:
        """Waits while something holds the run back, as long as it takes."""
        self._raise_if_cancelled()
        while why := self._pauses.why(request):
            if self.progress.message != why:
                self._set(phase=Phase.PAUSED, message=why, episode_id="", step=0)
            self._hear()
            self._raise_if_cancelled()

    def _wait_until_ready(self, request: RunRequest) -> None:
        limit_s = self._settings.ready_s
        deadline = time.monotonic() + limit_s
        while missing := self._station.missing(request):
            if time.monotonic() > deadline:
                raise WaitTimeout(f"waited {limit_s:g} s for {missing}")
            message = f"waits at most {limit_s:g} s for {missing}"
            if self.progress.message != message:
                self._set(phase=Phase.RESETTING, message=message, episode_id="", step=0)
            self._hear()
            self._raise_if_cancelled()

    def wait_for_person(self, what: str, deadline_s: float) -> None:
        """Waits until a person confirms with `episodes/reset_done`; for resets, from the runner's thread.

        Raises:
            WaitTimeout: Nobody did.
        """
        self._settle()
        self._drain()
        self._set(phase=Phase.WAITING, message=what)
        deadline = time.monotonic() + deadline_s
        while time.monotonic() < deadline:
            self._raise_if_cancelled()
            if self._hear() is Mark.RESET_DONE:
                return
        raise WaitTimeout(f"waited {deadline_s:g} s for a person: {what}")

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._hear()
            self._raise_if_cancelled()

    def _hear(self) -> Event | None:
        """Returns the next event, or None after a little while; counts what was written meanwhile."""
        self._settle(wait=False)
        try:
            return self.events.get(timeout=POLL_S)
        except queue.Empty:
            return None

    def _drain(self) -> None:
        while not self.events.empty():
            self.events.get()

    def _raise_if_cancelled(self) -> None:
        if self.controls.cancelled:
            raise _Cancelled("cancelled")

    def _set(self, **changes: object) -> None:
        self.progress = dataclasses.replace(self.progress, **changes)  # type: ignore[arg-type]
        self._tell(self.progress)
