"""The policy node: the newest observation and an instruction in, a safe command out, for one robot or many.

It wires parameters, topics, actions and threads to plain objects: `RobotLoop` decides what happens to one
robot, `BatchInference` infers for all, `ModelSupply` brings new models. An act takes the newest model when it
begins, so that an episode is of one model and no control tick waits for a swap. Control runs in the pilot's
thread; the executor has the rest: actions, people's topics, the model's status; a third thread has the
watchdogs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.clock import Clock
from rclpy.clock_type import ClockType

from efm_core.embodiment import Embodiment, load_embodiment
from efm_core.errors import BadRequest, EfmError, Reason
from efm_msgs.action import Act
from efm_msgs.msg import ModelInfo
from efm_policy_node.act_server import ActServer
from efm_policy_node.commanders import Rivals
from efm_policy_node.diagnosis import diagnose_robot
from efm_policy_node.inference import BatchInference, Checks, Pilot
from efm_policy_node.loop_ports import ActGoal, ActRefused, Ending, Job, LoopSettings
from efm_policy_node.onnx_policy import OnnxPolicy, load_policy
from efm_policy_node.parameters import PolicyParameters
from efm_policy_node.robot_io import RobotIo
from efm_ros.conversion import stamp_to_ns
from efm_ros.intake import Intake
from efm_ros.lifecycle import EfmLifecycleNode
from efm_ros.model_supply import ModelSupply
from efm_ros.names import in_robot

# The watchdog looks four times within a control period, but not more often than it costs nothing [s].
CHECKS_PER_PERIOD = 4
SHORTEST_CHECK_S = 0.005
LONGEST_CHECK_S = 0.1
# For other commanders, one a second, before a robot that may have been left moving is stopped: by then they
# are known, on a busy machine too.
LOOKS_BEFORE_STOP = 4
GREATEST_SEED = 2**63 - 1


class _Robot:
    """One robot's parts."""

    def __init__(self, io: RobotIo) -> None:
        self.io = io
        self.server: ActServer | None = None
        self.ready_bundle = ""  # Waits for this robot's act to end.
        self.rivals: tuple[str, ...] = ()  # Other commanders at the last look.
        self.looks = 0  # For other commanders, since the node became active; see LOOKS_BEFORE_STOP.


class PolicyNode(EfmLifecycleNode):
    """See the description of the file."""

    Parameters = PolicyParameters
    parameters: PolicyParameters

    def __init__(self, **options: Any) -> None:
        """Declares the parameters."""
        super().__init__("policy", **options)
        self._embodiment: Embodiment | None = None
        self._robots: list[_Robot] = []
        self._intake: Intake | None = None
        self._pilot: Pilot | None = None
        self._checks: Checks | None = None
        self._models: ModelSupply[OnnxPolicy] | None = None
        self._inference = BatchInference(self._unusable)
        self._rng = np.random.default_rng(self.parameters.seed or None)
        self._owned: list[tuple[Callable[[Any], Any], Any]] = []

    # Lifecycle
    # --------------------------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Loads embodiment and model, and opens topics and actions; nothing is commanded yet."""
        settings = self.parameters
        self._embodiment = embodiment = load_embodiment(settings.embodiment)
        period_s = 1.0 / embodiment.control_rate_hz
        check_s = min(max(period_s / CHECKS_PER_PERIOD, SHORTEST_CHECK_S), LONGEST_CHECK_S)
        if settings.infer_ahead and settings.infer_ahead >= embodiment.action.chunk:
            raise BadRequest(
                f"infer_ahead {settings.infer_ahead}: expected less than the chunk of "
                f"{embodiment.action.chunk} actions of embodiment '{embodiment.name}'"
            )
        self._models = ModelSupply(
            self,
            settings.robots,
            self._load,
            settings.bundle_folder,
            settings.learner,
            embodiment.digest,
            (ModelInfo.KIND_POLICY, ModelInfo.KIND_BOTH),
            self._model_is_ready,
            settings.keep_bundles,
        )
        self._intake = Intake(self)
        dry_run = embodiment.dry_run if settings.dry_run is None else settings.dry_run
        loop = LoopSettings(
            lockstep=settings.lockstep,
            stage=settings.stage,  # type: ignore[arg-type]
            blend=settings.blend,
            dry_run=dry_run,
            infer_ahead=settings.infer_ahead,
            stale_end_s=settings.stale_end,
            human_timeout_s=settings.human_timeout,
            release_ramp_s=settings.release_ramp,
            check_period_s=check_s,
        )
        for name in settings.robots:
            self._add_robot(name, embodiment, loop)
        if settings.bundle:
            self._models.load_now(Path(settings.bundle).expanduser())
        simulated = self.get_parameter("use_sim_time").value
        self._pilot = Pilot(
            self._intake,
            [robot.io.loop for robot in self._robots],
            self._inference,
            self.fail,
            None if settings.lockstep or simulated else period_s,
            apart=settings.infer_ahead > 0,
        )
        self._pilot.open()
        self._checks = Checks([robot.io.loop for robot in self._robots], check_s, self.fail)
        self._checks.open()
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._own(self.destroy_timer, self.create_timer(1.0, self._look_for_rivals, clock=steady))
        if simulated and not settings.lockstep:
            self._own(self.destroy_timer, self.create_timer(period_s, self._tick))
        if settings.follow_models and settings.learner:
            self._models.follow()
        if dry_run:
            self.get_logger().warning("dry run: commands are decided and recorded, but not sent")

    def start(self) -> None:
        """Lets acts begin."""
        for robot in self._robots:
            robot.io.loop.enable()

    def stop(self) -> None:
        """Ends the acts, holds the robots still, and tells how the rhythm was."""
        for robot in self._robots:
            robot.io.loop.disable()
            cadence = robot.io.loop.status().cadence
            if cadence.cycles:
                self.get_logger().info(f"cadence of {robot.io.label or 'the robot'}: {cadence}")

    def release(self) -> None:
        """Ends the threads and closes what was opened; after a half-done `acquire` too."""
        if self._models is not None:
            self._models.close()
        if self._checks is not None:
            self._checks.close()
        if self._pilot is not None:
            self._pilot.close()
        for destroy, thing in self._owned:
            destroy(thing)
        for robot in self._robots:
            if robot.server is not None:
                robot.server.destroy()
            robot.io.close()
        if self._intake is not None:
            self._intake.close()
        self._owned.clear()
        self._robots.clear()
        self._models = self._checks = self._pilot = self._intake = None

    def parameters_changed(self, names: Collection[str]) -> None:
        """Swaps in the bundle that was set."""
        if self._models is not None and "bundle" in names and self.parameters.bundle:
            self._models.want(Path(self.parameters.bundle).expanduser())

    def update_diagnostics(self) -> None:
        """Tells how every robot and the model are."""
        if self._embodiment is None or self._models is None:
            return
        for robot in self._robots:
            diagnose_robot(self, robot.io, self._embodiment, robot.rivals)
        current = self._models.current
        self._models.diagnose(
            version=current.version if current is not None else "",
            batches=self._inference.batches,
            observations=self._inference.observations,
        )

    # Acts
    # --------------------------------------------------------------------------------------------------

    def _add_robot(self, name: str, embodiment: Embodiment, loop: LoopSettings) -> None:
        assert self._intake is not None
        io = RobotIo(
            self, name, embodiment, loop, self._intake, self._request, partial(self._ended, len(self._robots))
        )
        robot = _Robot(io)
        self._robots.append(robot)
        robot.server = ActServer(
            self, in_robot(name, "policy/act"), io.loop, self._prepare, partial(self._rivals, io)
        )

    def _prepare(self, request: Act.Goal) -> tuple[ActGoal, OnnxPolicy]:
        """Fills in the defaults of a goal and takes the newest model."""
        models = self._models
        if not self.is_active or models is None:
            raise ActRefused(Reason.NOT_ACTIVE, "expected an active node; activate it first")
        if not np.isfinite(request.temperature):
            raise BadRequest(f"temperature: expected a finite number, found {request.temperature}")
        policy = models.current
        if policy is None:
            refusal = models.refusal
            reason = refusal.reason if refusal is not None else Reason.BUNDLE_UNKNOWN
            raise ActRefused(reason, models.why_none())
        goal = ActGoal(
            episode_id=request.episode_id,
            instruction=request.instruction,
            start_ns=stamp_to_ns(request.start),
            temperature=max(0.0, request.temperature or self.parameters.temperature),
            seed=request.seed or int(self._rng.integers(1, GREATEST_SEED)),
            max_steps=request.max_steps,
        )
        return goal, policy

    def _request(self, job: Job) -> None:
        self._inference.add(job)
        if self._pilot is not None:
            self._pilot.wake()

    def _ended(self, index: int, ending: Ending) -> None:
        robot = self._robots[index]
        if robot.server is not None:
            robot.server.ended(ending)
        models = self._models
        policy = models.current if models is not None else None
        in_order = ending.reason in (Reason.OK, Reason.CANCELLED) and ending.steps > 0
        if models is not None and policy is not None and policy.id == ending.bundle_id and in_order:
            models.proved(policy)
        self._activate(robot)

    def _rivals(self, io: RobotIo) -> Rivals:
        """Looks for other commanders; beside a shadow there is one on purpose."""
        if self.parameters.allow_second_commander or self.parameters.stage == "shadow":
            return Rivals((), False)
        return io.rivals(self.parameters.known_commanders)

    def _look_for_rivals(self) -> None:
        """Stops acting where another commander has turned up: two of them would fight over the robot."""
        for robot in self._robots:
            robot.rivals = self._rivals(robot.io).names
            if robot.rivals:
                robot.looks = LOOKS_BEFORE_STOP
                names = ", ".join(robot.rivals)
                robot.io.loop.cancel(
                    Reason.BUSY, f"another commander turned up on the command topic: {names}"
                )
            elif self.is_active:
                robot.looks += 1
                if robot.looks == LOOKS_BEFORE_STOP:
                    self._stop_leftover(robot.io)

    def _stop_leftover(self, io: RobotIo) -> None:
        """Stops what a killed policy node left moving, unless anybody else could command it."""
        commands = self.parameters.stage != "shadow" and not self.parameters.lockstep
        if commands and not io.rivals(()).names:
            io.loop.stop_leftover()

    def _tick(self) -> None:
        for robot in self._robots:
            robot.io.loop.tick()

    # Models
    # --------------------------------------------------------------------------------------------------

    def _unusable(self, policy: OnnxPolicy, error: EfmError) -> None:
        if self._models is not None:
            self._models.failed(policy, error)

    def _load(self, path: Path) -> OnnxPolicy:
        """Loads and warms up a bundle."""
        assert self._embodiment is not None
        began = time.monotonic()
        policy = load_policy(
            path, self._embodiment, len(self._robots), self.parameters.provider, self.parameters.threads
        )
        self.get_logger().info(
            f"bundle {policy.id} (version {policy.version}) is ready on {policy.provider} after "
            f"{time.monotonic() - began:.2f} s"
        )
        return policy

    def _model_is_ready(self, policy: OnnxPolicy) -> None:
        """Makes a new model the active one where no act runs; elsewhere it waits for the act's end."""
        for robot in self._robots:
            robot.ready_bundle = policy.id
            if not robot.io.loop.status().acting:
                self._activate(robot)

    def _activate(self, robot: _Robot) -> None:
        """Tells that the newest bundle acts from now on, where that was not told yet."""
        bundle_id, robot.ready_bundle = robot.ready_bundle, ""
        if bundle_id and self._models is not None:
            self._models.tell_active(bundle_id, robot.io.robot, stall_s=0.0)

    def _own(self, destroy: Callable[[Any], Any], thing: Any) -> None:
        self._owned.append((destroy, thing))
