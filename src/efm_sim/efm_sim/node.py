"""The node `sim`: worlds behind the topics of robots, with reset services and experts that act on demand.

Serves for every robot `reset` (ResetWorld) and `expert/act` (Act). The worlds themselves live in the thread
of `world_loop`; this file only wires parameters, services and actions to it.
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.service import Service
from rclpy.task import Future

from efm_core.embodiment import Embodiment, load_embodiment
from efm_core.errors import BadRequest, EfmError, Reason, reason_of
from efm_msgs.action import Act
from efm_msgs.msg import EpisodeSummary
from efm_msgs.srv import ResetWorld
from efm_ros.conversion import ns_to_stamp
from efm_ros.lifecycle import OK, EfmLifecycleNode, NodeParameters
from efm_ros.names import in_robot
from efm_ros.parameters import param
from efm_sim.expert import STYLES, ExpertStyle
from efm_sim.lockstep import SimulatedClock, SimulatedRobot, default_clock_file, wall_ns
from efm_sim.slot import Act as RunningAct
from efm_sim.slot import ActResult
from efm_sim.world import make_world
from efm_sim.world_loop import LoopSettings, WorldLoop

# Clients ask for a result when its goal begins; at every change of a goal, all that are kept are told [s].
RESULT_KEPT_S = 5


@dataclasses.dataclass(frozen=True)
class SimParameters(NodeParameters):
    """Parameters of the node."""

    world: str = param(
        "pointmass",
        description="pointmass, table, metaworld:<task>, aloha:<task>, gym:<id>, or another package's.",
    )
    world_options: str = param("{}", description='Options of the world as JSON, for example {"blocks": 4}.')
    embodiment: str = param(
        "", description="Embodiment, by name or path. Empty: the one named like the world."
    )
    robots: tuple[str, ...] = param(
        ("",), description="Namespaces of the robots, one world each; '' is the node's own namespace."
    )
    lockstep: bool = param(
        True,
        description="Step when the answering command has come, as fast as possible. False: by the clock.",
    )
    real_time_factor: float = param(
        1.0, low=0.01, high=100.0, description="Simulated seconds per second when not in lockstep."
    )
    seed: int = param(
        0, low=0, description="Seed of everything that is drawn. 0: another one at every start."
    )
    expert_style: str = param("imperfect", choices=tuple(STYLES), description="How the expert errs.")
    expert_changes: str = param("{}", description='Changes to that style as JSON, for example {"fail": 0.3}.')
    republish_s: float = param(
        0.5, low=0.01, unit="s", description="In lockstep, show an observation again that nobody answers."
    )
    publish_clock: bool = param(
        True, description="Publish /clock. With several simulators in a graph only one may."
    )
    clock_file: str = param(
        "", description="File that keeps stamps rising over restarts. Empty: below ROS_HOME."
    )


class SimNode(EfmLifecycleNode):
    """See the file's description."""

    Parameters = SimParameters
    parameters: SimParameters

    def __init__(self, **options: Any) -> None:
        """Declares the parameters."""
        super().__init__("sim", **options)
        self._loop: WorldLoop | None = None
        self._resets: list[Service] = []
        self._actions: list[ActionServer] = []
        self._acts: dict[str, RunningAct] = {}
        self._counted = (0.0, 0)

    def acquire(self) -> None:
        """Makes the worlds and offers their services."""
        settings = self.parameters
        options = _json_object("world_options", settings.world_options)
        style = _style(settings.expert_style, _json_object("expert_changes", settings.expert_changes))
        embodiment = load_embodiment(settings.embodiment or settings.world.partition(":")[0])
        if len(set(settings.robots)) != len(settings.robots) or not settings.robots:
            raise BadRequest(
                f"parameter 'robots': expected different names, at least one, found {list(settings.robots)}"
            )
        file = (
            Path(settings.clock_file)
            if settings.clock_file
            else default_clock_file(self.get_fully_qualified_name())
        )
        clock = SimulatedClock(file, wall_ns())
        self._loop = WorldLoop(
            self,
            embodiment,
            clock,
            LoopSettings(
                settings.lockstep,
                settings.real_time_factor,
                settings.republish_s,
                settings.publish_clock,
                style,
            ),
        )
        self._loop.on_fault = self.fail
        self._loop.open(
            {
                robot: partial(self._make_robot, embodiment, clock, options, index)
                for index, robot in enumerate(settings.robots)
            }
        )
        for robot in settings.robots:
            name = in_robot(robot, embodiment.reset.service)
            self._resets.append(self.create_service(ResetWorld, name, partial(self._reset, robot)))
            self._actions.append(
                ActionServer(
                    self,
                    Act,
                    in_robot(robot, "expert/act"),
                    partial(self._act, robot),
                    cancel_callback=self._cancel,
                    result_timeout=RESULT_KEPT_S,
                )
            )

    def start(self) -> None:
        """Resets the worlds where that was not done yet, and lets them be commanded."""
        loop = self._active_loop()
        loop.run(True)
        for robot in self.parameters.robots:
            loop.reset(robot, 0, "")

    def stop(self) -> None:
        """Lets the worlds stand still."""
        if self._loop is not None:
            self._loop.run(False)

    def release(self) -> None:
        """Ends the worlds' thread and closes services and topics."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None
        for server in self._actions:
            server.destroy()
        for service in self._resets:
            self.destroy_service(service)
        self._actions.clear()
        self._resets.clear()

    def update_diagnostics(self) -> None:
        """Tells how fast the worlds step."""
        if self._loop is None:
            return
        now = wall_ns() / 1e9
        steps = sum(self._loop.steps().values())
        before, steps_before = self._counted
        self._counted = (now, steps)
        self.diagnose(
            "worlds",
            OK,
            self.parameters.world,
            steps=steps,
            steps_per_second=(steps - steps_before) / max(now - before, 1e-9) if before else 0.0,
            commands_ignored=self._loop.ignored(),
            observations_shown_again=self._loop.republished,
            late_ticks=self._loop.late_ticks,
        )

    def _make_robot(
        self, embodiment: Embodiment, clock: SimulatedClock, options: dict[str, Any], index: int
    ) -> SimulatedRobot:
        """Makes one world; runs in the worlds' thread."""
        seed = self.parameters.seed
        rng = np.random.default_rng([seed, index] if seed else None)
        try:
            world = make_world(self.parameters.world, **options)
        except (ValueError, TypeError, ImportError) as error:
            raise BadRequest(f"parameters 'world', 'world_options': {error}") from error
        return SimulatedRobot(world, embodiment, clock, rng)

    def _active_loop(self) -> WorldLoop:
        if self._loop is None:
            raise BadRequest("the simulator is not configured")
        return self._loop

    def _reset(
        self, robot: str, request: ResetWorld.Request, response: ResetWorld.Response
    ) -> ResetWorld.Response:
        if not self.is_active:
            response.reason, response.message = int(Reason.NOT_ACTIVE), "the simulator is not active"
            return response
        try:
            snapshot, response.seed, response.instruction = self._active_loop().reset(
                robot, request.seed, request.instruction
            )
        except EfmError as error:
            response.reason, response.message = int(reason_of(error)), str(error)
            return response
        response.stamp = ns_to_stamp(snapshot.stamp_ns)
        response.reason = int(Reason.OK)
        return response

    def _cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        act = self._acts.get(bytes(goal.goal_id.uuid).hex())
        if act is not None:
            act.cancel("cancelled by the client")
        return CancelResponse.ACCEPT

    async def _act(self, robot: str, goal: ServerGoalHandle) -> Act.Result:
        """Waits for the worlds' thread without keeping the executor."""
        request: Act.Goal = goal.request
        key = bytes(goal.goal_id.uuid).hex()

        def feedback(step: int, stamp_ns: int) -> None:
            goal.publish_feedback(Act.Feedback(step=step, stamp=ns_to_stamp(stamp_ns)))

        try:
            if not self.is_active:
                raise BadRequest("the simulator is not active")
            act = self._active_loop().start_act(
                robot, request.episode_id, request.instruction, request.seed, request.max_steps, feedback
            )
        except EfmError as error:
            goal.abort()
            return Act.Result(reason=int(reason_of(error)), message=str(error))
        self._acts[key] = act
        if goal.is_cancel_requested:  # It came with the goal.
            act.cancel("cancelled by the client")
        try:
            result = await self._finished(act)
        finally:
            del self._acts[key]
        reason = Reason.CANCELLED if result.cancelled else Reason.OK
        if goal.is_cancel_requested:
            goal.canceled()
        elif result.cancelled:
            goal.abort()
        else:
            goal.succeed()
        outcome = EpisodeSummary.OUTCOME_UNSET if result.cancelled else result.outcome
        return Act.Result(
            reason=int(reason), outcome=outcome, steps=result.steps, seed=result.seed, message=result.message
        )

    def _finished(self, act: RunningAct) -> Future:
        """Turns the end of an act into a future of the executor."""
        future: Future = Future(executor=self.executor)

        def tell(done: Any) -> None:
            result: ActResult = done.result()
            future.set_result(result)
            if self.executor is not None:
                self.executor.wake()

        act.result.add_done_callback(tell)
        return future


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRequest(f"parameter '{name}': expected a JSON object, found {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise BadRequest(f"parameter '{name}': expected a JSON object, found {text!r}")
    return value


def _style(name: str, changes: dict[str, Any]) -> ExpertStyle:
    if "rest_steps" in changes:
        changes["rest_steps"] = tuple(changes["rest_steps"])
    try:
        return ExpertStyle.named(name, **changes)
    except (ValueError, TypeError) as error:
        raise BadRequest(f"parameters 'expert_style', 'expert_changes': {error}") from error
