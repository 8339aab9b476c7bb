"""The robot and the nodes around it, as `runner` acts through them: reset, instruction, actors."""

from __future__ import annotations

import queue
import time

from rclpy.node import Node
from rclpy.serialization import serialize_message

from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest, Reason, WaitTimeout
from efm_core.summary import Mode
from efm_episode_node.actors import Actors
from efm_episode_node.listener import RobotListener
from efm_episode_node.recorder import EpisodeRecorder
from efm_episode_node.resets import ResetContext, make_reset
from efm_episode_node.run_types import ACTORS, ActEnded, ActRequest, RunRequest, Scene
from efm_episode_node.runner import EpisodeRunner
from efm_msgs.msg import Instruction
from efm_ros.conversion import ns_to_stamp
from efm_ros.qos import LATCHED

INSTRUCTION_TYPE = "efm_msgs/msg/Instruction"
CANCEL_S = 5.0  # For an actor to answer before a run that nothing of it is left.


class RobotStation:
    """The `Station` of `runner` for one robot. Its methods are called from the runner's thread."""

    def __init__(
        self, node: Node, embodiment: Embodiment, listener: RobotListener, recorder: EpisodeRecorder
    ) -> None:
        """Opens the topic `instruction` and the clients of the actors; `open` follows before the first
        run.
        """
        self._node = node
        self._embodiment = embodiment
        self._listener = listener
        self._recorder = recorder
        self._publisher = node.create_publisher(Instruction, "instruction", LATCHED)
        names = tuple(name for name in ACTORS if name != "external")
        self.actors = Actors(node, names, self._act_ended)
        self._acting = "policy"
        self._asked: queue.SimpleQueue[ActEnded] | None = None

    def open(
        self,
        runner: EpisodeRunner,
        reset: str,
        reset_instruction: str,
        timeout_s: float,
        person_timeout_s: float,
        dry_run: bool,
    ) -> None:
        """Makes the reset; see the parameters of the node.

        Raises:
            BadRequest: The reset is unknown or its settings are missing.
        """
        self._runner = runner
        self._timeout_s = timeout_s
        controls = runner.controls

        def stopped() -> str:
            if controls.cancelled:
                return "cancelled"
            return "the e-stop is pressed" if controls.estop else ""

        self._stopped = stopped
        self._reset = make_reset(
            reset or self._embodiment.reset.method,
            ResetContext(
                node=self._node,
                embodiment=self._embodiment,
                timeout_s=timeout_s,
                wait_for_person=lambda text: runner.wait_for_person(text, person_timeout_s),
                measured=self._listener.measured,
                stopped=stopped,
                dry_run=dry_run,
                policy_missing=lambda: self.actors.missing("policy"),
                ask_policy=self._ask_policy,
                instruction=reset_instruction,
            ),
        )
        self.announce("", "", 0)

    def prepare(self, request: RunRequest) -> None:
        """Gets ready for a run: no actor still acts for a client that died, and truth is heard where
        allowed.
        """
        self._listener.hear_truth(request.mode is Mode.EVALUATE)
        self._listener.count_commands = request.actor == "external"
        if request.actor != "external":
            self.actors.cancel_all(request.actor, wait_s=CANCEL_S)

    def missing(self, request: RunRequest) -> str:
        """Names what an episode needs and is not there."""
        actor = "" if request.actor == "external" else self.actors.missing(request.actor)
        topics = self._listener.missing(request.judged, request.end_on_truth)
        return ", ".join(filter(None, (self._reset.missing(), topics, actor)))

    def reset(self, seed: int, instruction: str) -> Scene:
        """Makes the scene ready."""
        return self._reset.reset(seed, instruction)

    def announce(self, episode_id: str, instruction: str, start_ns: int) -> None:
        """Tells all nodes which episode runs, and the recording too."""
        message = Instruction(episode_id=episode_id, text=instruction)
        message.header.stamp = ns_to_stamp(start_ns or self._node.get_clock().now().nanoseconds)
        self._publisher.publish(message)
        if episode_id:
            self._recorder.write("instruction", INSTRUCTION_TYPE, start_ns, serialize_message(message))

    def act(self, request: ActRequest) -> int:
        """Lets somebody act."""
        self._acting = request.actor
        return self.actors.act(request)

    def cancel_act(self, ticket: int) -> None:
        """Asks an actor to stop."""
        self.actors.cancel(ticket)

    def close(self) -> None:
        """Gives the clients back."""
        self.actors.destroy()
        self._node.destroy_publisher(self._publisher)

    def _act_ended(self, ended: ActEnded) -> None:
        if ended.reason is Reason.BUSY:
            # What still acts does so for a client that died, for example this node before it was started
            # anew.
            self.actors.cancel_all(self._acting)
        asked = self._asked
        (self._runner.events if asked is None else asked).put(ended)

    def _ask_policy(self, instruction: str) -> None:
        """Lets the policy act unrecorded until it ends by itself or the time is over."""
        self._asked = queue.SimpleQueue()
        try:
            now_ns = self._node.get_clock().now().nanoseconds
            steps = self._embodiment.max_steps
            ticket = self.actors.act(ActRequest("policy", "", instruction, now_ns, 0.0, 0, steps))
            deadline = time.monotonic() + self._timeout_s
            cancelled = False
            while True:
                try:
                    ended = self._asked.get(timeout=0.2)
                    break
                except queue.Empty:
                    late = time.monotonic() > deadline
                    if (late or self._stopped()) and not cancelled:
                        cancelled, deadline = True, time.monotonic() + 5.0
                        self.actors.cancel(ticket)
                    elif late:
                        raise WaitTimeout(f"the policy did not end its reset '{instruction}'") from None
            if not ended.accepted:
                raise BadRequest(f"the policy refused the reset '{instruction}': {ended.message}")
        finally:
            self._asked = None
