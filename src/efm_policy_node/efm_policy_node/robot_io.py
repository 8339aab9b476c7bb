"""One robot as topics and services: inputs to its loop, commands and records from it, people's switches.

Observations are taken by the pilot's thread (`intake`), people's topics and services by the executor.
Left out: the decisions (`robot_loop`), the action (`act_server`) and the model's status (`node`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.node import Node
from std_msgs.msg import Bool
from std_srvs.srv import SetBool

from efm_core.embodiment import Embodiment
from efm_core.errors import EfmError
from efm_msgs.msg import PolicyStep
from efm_policy_node.commanders import Rivals, find_rivals
from efm_policy_node.loop_ports import ControlStep, Ending, Job, LoopSettings
from efm_policy_node.robot_loop import RobotLoop
from efm_ros.commands import Command, CommandChannel, decode_command, message_type
from efm_ros.conversion import ns_to_stamp
from efm_ros.inputs import RobotInputs
from efm_ros.intake import Intake
from efm_ros.latched import newest_only
from efm_ros.names import in_robot, robot_label
from efm_ros.qos import COMMANDS, EVENTS, LATCHED

COMPLAINT_PERIOD_S = 1.0
FLUSH_S = 0.3  # A robot that has gone confirms nothing; the last command is not worth more waiting.


class RobotIo:
    """The `RobotPorts` of one robot, and what feeds its loop.

    Attributes:
        robot: Entry of the node's `robots`.
        label: Namespace as messages name it.
        dry_run: Nothing is sent.
        loop: The robot's loop.
    """

    def __init__(
        self,
        node: Node,
        robot: str,
        embodiment: Embodiment,
        settings: LoopSettings,
        intake: Intake,
        request: Callable[[Job], None],
        ended: Callable[[Ending], None],
        takeover: bool = True,
    ) -> None:
        """Opens the topics and services.

        Args:
            node: Node that owns them.
            robot: Entry of the node's `robots`.
            embodiment: Of the robot.
            settings: Of its loop.
            intake: Takes the observations.
            request: Takes the jobs of the loop.
            ended: Takes the endings of its acts.
            takeover: Whether a person can take over here, and there are the services `takeover_set` and
                `estop_set`; not where a person acts in any case.
        """
        self.robot, self.label = robot, robot_label(node, robot)
        self.dry_run = settings.dry_run
        self._node, self._embodiment = node, embodiment
        self._request, self._ended = request, ended
        self._channel = CommandChannel(node, embodiment, robot, settings.lockstep)
        self._topic = node.resolve_topic_name(in_robot(robot, embodiment.action.topic))
        self._frame = embodiment.action.frame_id
        self._steps = node.create_publisher(PolicyStep, in_robot(robot, "policy_step"), EVENTS)
        self._complained_s: dict[str, float] = {}
        self.loop = RobotLoop(embodiment, settings, self, self._now_ns, time.monotonic)
        inputs = RobotInputs(
            embodiment, robot, self.loop.add_image, self.loop.add_state, self._invalid, self._now_ns
        )
        inputs.subscribe(intake.subscribe)
        self._owned: list[tuple[Callable[[Any], Any], Any]] = []
        self._listen("estop", self.loop.set_estop)
        if takeover:
            self._listen("takeover", self.loop.set_takeover)
            self._serve("estop", self.loop.set_estop)
            self._serve("takeover", self.loop.set_takeover)
        kind = message_type(embodiment.action)
        wishes = in_robot(robot, "teleop/command")
        self._wishes = node.create_subscription(kind, wishes, self._take_wish, COMMANDS)

    def rivals(self, known: tuple[str, ...]) -> Rivals:
        """Looks for other commanders of the robot, `known` ones apart."""
        return find_rivals(self._node, self._topic, known)

    def close(self) -> None:
        """Waits shortly until the robot has the last command, then closes the command topic.

        Topics and services of inputs end with the node.
        """
        if self._channel.last is not None:
            self._channel.flush(FLUSH_S)
        self._channel.destroy()
        self._node.destroy_publisher(self._steps)
        self._node.destroy_subscription(self._wishes)
        for destroy, thing in self._owned:
            destroy(thing)
        self._owned.clear()

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds

    # RobotPorts
    # --------------------------------------------------------------------------------------------------

    def send(self, values: np.ndarray, stamp_ns: int) -> None:
        """Publishes a command."""
        self._channel.send(values, stamp_ns)

    def record(self, step: ControlStep) -> None:
        """Publishes a PolicyStep."""
        message = PolicyStep(
            episode_id=step.episode_id,
            bundle_id=step.bundle_id,
            step=step.step,
            chunk_index=step.chunk_index,
            actor=int(step.actor),
            gate=int(step.gate),
            tokens=[] if step.tokens is None else step.tokens.tolist(),
            log_prob=step.log_prob,
            temperature=step.temperature,
            action=step.action.tolist(),
            command=step.command.tolist(),
            latency=step.latency_s,
        )
        message.header.stamp = ns_to_stamp(step.stamp_ns)
        message.header.frame_id = self._frame
        self._steps.publish(message)

    def request(self, job: Job) -> None:
        """Hands a job on."""
        self._request(job)

    def ended(self, ending: Ending) -> None:
        """Hands an ending on."""
        self._ended(ending)

    def say(self, text: str) -> None:
        """Logs a warning."""
        self._complain(text.partition(":")[0].partition(" after ")[0], text)

    # Inputs and people
    # --------------------------------------------------------------------------------------------------

    def _invalid(self, topic: str, error: EfmError) -> None:
        """Tells of a message that cannot be used; it counts as none."""
        self._complain(topic, f"ignored what came on '{topic}': {error}")

    def _complain(self, about: str, text: str) -> None:
        """Warns, about one thing not more often than people can read."""
        now_s = time.monotonic()
        if now_s - self._complained_s.get(about, -math.inf) >= COMPLAINT_PERIOD_S:
            self._complained_s[about] = now_s
            self._node.get_logger().warning(f"{self.label or 'robot'}: {text}")

    def _take_wish(self, message: Command) -> None:
        try:
            self.loop.human_command(decode_command(self._embodiment, message)[0])
        except EfmError as error:
            self._invalid("teleop/command", error)

    def _listen(self, name: str, turn: Callable[[bool], None]) -> None:
        """Follows a latched Bool topic."""
        take = newest_only(
            lambda message: self._turned(name, turn, message.data),
            urgent=lambda message: name == "estop" and message.data,
        )
        subscription = self._node.create_subscription(Bool, in_robot(self.robot, name), take, LATCHED)
        self._owned.append((self._node.destroy_subscription, subscription))

    def _serve(self, name: str, turn: Callable[[bool], None]) -> None:
        """Offers the SetBool twin of a latched Bool topic, which publishes there for all to see."""
        topic = in_robot(self.robot, name)
        publisher = self._node.create_publisher(Bool, topic, LATCHED)

        def set_it(request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
            self._turned(name, turn, request.data)
            publisher.publish(Bool(data=request.data))
            response.success, response.message = True, f"{name} is {'on' if request.data else 'off'}"
            return response

        service = self._node.create_service(SetBool, f"{topic}_set", set_it)
        self._owned += [(self._node.destroy_service, service), (self._node.destroy_publisher, publisher)]

    def _turned(self, name: str, turn: Callable[[bool], None], on: bool) -> None:
        status = self.loop.status()
        if on != (status.estop if name == "estop" else status.takeover):
            self._node.get_logger().warning(f"{self.label or 'robot'}: {name} {'on' if on else 'off'}")
        turn(on)
