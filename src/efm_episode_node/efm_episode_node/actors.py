"""The clients of those who act: `policy/act`, `expert/act` and `teleop/act`.

A goal is sent and watched without blocking; whatever becomes of it arrives as `ActEnded` with the goal's
ticket.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

from action_msgs.srv import CancelGoal
from rclpy.action.client import ClientGoalHandle
from rclpy.node import Node

from efm_core.errors import Reason
from efm_core.summary import Outcome
from efm_episode_node.run_types import ActEnded, ActRequest
from efm_msgs.action import Act
from efm_ros.action_client import ActionClient
from efm_ros.conversion import ns_to_stamp


class Actors:
    """Sends goals to one of several actors; all methods may be called from any thread."""

    def __init__(self, node: Node, names: tuple[str, ...], post: Callable[[ActEnded], None]) -> None:
        """Makes the clients; `post` gets the ends of acts, in the executor's thread."""
        self._node = node
        self._post = post
        self._clients = {name: ActionClient(node, Act, f"{name}/act") for name in names}
        self._cancels = {
            name: node.create_client(CancelGoal, f"{name}/act/_action/cancel_goal") for name in names
        }
        self._tickets = itertools.count(1)
        self._lock = threading.Lock()
        self._handles: dict[int, ClientGoalHandle] = {}
        self._cancelled: set[int] = set()

    def missing(self, name: str) -> str:
        """Names the actor's server if it is not there; empty when it is."""
        if self._clients[name].server_is_ready():
            return ""
        who = {
            "expert": "a simulator with an expert",
            "policy": "the policy node",
            "teleop": "the teleop node",
        }
        action = self._node.resolve_service_name(f"{name}/act")
        return f"action {action} (is {who[name]} running and active?)"

    def act(self, request: ActRequest) -> int:
        """Sends a goal and returns its ticket."""
        ticket = next(self._tickets)
        goal = Act.Goal(
            episode_id=request.episode_id,
            instruction=request.instruction,
            start=ns_to_stamp(request.start_ns),
            temperature=request.temperature,
            seed=request.seed,
            max_steps=request.max_steps,
        )
        future = self._clients[request.actor].send_goal_async(goal)
        future.add_done_callback(lambda done: self._answered(ticket, done))
        return ticket

    def cancel(self, ticket: int) -> None:
        """Asks the actor to stop, also when it has not yet accepted."""
        with self._lock:
            self._cancelled.add(ticket)
            handle = self._handles.get(ticket)
        if handle is not None:
            handle.cancel_goal_async()

    def cancel_all(self, name: str, wait_s: float = 0.0) -> None:
        """Asks an actor to stop whatever it does, also for a client that died.

        Args:
            name: Of the actor.
            wait_s: Longest wait for the answer, outside the executor's thread. Without one a goal that is
                sent next may be stopped as well.
        """
        if self._cancels[name].service_is_ready():
            answered = threading.Event()
            future = self._cancels[name].call_async(CancelGoal.Request())  # No id and no stamp: all goals.
            future.add_done_callback(lambda _: answered.set())
            answered.wait(wait_s)

    def destroy(self) -> None:
        """Gives the clients back."""
        for client in self._clients.values():
            client.destroy()
        for cancel in self._cancels.values():
            self._node.destroy_client(cancel)

    def _answered(self, ticket: int, done: Any) -> None:
        handle: ClientGoalHandle = done.result()
        if not handle.accepted:
            message = "the goal was refused; does it act already, or is it not active?"
            self._post(ActEnded(ticket, Reason.BUSY, message=message, accepted=False))
            return
        with self._lock:
            self._handles[ticket] = handle
            cancelled = ticket in self._cancelled
        if cancelled:
            handle.cancel_goal_async()
        handle.get_result_async().add_done_callback(lambda result: self._ended(ticket, result))

    def _ended(self, ticket: int, done: Any) -> None:
        result: Act.Result = done.result().result
        with self._lock:
            self._handles.pop(ticket, None)
            self._cancelled.discard(ticket)
        # Unset: the server does not know the goal, for example after a restart.
        reason = Reason(result.reason) if result.reason else Reason.INTERNAL
        message = result.message if result.reason else "the actor lost the goal; was it started anew?"
        self._post(
            ActEnded(
                ticket,
                reason,
                Outcome(result.outcome),
                result.steps,
                result.bundle_id,
                result.version,
                message,
            )
        )
