"""The action server `Act` of one robot: a goal becomes an act of the robot's loop, its ending becomes the
result.

Every goal is accepted and then refused where it must be, since only a result can carry a reason. Acting
itself happens in the loop's threads; here a coroutine waits for its end. Left out: who acts, and sampling.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.task import Future

from efm_core.errors import Reason, reason_of
from efm_msgs.action import Act
from efm_policy_node.commanders import Rivals
from efm_policy_node.loop_ports import ActGoal, ActRefused, Ending
from efm_policy_node.onnx_policy import OnnxPolicy
from efm_policy_node.robot_loop import RobotLoop
from efm_ros.conversion import ns_to_stamp

# The graph tells of a new endpoint before it tells the name of its node [s].
RIVAL_PATIENCE_S = 3.0
RESULT_KEPT_S = 60
FEEDBACK_PERIOD_S = 1.0
# Looks in a row at which a client that was never seen in the graph counts as gone; a new one takes less.
UNSEEN_AT_MOST = 5

Prepare = Callable[[Act.Goal], tuple[ActGoal, OnnxPolicy | None]]


class ActServer:
    """Serves `Act` for one robot. Callbacks run in the executor's thread; `ended` may come from any."""

    def __init__(
        self, node: Node, name: str, loop: RobotLoop, prepare: Prepare, rivals: Callable[[], Rivals]
    ) -> None:
        """Offers the action.

        Args:
            node: Node that serves it.
            name: Of the action.
            loop: Of the robot.
            prepare: Fills in a goal's defaults and chooses the model; raises EfmError to refuse.
            rivals: Looks for other commanders of the robot.
        """
        self._node, self._loop, self._prepare, self._rivals = node, loop, prepare, rivals
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._endings: dict[int, Future] = {}  # By the identity of the act's goal.
        self._running: ServerGoalHandle | None = None
        self._goals = f"{node.resolve_service_name(name)}/_action/send_goal"
        # Whether the running act's client was in the graph at the last look, and looks since it was.
        self._was_watched, self._unseen = False, 0
        self._server = ActionServer(
            node, Act, name, self._execute, cancel_callback=self._cancel, result_timeout=RESULT_KEPT_S
        )
        self._feedback_timer = node.create_timer(FEEDBACK_PERIOD_S, self._feed_back, clock=self._steady)

    def ended(self, ending: Ending) -> None:
        """Takes the ending of an act, from any thread."""
        future = self._endings.get(id(ending.goal))
        if future is not None:
            future.set_result(ending)
            if self._node.executor is not None:
                self._node.executor.wake()

    def destroy(self) -> None:
        """Takes the action away."""
        self._node.destroy_timer(self._feedback_timer)
        self._server.destroy()

    async def _execute(self, handle: ServerGoalHandle) -> Act.Result:
        goal: ActGoal | None = None
        try:
            await self._until_alone(handle)
            goal, policy = self._prepare(handle.request)
            self._endings[id(goal)] = Future(executor=self._node.executor)
            self._loop.begin(goal, policy)
        except Exception as error:  # noqa: BLE001  Whatever it is, the client gets a result with a reason.
            self._endings.pop(id(goal), None)
            return self._refuse(handle, error)
        self._running, self._was_watched, self._unseen = handle, False, 0
        if handle.is_cancel_requested:  # It came while the act began.
            self._loop.cancel()
        ending: Ending = await self._endings[id(goal)]
        del self._endings[id(goal)]
        self._running = None
        if handle.is_cancel_requested:
            handle.canceled()
        elif ending.reason == Reason.OK:
            handle.succeed()
        else:
            handle.abort()
        self._node.get_logger().info(
            f"act {goal.episode_id or 'without an episode'}: {ending.reason.name} after {ending.steps} "
            f"steps, {ending.message}"
        )
        return Act.Result(
            reason=int(ending.reason),
            steps=ending.steps,
            bundle_id=ending.bundle_id,
            version=ending.version,
            seed=goal.seed,
            message=ending.message,
        )

    def _refuse(self, handle: ServerGoalHandle, error: Exception) -> Act.Result:
        code = error.code if isinstance(error, ActRefused) else reason_of(error)
        self._node.get_logger().warning(f"act refused: {code.name}, {error}")
        if code is Reason.INTERNAL:
            self._node.get_logger().error("".join(traceback.format_exception(error)))
        if handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.abort()
        return Act.Result(reason=int(code), message=str(error))

    async def _until_alone(self, handle: ServerGoalHandle) -> None:
        """Refuses where there is another commander; waits a moment for names.

        Raises:
            ActRefused: There is another commander, or the goal was cancelled meanwhile.
        """
        deadline = time.monotonic() + RIVAL_PATIENCE_S
        while (rivals := self._rivals()).names:
            names = ", ".join(rivals.names)
            if not rivals.fleeting or time.monotonic() > deadline:
                raise ActRefused(
                    Reason.BUSY,
                    f"expected to be the only commander, found {names} on the command topic; stop it, or "
                    "allow it with allow_second_commander",
                )
            if handle.is_cancel_requested:
                raise ActRefused(Reason.CANCELLED, "cancelled before it began")
            await self._pause(0.1)

    async def _pause(self, seconds: float) -> None:
        over: Future = Future(executor=self._node.executor)
        timer = self._node.create_timer(seconds, lambda: over.set_result(None), clock=self._steady)
        try:
            await over
        finally:
            self._node.destroy_timer(timer)

    def _cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        if handle is self._running:
            self._loop.cancel()
        return CancelResponse.ACCEPT

    def _feed_back(self) -> None:
        handle = self._running
        if handle is None or not handle.is_active:
            return
        # Whoever died can neither see success nor stop the act, and nobody records it. The look comes before
        # the feedback: a client may leave at its first.
        is_watched = self._node.count_clients(self._goals) > 0
        self._unseen = 0 if is_watched else self._unseen + 1
        if self._unseen and (self._was_watched or self._unseen > UNSEEN_AT_MOST):
            self._loop.cancel(Reason.CANCELLED, "the client of this act is gone from the graph")
        self._was_watched = is_watched
        status = self._loop.status()
        handle.publish_feedback(Act.Feedback(step=status.steps, stamp=ns_to_stamp(status.stamp_ns)))
