"""The teleop node: a person drives one robot, to demonstrate (`teleop/act`) or to take over from the policy.

What the person wants goes on `teleop/command`, from a gamepad here or from any other device. During an act of
`teleop/act` this node sends it to the robot, through the same loop, gate and record as the policy node; at a
takeover the policy node does. Buttons take over, stop, and mark episodes. Left out: force feedback.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

from rclpy.client import Client
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from sensor_msgs.msg import Joy
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from efm_core.embodiment import Embodiment, load_embodiment
from efm_core.errors import Reason
from efm_msgs.action import Act
from efm_policy_node.act_server import ActServer
from efm_policy_node.commanders import Rivals
from efm_policy_node.diagnosis import diagnose_robot
from efm_policy_node.inference import BatchInference, Checks, Pilot
from efm_policy_node.loop_ports import ActGoal, ActRefused, Ending, LoopSettings
from efm_policy_node.robot_io import RobotIo
from efm_policy_node.steering import Pad, Steering, Switches
from efm_ros.commands import encode_command, message_type
from efm_ros.conversion import stamp_to_ns
from efm_ros.intake import Intake
from efm_ros.latched import newest_only
from efm_ros.lifecycle import OK, EfmLifecycleNode, NodeParameters
from efm_ros.parameters import param
from efm_ros.qos import COMMANDS, LATCHED

EPISODE_BUTTONS = ("start", "stop", "mark_success", "mark_failure", "discard", "reset_done")
CHECK_S = 0.01


def _button(number: int, what: str) -> Any:
    return param(number, low=-1, high=63, description=f"Button that {what}; -1: none.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeleopParameters(NodeParameters):
    """See the description of each."""

    embodiment: str = param(description="Embodiment of the robot, by name or path.")
    lockstep: bool = param(False, description="The world waits for each command; the person sets the pace.")
    dry_run: bool | None = param(
        None, description="Decide and record, but send nothing. Not given: as the embodiment says."
    )
    steering: tuple[str, ...] = param(
        (),
        description="Control of each action dimension: 'axis 1', 'axis 1 reversed', 'buttons 4 5', "
        "'toggle 6', 'still'. Empty: axis 0, 1, ...",
    )
    speed: float = param(
        1.0, low=0.01, high=1.0, description="Share of the greatest speed at full deflection."
    )
    deadzone: float = param(0.1, low=0.0, high=0.9, description="Smaller deflections are none.")
    joy_timeout: float = param(
        1.0, low=0.1, high=60.0, unit="s", description="A gamepad that is silent for so long is gone."
    )
    human_timeout: float = param(
        0.5, low=0.05, high=60.0, unit="s", description="A command holds for so long, then stillness."
    )
    stale_end: float = param(
        10.0, low=0.1, high=3600.0, unit="s", description="An act that waits so long for input ends."
    )
    known_commanders: tuple[str, ...] = param(
        ("policy",), description="Names of nodes that may publish commands, since they wait for their turn."
    )
    allow_second_commander: bool = param(
        False, description="Act although another node publishes on the command topic."
    )
    button_enable: int = _button(-1, "has to be held for the gamepad to steer")
    button_takeover: int = _button(7, "takes over from the policy, and gives back")
    button_estop: int = _button(6, "stops, and releases the stop")
    button_start: int = _button(-1, "starts an episode")
    button_stop: int = _button(-1, "ends an episode")
    button_mark_success: int = _button(0, "ends an episode as a success")
    button_mark_failure: int = _button(1, "ends an episode as a failure")
    button_discard: int = _button(2, "throws an episode away")
    button_reset_done: int = _button(3, "says that the scene is ready")


class TeleopNode(EfmLifecycleNode):
    """See the description of the file."""

    Parameters = TeleopParameters
    parameters: TeleopParameters

    def __init__(self, **options: Any) -> None:
        """Declares the parameters."""
        super().__init__("teleop", **options)
        self._embodiment: Embodiment | None = None
        self._intake: Intake | None = None
        self._io: RobotIo | None = None
        self._server: ActServer | None = None
        self._pilot: Pilot | None = None
        self._checks: Checks | None = None
        self._owned: list[tuple[Callable[[Any], Any], Any]] = []
        self._episodes: dict[str, Client] = {}
        self._others: tuple[str, ...] = ()
        self._pad, self._pad_s = Pad(), -math.inf
        self._takeover = self._steers = False

    # Lifecycle
    # --------------------------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Opens topics and the action; nothing is commanded yet."""
        settings = self.parameters
        self._embodiment = embodiment = load_embodiment(settings.embodiment)
        period_s = 1.0 / embodiment.control_rate_hz
        self._steering = Steering(
            embodiment.action, settings.steering, settings.speed, settings.deadzone, period_s
        )
        names = ("takeover", "estop", *EPISODE_BUTTONS)
        self._switches = Switches({name: getattr(settings, f"button_{name}") for name in names})
        self._intake = Intake(self)
        loop = LoopSettings(
            lockstep=settings.lockstep,
            dry_run=embodiment.dry_run if settings.dry_run is None else settings.dry_run,
            stale_end_s=settings.stale_end,
            human_timeout_s=settings.human_timeout,
            check_period_s=CHECK_S,
            only_human=True,
        )
        inference = BatchInference(lambda policy, error: None)
        self._io = RobotIo(
            self, "", embodiment, loop, self._intake, inference.add, self._ended, takeover=False
        )
        self._server = ActServer(self, "teleop/act", self._io.loop, self._prepare, self._rivals)
        simulated = self.get_parameter("use_sim_time").value
        rate_s = None if settings.lockstep or simulated else period_s
        self._pilot = Pilot(self._intake, [self._io.loop], inference, self.fail, rate_s)
        self._pilot.open()
        self._checks = Checks([self._io.loop], CHECK_S, self.fail)
        self._checks.open()
        self._wish = self.create_publisher(message_type(embodiment.action), "teleop/command", COMMANDS)
        self._takeover_topic = self.create_publisher(Bool, "takeover", LATCHED)
        self._estop_topic = self.create_publisher(Bool, "estop", LATCHED)
        self._episodes = {name: self.create_client(Trigger, f"episodes/{name}") for name in EPISODE_BUTTONS}
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        timers = [
            self.create_timer(period_s, self._steer, clock=steady),
            self.create_timer(1.0, self._look_for_rivals, clock=steady),
        ]
        if simulated and not settings.lockstep:
            timers.append(self.create_timer(period_s, self._io.loop.tick))
        subscriptions = [
            self.create_subscription(Joy, "joy", self._joy, 5),
            self.create_subscription(Bool, "takeover", newest_only(self._taken_over), LATCHED),
        ]
        publishers = [self._wish, self._takeover_topic, self._estop_topic]
        self._owned += [(self.destroy_timer, timer) for timer in timers]
        self._owned += [(self.destroy_subscription, subscription) for subscription in subscriptions]
        self._owned += [(self.destroy_publisher, publisher) for publisher in publishers]
        self._owned += [(self.destroy_client, client) for client in self._episodes.values()]

    def start(self) -> None:
        """Lets acts begin."""
        if self._io is not None:
            self._io.loop.enable()

    def stop(self) -> None:
        """Ends an act and holds the robot still."""
        if self._io is not None:
            self._io.loop.disable()

    def release(self) -> None:
        """Ends the thread and closes what was opened; after a half-done `acquire` too."""
        if self._checks is not None:
            self._checks.close()
        if self._pilot is not None:
            self._pilot.close()
        for destroy, thing in self._owned:
            destroy(thing)
        if self._server is not None:
            self._server.destroy()
        if self._io is not None:
            self._io.close()
        if self._intake is not None:
            self._intake.close()
        self._owned.clear()
        self._episodes.clear()
        self._checks = self._pilot = self._server = self._io = self._intake = None

    def update_diagnostics(self) -> None:
        """Tells how the robot is, and whether the gamepad is there."""
        if self._io is not None and self._embodiment is not None:
            diagnose_robot(self, self._io, self._embodiment, self._others)
            silent_s = time.monotonic() - self._pad_s
            there = silent_s <= self.parameters.joy_timeout
            text = "there" if there else "none on 'joy'; 'teleop/command' steers as well"
            self.diagnose("gamepad", OK, text, silent_s=silent_s, takes_over=self._takeover)

    # Acts
    # --------------------------------------------------------------------------------------------------

    def _prepare(self, request: Act.Goal) -> tuple[ActGoal, None]:
        if not self.is_active:
            raise ActRefused(Reason.NOT_ACTIVE, "expected an active node; activate it first")
        return ActGoal(
            episode_id=request.episode_id,
            instruction=request.instruction,
            start_ns=stamp_to_ns(request.start),
            max_steps=request.max_steps,
        ), None

    def _ended(self, ending: Ending) -> None:
        if self._server is not None:
            self._server.ended(ending)

    def _rivals(self) -> Rivals:
        if self._io is None or self.parameters.allow_second_commander:
            return Rivals((), False)
        return self._io.rivals(self.parameters.known_commanders)

    def _look_for_rivals(self) -> None:
        if self._io is None:
            return
        self._others = self._rivals().names
        if self._others:
            names = ", ".join(self._others)
            self._io.loop.cancel(Reason.BUSY, f"another commander turned up on the command topic: {names}")

    # The gamepad
    # --------------------------------------------------------------------------------------------------

    def _joy(self, message: Joy) -> None:
        self._pad, self._pad_s = Pad(message.axes, message.buttons), time.monotonic()
        if self._io is None or not self.is_active:
            return
        for name in self._switches.pressed(self._pad):
            if name == "takeover":
                self._takeover = not self._takeover  # At once: the next press may come before the message.
                self._takeover_topic.publish(Bool(data=self._takeover))
            elif name == "estop":
                self._estop_topic.publish(Bool(data=not self._io.loop.status().estop))
            elif (client := self._episodes[name]).service_is_ready():
                client.call_async(Trigger.Request())
            else:
                self.get_logger().warning(f"episodes/{name}: no such service; is the episode node running?")

    def _taken_over(self, message: Bool) -> None:
        self._takeover = message.data

    def _steer(self) -> None:
        """Publishes what the gamepad wants, while the person has control of the robot."""
        if self._io is None or self._embodiment is None or not self.is_active:
            return
        present = time.monotonic() - self._pad_s <= self.parameters.joy_timeout
        enable = self.parameters.button_enable
        enabled = enable < 0 or self._pad.button(enable)
        if not (present and enabled and (self._takeover or self._io.loop.status().acting)):
            self._steers = False
            return
        if not self._steers and not self._steering.begin(self._io.loop.where()):
            return
        self._steers = True
        self._wish.publish(encode_command(self._embodiment, self._steering.step(self._pad), 0))
