"""Runs episodes: reset, act, stop, save, hand over; again and again, and says at every moment what it waits
for.

One plain sequence in a thread of its own, without ROS. It acts through a `Station` (the robot and the nodes
around it) and a `Recording`, and hears of everything through one queue of events. Every wait has a deadline
and names what it waits for, except for pauses, which name who can end them.
Left out: how a scene is reset (`resets`), how messages are recorded (`recorder`), and the hand-over itself.
"""

from __future__ import annotations

import dataclasses
import queue
import time
from collections.abc import Callable
from datetime import datetime, timezone

import numpy as np

from efm_core.errors import BadRequest, EfmError, EpisodeInvalid, Reason, SpoolFull, WaitTimeout, reason_of
from efm_core.ids import new_episode_id
from efm_core.summary import EndReason, Mode, Outcome, Summary
from efm_episode_node.episode_watch import ActorNotReady, End, EpisodeWatch
from efm_episode_node.ports import Recording, RunnerSettings, Shelf, Station
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
)

POLL_S = 0.2


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
        self._instant = 0
        self._faults = 0
        self._refused_since: float | None = None

    def run(self, request: RunRequest, finished: Callable[[Summary], None]) -> RunResult:
        """Runs episodes until the wanted number, a cancel, or an error that another episode would not mend.

        Args:
            request: What to do.
            finished: Called after every episode that counts or was discarded.
        """
        self._instant = self._faults = 0
        self._refused_since = None
        ids: list[str] = []
        successes = 0
        self._set(
            mode=request.mode,
            actor=ACTORS[request.actor],
            episodes_wanted=request.episodes,
            episodes_done=0,
            successes=0,
        )
        result = RunResult(Reason.OK)
        try:
            while request.episodes == 0 or len(ids) < request.episodes:
                self._wait_until_free(request)
                summary = self._attempt(request, len(ids))
                if summary is None:
                    continue
                if summary.outcome is not Outcome.DISCARDED:
                    ids.append(summary.episode_id)
                    successes += summary.outcome is Outcome.SUCCESS
                    self._set(episodes_done=len(ids), successes=successes)
                finished(summary)
        except _Cancelled as error:
            result = RunResult(Reason.CANCELLED, message=str(error))
        except EfmError as error:
            result = RunResult(reason_of(error), message=str(error))
        failed = result.reason not in (Reason.OK, Reason.CANCELLED)
        self.progress = Progress(
            phase=Phase.FAULT if failed else Phase.IDLE, message=result.message if failed else ""
        )
        self._tell(self.progress)
        return dataclasses.replace(result, episodes=len(ids), successes=successes, episode_ids=tuple(ids))

    # One episode --------------------------------------------------------------------------------------------

    def _attempt(self, request: RunRequest, index: int) -> Summary | None:
        """Runs one episode; None when it ended in a fault and has to be repeated.

        Raises:
            EfmError: Too many faults in a row, or one that a repetition would not mend.
        """
        self._wait_until_ready(request)
        try:
            summary = self._episode(request, index)
        except ActorNotReady as error:
            self._rest_until_actor_is_ready(error)
            return None
        except (WaitTimeout, SpoolFull, EpisodeInvalid) as error:
            failure: EfmError = error
        else:
            self._refused_since = None
            if summary.end_reason is not EndReason.FAULT:
                self._faults = 0
                return summary
            failure = WaitTimeout(summary.message)
        self._faults += 1
        if self._faults >= self._settings.fault_limit:
            raise type(failure)(f"{self._faults} faults in a row, the last one: {failure}") from failure
        self._set(phase=Phase.FAULT, message=f"{failure}; the episode is repeated", episode_id="", step=0)
        self._rest(self._settings.fault_pause_s * self._faults)
        return None

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
            end = dataclasses.replace(end, stamp_ns=end.stamp_ns or self._recording.newest_ns())
        except BaseException:
            self._recording.abort()
            raise
        finally:
            self._station.announce("", "", 0)
        summary = self._judge(request, scene, watch, end)
        self._save(summary)
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
            try:
                end = watch.take(self.events.get(timeout=POLL_S))
            except queue.Empty:
                end = watch.look(time.monotonic())
            if end is None:
                end = self._interrupted()
            if watch.steps != self.progress.step:
                self.progress = dataclasses.replace(self.progress, step=watch.steps)
        if ticket and not watch.act_ended:
            self._station.cancel_act(ticket)
            self._await_stop(request, watch)
        return end

    def _await_stop(self, request: RunRequest, watch: EpisodeWatch) -> None:
        """Waits for the actor's result, which says which model acted; goes on without it after the
        deadline.
        """
        deadline = time.monotonic() + self._settings.cancel_s
        while not watch.act_ended and time.monotonic() < deadline and not self.controls.closing:
            try:
                event = self.events.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if isinstance(event, ActEnded):
                watch.note_end(event)
            elif not isinstance(event, Mark):
                watch.note(event)
        if not watch.act_ended:
            limit_s = self._settings.cancel_s
            watch.remark(f"the {request.actor} did not confirm within {limit_s:g} s that it stopped")

    def _interrupted(self) -> End | None:
        if self.controls.cancelled:
            return End(
                EndReason.CANCELLED, Outcome.DISCARDED
            )  # Cut short, it shows neither success nor failure.
        if self.controls.estop:
            return End(EndReason.SAFETY, Outcome.FAILURE, message="the e-stop is pressed")
        return None

    def _judge(self, request: RunRequest, scene: Scene, watch: EpisodeWatch, end: End) -> Summary:
        """Writes the summary, and turns a success that was seen at once into a discarded episode of
        practice.
        """
        summary = watch.summary(end, scene, self._robot)
        instant = summary.end_reason is EndReason.SUCCESS_DETECTED and summary.steps <= watch.held + 1
        self._instant = self._instant + 1 if instant else 0
        if instant and request.mode is Mode.PRACTICE:
            return dataclasses.replace(
                summary,
                outcome=Outcome.DISCARDED,
                message=f"the success detector fired {summary.steps} steps after the reset",
            )
        return summary

    def _save(self, summary: Summary) -> None:
        if summary.outcome is Outcome.DISCARDED:
            self._recording.abort()
            return
        self._set(phase=Phase.SAVING, message="")
        folder = self._recording.finish(summary)
        self._shelf.keep(summary, folder)

    def _instruction(self, request: RunRequest, seed: int) -> str:
        if not request.instructions:
            return ""
        rng = np.random.default_rng(seed) if seed else self._rng
        return request.instructions[int(rng.integers(len(request.instructions)))]

    # Waits --------------------------------------------------------------------------------------------------

    def _wait_until_free(self, request: RunRequest) -> None:
        """Waits while something holds the run back, as long as it takes; whoever can end it is named."""
        if self._instant >= self._settings.instant_limit and request.mode is Mode.PRACTICE:
            self.controls.paused = True
        while why := self._held_back(request):
            if self.progress.message != why:
                self._set(phase=Phase.PAUSED, message=why, episode_id="", step=0)
            self._sleep()
        self._raise_if_cancelled()

    def _held_back(self, request: RunRequest) -> str:
        self._raise_if_cancelled()
        if self.controls.estop:
            return "the e-stop is pressed; release it to go on"
        if self.controls.paused and self._instant >= self._settings.instant_limit:
            return (
                f"the success detector fired right after the reset in {self._instant} episodes in a row: its "
                "threshold is too high for this scene, or the reset does not undo the task; nothing of them "
                "was handed over. Mend that, then call episodes/pause with false"
            )
        self._instant = 0 if self._instant >= self._settings.instant_limit else self._instant
        if self.controls.paused:
            return "paused by a person; call episodes/pause with false to go on"
        if request.mode is Mode.PRACTICE and self.controls.learner_pauses:
            return self.controls.learner_pauses
        try:
            self._shelf.require_space(request.mode)
        except SpoolFull as error:
            return str(error)
        return ""

    def _wait_until_ready(self, request: RunRequest) -> None:
        limit_s = self._settings.ready_s
        deadline = time.monotonic() + limit_s
        while missing := self._station.missing(request):
            if time.monotonic() > deadline:
                raise WaitTimeout(f"waited {limit_s:g} s for {missing}")
            message = f"waits at most {limit_s:g} s for {missing}"
            if self.progress.message != message:
                self._set(phase=Phase.RESETTING, message=message, episode_id="", step=0)
            self._sleep()
            self._raise_if_cancelled()

    def wait_for_person(self, what: str, deadline_s: float) -> None:
        """Waits until a person confirms with `episodes/reset_done`; for resets, from the runner's thread.

        Raises:
            WaitTimeout: Nobody did.
        """
        self._drain()
        self._set(phase=Phase.WAITING, message=what)
        deadline = time.monotonic() + deadline_s
        while time.monotonic() < deadline:
            self._raise_if_cancelled()
            try:
                if self.events.get(timeout=POLL_S) is Mark.RESET_DONE:
                    return
            except queue.Empty:
                continue
        raise WaitTimeout(f"waited {deadline_s:g} s for a person: {what}")

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._sleep()
            self._raise_if_cancelled()

    def _sleep(self) -> None:
        """Waits a little; returns at once when something has come, which is of no interest between
        episodes.
        """
        try:
            self.events.get(timeout=POLL_S)
        except queue.Empty:
            return

    def _drain(self) -> None:
        while not self.events.empty():
            self.events.get()

    def _raise_if_cancelled(self) -> None:
        if self.controls.cancelled:
            raise _Cancelled("cancelled")

    def _set(self, **changes: object) -> None:
        self.progress = dataclasses.replace(self.progress, **changes)  # type: ignore[arg-type]
        self._tell(self.progress)
