"""The node `episodes` of one robot: runs episodes on demand, records them, and hands them over.

Serves the action `episodes/run`, and as Trigger and SetBool services for everything that cannot call actions:
`episodes/start`, `stop`, `mark_success`, `mark_failure`, `discard`, `reset_done`, `pause`. One thread runs
the episodes (`runner`), one hears the robot (`listener`), one writes (`recorder`), one hands over
(`hand_over`); this file wires them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from efm_core.embodiment import load_embodiment
from efm_core.errors import BadRequest, EfmError, Reason, reason_of
from efm_core.summary import Mode, Summary
from efm_episode_node.hand_over import HandOver
from efm_episode_node.learner_watch import LearnerWatch
from efm_episode_node.listener import RobotListener, decode_image
from efm_episode_node.parameters import MODES, EpisodeParameters
from efm_episode_node.recorder import EpisodeRecorder
from efm_episode_node.run_types import Event, Fault, Mark, Phase, RunRequest, RunResult, Wake
from efm_episode_node.runner import EpisodeRunner
from efm_episode_node.runs import NotActive, Run, RunThread
from efm_episode_node.station import RobotStation
from efm_episode_node.status import StatusBoard
from efm_msgs.action import RunEpisodes
from efm_msgs.msg import LearnerStatus, ModelStatus
from efm_ros.latched import newest_only
from efm_ros.lifecycle import ERROR, OK, WARN, EfmLifecycleNode
from efm_ros.names import robot_label
from efm_ros.qos import LATCHED, MODELS

STATUS_PERIOD_S = 1.0
# States of a bundle in which a policy node need not be waited for any more.
TAKEN = (ModelStatus.STATE_READY, ModelStatus.STATE_ACTIVE, ModelStatus.STATE_REFUSED)
NEARLY_FULL = 0.1  # Share of the quota; with less room the spool is told of.


class EpisodeNode(EfmLifecycleNode):
    """See the file's description."""

    Parameters = EpisodeParameters
    parameters: EpisodeParameters

    def __init__(self, **options: Any) -> None:
        """Declares the parameters."""
        super().__init__("episodes", **options)
        self._teardown = contextlib.ExitStack()
        self._runs: RunThread | None = None

    def acquire(self) -> None:
        """Takes the spool, listens to the robot, and offers the services."""
        settings = self.parameters
        keep = self._teardown
        self._embodiment = load_embodiment(settings.embodiment)
        robot = robot_label(self, "")
        self._shelf = HandOver(
            self,
            Path(settings.spool),
            settings.quota_bytes,
            settings.learner,
            settings.mode == "collect",
            robot,
        )
        keep.callback(self._shelf.close)
        self._learner_topic = f"{settings.learner.rstrip('/')}/learner_status"
        self._learner = LearnerWatch(settings.learner, settings.learner_timeout_s, self.get_logger().warning)
        self._board = StatusBoard(self, robot, self._shelf)
        keep.callback(self._board.close)
        recorder = EpisodeRecorder(
            self._shelf.folder_of,
            self._embodiment,
            settings.recorder_settings(),
            decode_image,
            self._recording_failed,
        )
        keep.callback(recorder.close)
        self._listener = RobotListener(self, self._embodiment, recorder, self._post, self.fail)
        keep.callback(self._listener.close)
        self._station = RobotStation(self, self._embodiment, self._listener, recorder)
        keep.callback(self._station.close)
        self._runner = EpisodeRunner(
            self._station, recorder, self._shelf, settings.runner_settings(), self._board.tell, robot
        )
        self._station.open(
            self._runner,
            settings.reset,
            settings.reset_instruction,
            settings.reset_timeout_s,
            settings.person_timeout_s,
            settings.is_dry_run(self._embodiment),
        )
        self._listener.start()
        self._runs = RunThread(self._runner, self._prepare, self.fail)
        keep.callback(self._runs.close)
        self._offer(keep)

    def start(self) -> None:
        """Begins to hand over, and to run where `autorun` says so."""
        self._runner.controls.closing = False
        self._shelf.start()
        if self.parameters.autorun:
            self._begin(self._default_request())

    def stop(self) -> None:
        """Ends the running episode in order; it is not kept."""
        if self._runs is not None:
            self._runner.controls.closing = True
            self._runs.cancel()
            self._runs.wait_idle(10.0)

    def release(self) -> None:
        """Ends all threads and gives the spool back."""
        self._teardown.close()
        self._runs = None

    def update_diagnostics(self) -> None:
        """Tells what the runner does and what lies in the spool."""
        if self._runs is None:
            return
        progress = self._runner.progress
        stuck = progress.phase in (Phase.PAUSED, Phase.FAULT)
        self.diagnose(
            "run",
            WARN if stuck else OK,
            progress.message or progress.phase.name.lower(),
            mode=progress.mode.name.lower(),
            episode_id=progress.episode_id,
            step=progress.step,
            episodes_done=progress.episodes_done,
            episodes_wanted=progress.episodes_wanted,
            successes=progress.successes,
        )
        refused = self._shelf.refused()
        to, level = f"to {self.parameters.learner}", OK
        if not self.parameters.learner:
            to = "nobody: episodes are kept"
        elif not self._learner.is_there and progress.mode is Mode.PRACTICE:
            to, level = f"no learner {self.parameters.learner} is there: episodes wait in the spool", WARN
        words = self._shelf.last_word or next(iter(refused.values()), "") or to
        self.diagnose("hand-over", ERROR if refused else level, words, refused=len(refused))
        self._diagnose_spool()

    def _diagnose_spool(self) -> None:
        episodes, used = self._board.spool
        quota, free = self.parameters.quota_bytes, self._shelf.spool.free()
        left = min(quota - used, free)
        self.diagnose(
            "spool",
            WARN if left < NEARLY_FULL * quota else OK,
            f"room for {left / (1 << 30):.1f} GB",
            episodes=episodes,
            used_bytes=used,
            quota_bytes=quota,
            disk_free_bytes=free,
        )

    # Services -----------------------------------------------------------------------------------------------

    def _offer(self, keep: contextlib.ExitStack) -> None:
        server = ActionServer(
            self, RunEpisodes, "episodes/run", self._execute, cancel_callback=self._cancel, result_timeout=300
        )
        keep.callback(server.destroy)
        marks = {mark.value: partial(self._mark, mark) for mark in Mark}
        for name, callback in {"start": self._start_run, "stop": self._stop_run, **marks}.items():
            service = self.create_service(Trigger, f"episodes/{name}", callback)
            keep.callback(self.destroy_service, service)
        service = self.create_service(SetBool, "episodes/pause", self._pause)
        keep.callback(self.destroy_service, service)
        heard = newest_only(self._on_estop, urgent=lambda message: message.data)
        estop = self.create_subscription(Bool, "estop", heard, LATCHED)
        keep.callback(self.destroy_subscription, estop)
        if self.parameters.learner:
            status = self.create_subscription(LearnerStatus, self._learner_topic, self._on_learner, LATCHED)
            keep.callback(self.destroy_subscription, status)
            model = self.create_subscription(ModelStatus, "model_status", self._on_model, MODELS)
            keep.callback(self.destroy_subscription, model)
        # Steady: simulated time stands still while a robot rests.
        timer = self.create_timer(
            STATUS_PERIOD_S, self._every_second, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        keep.callback(self.destroy_timer, timer)

    async def _execute(self, goal: ServerGoalHandle) -> RunEpisodes.Result:
        """Runs a goal in the runner's thread without keeping the executor."""
        feedback = RunEpisodes.Feedback()

        def finished(summary: Summary) -> None:
            feedback.last = self._board.publish(summary)
            feedback.episodes = self._runner.progress.episodes_done
            goal.publish_feedback(feedback)

        try:
            self._require_active()
            run = self._begin(self._request(goal.request), finished)
        except EfmError as error:
            goal.abort()
            return RunEpisodes.Result(reason=int(reason_of(error)), message=str(error))
        result: RunResult = await run.awaited(self.executor)
        if goal.is_cancel_requested:
            goal.canceled()
        elif result.reason is Reason.OK:
            goal.succeed()
        else:
            goal.abort()
        return RunEpisodes.Result(
            reason=int(result.reason),
            episodes=result.episodes,
            successes=result.successes,
            episode_ids=list(result.episode_ids),
            message=result.message,
        )

    def _cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        if self._runs is not None:
            self._runs.cancel()
        return CancelResponse.ACCEPT

    def _start_run(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            self._require_active()
            self._begin(self._default_request())
            response.success, response.message = True, "started"
        except EfmError as error:
            response.message = str(error)
        return response

    def _stop_run(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        running = self._runs is not None and self._runs.cancel()
        response.success = running
        response.message = "the run ends; the present episode is not kept" if running else "nothing runs"
        return response

    def _mark(self, mark: Mark, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        wanted = Phase.WAITING if mark is Mark.RESET_DONE else Phase.ACTING
        phase = self._runner.progress.phase
        response.success = phase is wanted
        if response.success:
            self._post(mark)
            response.message = "noted"
        else:
            why = self._runner.progress.message
            response.message = f"expected the phase {wanted.name}, found {phase.name}{why and f': {why}'}"
        return response

    def _pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._runner.controls.paused = request.data
        self._post(Wake())
        response.success = True
        response.message = "pauses after the present episode" if request.data else "goes on"
        return response

    # Runs ---------------------------------------------------------------------------------------------------

    def _require_active(self) -> None:
        if not self.is_active:
            raise NotActive("the episode node is not active")

    def _begin(self, request: RunRequest, finished: Callable[[Summary], Any] | None = None) -> Run:
        if self._runs is None:
            raise NotActive("the episode node is not configured")
        return self._runs.begin(request, finished or self._board.publish)

    def _prepare(self, request: RunRequest) -> None:
        """Gets ready for a run, in the run's thread."""
        self._learner.begin(request.mode)
        self._look_at_learner()
        self._station.prepare(request)

    def _default_request(self) -> RunRequest:
        """Makes the request that Trigger services and autorun mean."""
        settings = self.parameters
        goal = RunEpisodes.Goal(mode=int(MODES[settings.mode]), episodes=settings.episodes)
        return self._request(goal)

    def _request(self, goal: RunEpisodes.Goal) -> RunRequest:
        """Fills in the node's defaults.

        Raises:
            BadRequest: A field is out of range or contradicts another.
        """
        settings = self.parameters
        try:
            mode = Mode(goal.mode)
        except ValueError as error:
            known = ", ".join(f"{item.value} {item.name}" for item in Mode)
            raise BadRequest(f"mode: expected {known}, found {goal.mode}") from error
        return RunRequest(
            mode=mode,
            actor=goal.actor or self._default_actor(mode),
            max_steps=goal.max_steps or settings.max_steps or self._embodiment.max_steps,
            episodes=goal.episodes,
            instructions=tuple(goal.instructions) or settings.instructions,
            seed=goal.seed,
            temperature=goal.temperature,
            end_on_truth=goal.end_on_truth,
        )

    def _default_actor(self, mode: Mode) -> str:
        if mode is not Mode.COLLECT:
            return "policy"
        if self.parameters.actor:
            return self.parameters.actor
        simulated = self._embodiment.reset.method == "service"
        return "expert" if simulated or not self._station.actors.missing("expert") else "policy"

    # What the node hears ------------------------------------------------------------------------------------

    def _post(self, event: Event) -> None:
        self._runner.events.put(event)

    def _recording_failed(self, message: str) -> None:
        self._post(Fault(message))

    def _on_estop(self, message: Bool) -> None:
        self._runner.controls.estop = message.data
        self._post(Wake())

    def _on_learner(self, message: LearnerStatus) -> None:
        why_not = message.message or "its buffer is full"
        self._learner.heard(message.accepting, why_not, message.bundle_id)
        self._look_at_learner()

    def _on_model(self, message: ModelStatus) -> None:
        if message.state in TAKEN:
            self._learner.taken(message.node, message.bundle_id)
            self._look_at_learner()

    def _look_at_learner(self) -> None:
        self._runner.controls.learner_pauses = self._learner.why()
        self._post(Wake())

    def _every_second(self) -> None:
        """Publishes the status; forgets a learner that died; begins again where autorun says so."""
        assert self._runs is not None
        self._board.look(self._runner.progress)
        if not self.count_publishers(self._learner_topic):
            self._learner.lost()  # Robots go on without it, and keep their episodes.
        self._look_at_learner()
        failed = self._runs.last is not None and self._runs.last.reason not in (Reason.OK, Reason.CANCELLED)
        if self.parameters.autorun and self.is_active and self._runs.is_idle and failed:
            self.get_logger().warning("the run ended with an error and is begun again")
            self._begin(self._default_request())
