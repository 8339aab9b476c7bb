"""One robot's control loop: observation in, gated command out, and holding still where something is wrong.

No ROS in here: the node feeds it (inputs, ticks, a frequent `check`) and gives it `RobotPorts` to act
through. Any thread may call any method; one lock per robot keeps commands in order, so that nothing follows
a hold-still command by accident. Exactly one command answers each observation that is acted on. Who decides
it: the policy's plan, or the person who has taken over; inference happens elsewhere, between
`RobotPorts.request` and `RobotLoop.decided`. Left out: topics, threads, inference, and the choice of the
model, which the act brings along.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from efm_core.embodiment import Embodiment
from efm_core.errors import ActionNotFinite, EfmError, Reason, reason_of
from efm_core.image import ImageArray
from efm_core.observation import ObservationAssembler
from efm_policy_node.action_plan import ActionPlan
from efm_policy_node.answer import Act, Answerer, Seen
from efm_policy_node.cadence import Cadence
from efm_policy_node.command_outlet import CommandOutlet
from efm_policy_node.input_watch import Freshness, InputWatch
from efm_policy_node.loop_ports import ActGoal, ActRefused, Ending, Job, LoopSettings, LoopStatus, RobotPorts
from efm_policy_node.onnx_policy import Decision, OnnxPolicy, Request
from efm_policy_node.person import Person


class RobotLoop:
    """The control loop of one robot.

    Life: `enable`, any number of `begin` ... `RobotPorts.ended`, then `disable`. Inputs may come always.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        settings: LoopSettings,
        ports: RobotPorts,
        ros_now_ns: Callable[[], int],
        steady_s: Callable[[], float],
    ) -> None:
        """Makes a loop that is not enabled.

        Args:
            embodiment: Of the robot.
            settings: How it runs.
            ports: How it acts.
            ros_now_ns: The robot's clock [ns]; may stand still or go back.
            steady_s: A clock that does neither [s].
        """
        self._settings = replace(settings, infer_ahead=0) if settings.lockstep else settings
        self._lockstep = settings.lockstep
        self._execute = embodiment.action.execute
        self._has_cameras = bool(embodiment.cameras)
        self._period_s = 1.0 / embodiment.control_rate_hz
        self._ports, self._ros_now_ns, self._steady_s = ports, ros_now_ns, steady_s
        self._lock = threading.RLock()
        self._assembler = ObservationAssembler(embodiment)
        clock = None if settings.lockstep else ros_now_ns
        self._outlet = CommandOutlet(embodiment, ports.send, clock, settings.dry_run)
        # The check that finds the input stale comes itself up to one of its periods late.
        limit_s = embodiment.watchdog_periods * self._period_s
        self._watchdog_s = max(limit_s - settings.check_period_s, 0.5 * limit_s)
        self._watch = InputWatch(None if settings.lockstep else self._watchdog_s, settings.stale_end_s)
        self._cadence = Cadence(0.0 if settings.lockstep else embodiment.control_rate_hz)
        self._person = Person(settings.human_timeout_s, math.ceil(settings.release_ramp_s / self._period_s))
        self._answerer = Answerer(self._outlet, self._person, self._cadence, self._settings, ports, steady_s)
        self._enabled = self._estop = False
        self._act: Act | None = None
        self._last_goal = ActGoal()
        self._input_s = -math.inf  # Last input, steady clock.
        self._stale_text = ""
        self._stamp_ns = 0  # Of the newest observation.
        self._due_s: float | None = None  # The tick that waits for an observation, steady clock.
        self._ticked_ns: int | None = None
        self._time_line = self._ticket = 0  # Outcomes of inferences with another ticket come too late.
        self._inferring = False
        self._waiting: Seen | None = None  # Waits for the inference.
        self._pending: Seen | None = None  # Lockstep: waits for the person.
        self._plan: ActionPlan | None = None

    def enable(self) -> None:
        """Lets acts begin and people take over."""
        with self._lock:
            self._enabled = True

    def disable(self) -> None:
        """Ends what runs and holds still; nothing is sent afterwards."""
        with self._lock:
            self._end(Reason.NOT_ACTIVE, "the node was deactivated or shut down")
            self._drop_plan()
            self._outlet.hold()
            self._enabled = False

    def stop_leftover(self) -> None:
        """Stops what a killed process left moving. To be called where nobody else commands the robot."""
        with self._lock:
            if self._enabled and self._act is None and not self._person.has_control:
                self._outlet.stop_leftover()

    def begin(self, goal: ActGoal, policy: OnnxPolicy | None) -> None:
        """Begins an act.

        Raises:
            ActRefused: Not enabled, another act runs, or the e-stop is pressed.
            LimitExceeded: The robot is outside its bounds.
        """
        with self._lock:
            if not self._enabled:
                raise ActRefused(Reason.NOT_ACTIVE, "expected an active node; activate it first")
            if self._act is not None:
                running = self._act.goal.episode_id or "without an episode"
                raise ActRefused(Reason.BUSY, f"another act runs ({running}); cancel it first")
            if self._estop:
                raise ActRefused(
                    Reason.ESTOP, "the e-stop is pressed; release it on 'estop' or with 'estop_set'"
                )
            self._drop_plan()
            self._outlet.begin()
            self._person.new_act()
            self._act, self._last_goal = Act(goal, policy), goal
            self._due_s = self._ticked_ns = None
            self._assembler.start(goal.start_ns)
            self._cadence.pause()
            now_s = self._steady_s()
            self._watch.feed(now_s, self._ros_now_ns() / 1e9)
            if self._lockstep:
                self._input_s = now_s
                self._see(now_s)

    def cancel(self, reason: Reason = Reason.CANCELLED, message: str = "cancelled by its client") -> None:
        """Ends the act, if one runs, for a reason from outside; holds still."""
        with self._lock:
            self._end(reason, message)

    def set_estop(self, pressed: bool) -> None:
        """Presses or releases the e-stop; pressed, the robot is held still and nothing else is sent."""
        with self._lock:
            if pressed and not self._estop:
                self._estop = True
                self._end(Reason.ESTOP, "the e-stop was pressed")
                self._drop_plan()
                self._outlet.hold()
            self._estop = pressed

    def set_takeover(self, on: bool) -> None:
        """Gives control to a person at once, or back to the policy, which plans anew and comes gradually."""
        with self._lock:
            if on == self._person.has_control:
                return
            seen = self._waiting or self._pending
            self._drop_plan()
            if on:
                self._person.has_control = True
                self._pending = seen if self._lockstep else None
                if not self._lockstep and self._answerer.wish() is None:
                    self._outlet.hold()
                return
            self._person.let_go()
            if self._act is None:
                self._outlet.hold()
                self._cadence.pause()
            elif seen is not None:
                self._respond(seen)

    def human_command(self, values: np.ndarray) -> None:
        """Takes what a person wants, float [D]; used while they have control, or for blending."""
        with self._lock:
            self._person.command(values, self._steady_s())

    def check(self) -> None:
        """Looks after time: stale input, slow inference, the person's pace. Called every `check_period_s`."""
        with self._lock:
            now_s = self._steady_s()
            if self._pending is not None:
                due = now_s - self._answerer.answered_s >= self._period_s
                if due and self._enabled and not self._estop and self._answerer.wish() is not None:
                    seen, self._pending = self._pending, None
                    self._answer_by_hand(seen)
            elif self._waiting is not None:
                self._check_inference(now_s - self._waiting.due_s)
            elif self._act is not None:
                self._check_input(now_s)

    @property
    def wants_input(self) -> bool:
        """Whether observations are looked at now; a person's hand needs them for the record."""
        return self._act is not None or self._person.has_control

    def add_image(self, camera: str, stamp_ns: int, image: ImageArray) -> None:
        """Takes an image uint8 [H, W, 3] RGB; raises ObservationInvalid."""
        with self._lock:
            is_new = self._assembler.add_image(camera, stamp_ns, image)
            self._arrived(stamp_ns, is_new, makes_an_observation=is_new)

    def add_state(self, stamp_ns: int, values: np.ndarray) -> None:
        """Takes a state [S]; raises ObservationInvalid."""
        with self._lock:
            is_new = self._assembler.add_state(stamp_ns, values)
            if is_new:
                self._outlet.state = values
            self._arrived(stamp_ns, is_new, makes_an_observation=is_new and not self._has_cameras)

    def tick(self) -> None:
        """Says that a command is due, in rate mode; it leaves as soon as there is a new observation."""
        with self._lock:
            if not self.wants_input or not self._enabled or self._lockstep:
                return
            now_ns = self._ros_now_ns()
            if self._ticked_ns is not None:
                periods = (now_ns - self._ticked_ns) / 1e9 / self._period_s
                self._cadence.miss(max(0, round(periods) - 1))
            self._ticked_ns = now_ns
            if self._waiting is not None or (self._due_s is not None and not self._watch.is_stale):
                self._cadence.miss()
            if self._waiting is None:
                self._due_s = self._steady_s()
                self._see(self._due_s)

    def decided(self, job: Job, outcome: Decision | EfmError) -> None:
        """Takes the outcome of an inference; one that is no longer wanted is ignored."""
        with self._lock:
            if job.ticket != self._ticket or self._act is None:
                return
            self._inferring = False
            if isinstance(outcome, EfmError):
                self._end(reason_of(outcome), str(outcome))
                return
            stamp_ns, ahead = job.request.observation.stamp_ns, self._settings.infer_ahead
            self._plan = ActionPlan(outcome, stamp_ns, job.first_step, self._execute, ahead)
            if self._waiting is not None:
                seen, self._waiting = self._waiting, None
                if self._steady_s() - seen.due_s > 0.25 * self._watchdog_s:
                    self._feed()  # So long nobody could look at inputs.
                self._respond(seen)

    def where(self) -> np.ndarray | None:
        """Returns the command that would hold the robot where it is, float [D]; None: nobody knows."""
        with self._lock:
            return self._outlet.where() if self._act is None else self._outlet.still()

    def status(self) -> LoopStatus:
        """Returns where it stands."""
        with self._lock:
            act = self._act
            return LoopStatus(
                acting=act is not None,
                goal=act.goal if act is not None else self._last_goal,
                steps=act.steps if act is not None else 0,
                stamp_ns=self._stamp_ns,
                estop=self._estop,
                takeover=self._person.has_control,
                stale=self._stale_text if act is not None and self._watch.is_stale else "",
                missing=self._assembler.why_not_ready(self._ros_now_ns(), self._lockstep),
                input_age_s=self._steady_s() - self._input_s,
                cadence=self._cadence.report(),
            )

    # From observation to command; the lock is held from here on
    # --------------------------------------------------------------------------------------------------

    def _arrived(self, stamp_ns: int, is_new: bool, makes_an_observation: bool) -> None:
        now_s = self._input_s = self._steady_s()
        if self._assembler.time_line != self._time_line:
            self._time_line = self._assembler.time_line
            self._clock_went_back()
        if not self.wants_input or not self._enabled:
            return
        if not self._lockstep:
            if makes_an_observation and not self._assembler.why_not_ready(self._ros_now_ns()):
                self._feed()
            if self._due_s is not None:
                self._see(now_s)
        elif is_new or not self._outlet.send_again(stamp_ns):
            # A world that shows what was answered has not got the command (the repetition replaces it), or
            # has it by now (and ignores the repetition).
            self._see(now_s)

    def _see(self, now_s: float) -> None:
        """Takes the newest observation, if there is a new one, and responds to it."""
        observation = self._assembler.ready(self._ros_now_ns(), synchronous=self._lockstep)
        if observation is None:
            self._steer_blind()
            return
        seen = Seen(observation, self._input_s, now_s if self._due_s is None else self._due_s)
        self._due_s = None
        self._stamp_ns = observation.stamp_ns
        if self._lockstep or self._watch.is_stale:
            self._feed()
        if self._waiting is not None:  # Someone else moved the world on: the old observation is past.
            self._drop_plan()
        self._respond(seen)

    def _respond(self, seen: Seen) -> None:
        act = self._act
        if act is not None and act.goal.max_steps and act.steps >= act.goal.max_steps:
            # Not before this observation: it shows that the last command had its period.
            self._end(Reason.OK, f"reached max_steps {act.goal.max_steps}")
        elif self._person.has_control or self._settings.only_human:
            if self._lockstep:
                self._pending = seen
            elif not self._estop:
                self._answer_by_hand(seen)
        elif act is not None:
            step, plan = act.steps, self._plan
            index = None if plan is None else plan.index(step)
            if plan is None or index is None:
                self._waiting = seen
                self._request(act, seen, step)
                return
            self._attempt(lambda: self._answerer.by_policy(act, seen, plan, index))
            if plan.wants_next(step) and self._act is act:
                self._request(act, seen, step)

    def _request(self, act: Act, seen: Seen, step: int) -> None:
        if self._inferring or act.policy is None:
            return
        self._inferring = True
        self._ticket += 1
        request = Request(seen.observation, act.goal.instruction, act.goal.temperature, act.rng)
        self._ports.request(Job(self, act.policy, request, self._ticket, step))

    def _answer_by_hand(self, seen: Seen) -> None:
        self._attempt(lambda: self._answerer.by_hand(self._act, seen))

    def _attempt(self, answer: Callable[[], None]) -> None:
        """Answers; ends the act where that is impossible."""
        try:
            answer()
        except EfmError as error:
            self._end(reason_of(error), str(error))

    def _steer_blind(self) -> None:
        """Lets a person who has taken over drive on although the cameras are gone; it is not recorded."""
        blind = self._steady_s() - self._answerer.answered_s > 2 * self._period_s
        if self._person.has_control and self._due_s is not None and blind and not self._estop:
            with contextlib.suppress(ActionNotFinite):
                if self._answerer.blindly(self._stamp_ns):
                    self._due_s = None

    # Ending and time
    # --------------------------------------------------------------------------------------------------

    def _drop_plan(self) -> None:
        self._ticket += 1
        self._inferring = False
        self._plan = self._waiting = self._pending = None

    def _end(self, reason: Reason, message: str) -> None:
        act = self._act
        if act is None:
            return
        self._drop_plan()
        self._outlet.hold()
        self._act = self._due_s = None
        self._cadence.pause()
        self._ports.ended(Ending(act.goal, reason, message, act.steps, act.bundle_id, act.version))

    def _clock_went_back(self) -> None:
        self._drop_plan()
        self._outlet.clock_went_back()
        if self._lockstep:
            self._end(Reason.STALE_INPUT, "the world's clock went back: it was restarted; reset it")
        elif self._act is not None:
            self._ports.say("the clock went back; planning anew")

    def _feed(self) -> None:
        """Tells the watch that all is well now."""
        was_stale_s = self._watch.feed(self._steady_s(), self._ros_now_ns() / 1e9)
        if was_stale_s is not None and self._act is not None:
            self._ports.say(f"input is fresh again after {was_stale_s:.2f} s; going on")

    def _check_inference(self, since_s: float) -> None:
        """Holds still while an inference takes long; what it decides is still carried out."""
        if since_s > self._settings.stale_end_s:
            self._end(Reason.TIMEOUT, f"the inference has taken more than {since_s:.1f} s")
        elif since_s > self._watchdog_s and not self._lockstep:
            self._outlet.hold()

    def _check_input(self, now_s: float) -> None:
        now_ns = self._ros_now_ns()
        freshness = self._watch.check(now_s, now_ns / 1e9)
        if freshness is Freshness.JUST_STALE:
            why = self._assembler.why_not_ready(now_ns, self._lockstep) or "no new observation"
            self._stale_text = why
            self._drop_plan()
            if not self._person.has_control or self._answerer.wish() is None:
                self._outlet.hold()
            self._ports.say(f"stale input, holding still: {why}")
        elif freshness is Freshness.OVER:
            stale_s = self._watch.stale_for(now_s)
            self._end(Reason.STALE_INPUT, f"no fresh input for {stale_s:.1f} s: {self._stale_text}")
