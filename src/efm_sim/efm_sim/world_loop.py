"""The one thread in which the worlds of a process live: it takes commands, steps, lets experts act, and
publishes.

In lockstep a world steps as soon as the command that answers its last observation has come, and who records
it has not fallen far behind; an observation that nobody answers is shown again after a while. In real time
all worlds step together, by the steady clock.
Resets and experts are asked for from other threads and come back as futures.
Left out: services, actions and parameters, which `node` has.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Header

from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest, EfmError, WaitTimeout
from efm_msgs.msg import EpisodeSummary, PolicyStep
from efm_ros.commands import decode_command, message_type
from efm_ros.conversion import ns_to_stamp, stamp_to_ns
from efm_ros.intake import Intake
from efm_ros.names import in_robot
from efm_ros.qos import COMMANDS
from efm_sim.lockstep import ExpertStep, SimulatedClock, SimulatedRobot, Snapshot
from efm_sim.slot import Act, ActResult, Slot
from efm_sim.world import ExpertStyle

Result = TypeVar("Result")
# Wall time between two messages on /clock in lockstep: nodes in lockstep go by stamps, and a clock that ticks
# with every step would cost every node of the graph more than the step itself.
CLOCK_PERIOD_S = 0.01
# Topic on which who records a robot tells the newest observation that it holds.
RECORDED = "recorded"
# Messages on /clock within one control period in real time.
CLOCK_TICKS = 10
IDLE_WAIT_S = 0.1
REQUEST_DEADLINE_S = 60.0


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs; see the parameters of the node."""

    lockstep: bool
    real_time_factor: float
    republish_s: float
    publish_clock: bool
    style: ExpertStyle


class WorldLoop:
    """Runs the worlds of a process from `open` to `close`; they stand still until `run(True)`."""

    def __init__(
        self, node: Node, embodiment: Embodiment, clock: SimulatedClock, settings: LoopSettings
    ) -> None:
        self._node = node
        self._embodiment = embodiment
        self._clock = clock
        self._settings = settings
        self._intake = Intake(node)
        self._slots: dict[str, Slot] = {}
        self._requests: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ending = False
        self._running = False
        self._clock_publisher = (
            node.create_publisher(Clock, "/clock", COMMANDS) if settings.publish_clock else None
        )
        self._clock_shown_at = 0.0
        self._next_tick = 0.0
        self.on_fault: Callable[[BaseException], None] = lambda error: None
        self.republished = 0
        self.late_ticks = 0
        self._command_type = message_type(embodiment.action)

    def open(self, robots: dict[str, Callable[[], SimulatedRobot]]) -> None:
        """Makes the worlds, in the thread that will step them, or raises what their makers raise."""
        self._thread = threading.Thread(target=self._main, name="worlds", daemon=True)
        self._thread.start()
        for name, make in robots.items():
            self.call(partial(self._add, name, make))

    def run(self, running: bool) -> None:
        """Starts or stops all stepping; acts of experts end when it stops."""
        if not running and (self._thread is None or not self._thread.is_alive()):
            return
        self.call(lambda: self._set_running(running))

    def close(self) -> None:
        """Ends the thread and frees the worlds; may be called at any time, more often too."""
        if self._thread is not None and self._thread.is_alive():
            self._ending = True
            self._intake.wake()
            self._thread.join(REQUEST_DEADLINE_S)
        self._thread = None
        self._intake.close()
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()
        if self._clock_publisher is not None:
            self._node.destroy_publisher(self._clock_publisher)
            self._clock_publisher = None
        self._clock.close()

    def reset(self, name: str, seed: int, instruction: str) -> tuple[Snapshot, int, str]:
        """Begins an episode of a robot, ends its expert's act, and shows the first observation.

        Returns:
            First observation, seed and instruction that hold now.

        Raises:
            BadRequest: Unknown instruction.
            WaitTimeout: The world did not come back within the deadline.
        """

        def reset() -> tuple[Snapshot, int, str]:
            slot = self._slots[name]
            self._end_act(slot, "the world was reset")
            snapshot, used = slot.robot.reset(seed, instruction)
            slot.command = slot.unanswered = None
            slot.recorder.told(0)
            self._show_clock()
            slot.show(snapshot)
            return snapshot, used, slot.robot.instruction

        return self.call(reset)

    def start_act(
        self,
        name: str,
        episode_id: str,
        instruction: str,
        seed: int,
        max_steps: int,
        feedback: Callable[[int, int], None],
    ) -> Act:
        """Lets a robot's expert act from now on.

        Raises:
            BadRequest: The loop does not run, the robot's expert acts already, the world has none, or the
                instruction is not the one of the last reset.
        """

        def start() -> Act:
            slot = self._slots[name]
            if not self._running:
                raise BadRequest("the simulator is not active")
            if slot.act is not None:
                raise BadRequest(
                    f"the expert of robot '{name}' acts already; cancel that goal or reset the world first"
                )
            if instruction and instruction != slot.robot.instruction:
                raise BadRequest(
                    f"expected the instruction of the last reset, '{slot.robot.instruction}', "
                    f"found '{instruction}'"
                )
            act = Act(episode_id, slot.robot.expert(self._settings.style, seed, max_steps), feedback)
            if slot.robot.pending is not None:
                slot.show(slot.robot.pending)  # Who joined after the reset has seen nothing yet.
            slot.act = act
            return act

        return self.call(start)

    def call(self, work: Callable[[], Result]) -> Result:
        """Runs `work` in the worlds' thread between two steps and gives back what it returns or raises."""
        if threading.current_thread() is self._thread:
            return work()
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 the caller gets it
                future.set_exception(error)

        self._requests.put(run)
        self._intake.wake()
        deadline = time.monotonic() + REQUEST_DEADLINE_S
        while True:
            try:
                return future.result(IDLE_WAIT_S)
            except FutureTimeout as error:
                if future.done():
                    raise
                if self._thread is None or not self._thread.is_alive():
                    raise WaitTimeout("the worlds' thread has ended; its error is in the log") from error
                if time.monotonic() > deadline:
                    raise WaitTimeout(
                        f"the worlds' thread did not answer within {REQUEST_DEADLINE_S:g} s"
                    ) from error

    def steps(self) -> dict[str, int]:
        """Gives the control steps of every robot since the start."""
        return {name: slot.robot.steps for name, slot in self._slots.items()}

    def ignored(self) -> int:
        """Gives how many commands answered an observation that was not the newest."""
        return sum(slot.robot.ignored for slot in self._slots.values())

    # The thread ---------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            while not self._ending:
                while not self._requests.empty():
                    self._requests.get()()
                if not self._running:
                    self._intake.take(IDLE_WAIT_S)
                elif self._settings.lockstep:
                    self._lockstep_round()
                else:
                    self._real_time_round()
        except Exception as error:  # noqa: BLE001 handed to the node, which ends with it
            self.on_fault(error)
        finally:
            for slot in self._slots.values():
                self._end_act(slot, "the simulator stopped")
                slot.robot.close()

    def _add(self, name: str, make: Callable[[], SimulatedRobot]) -> None:
        slot = Slot(self._node, self._embodiment, name, make(), self._settings.lockstep)
        self._slots[name] = slot
        topic = in_robot(name, self._embodiment.action.topic)
        # Raw: what the expert itself sends comes back here, and is dropped before it costs anything.
        self._intake.subscribe(
            self._command_type, topic, lambda data: self._on_command(slot, data), COMMANDS, raw=True
        )
        if self._settings.lockstep:
            recorded = in_robot(name, RECORDED)
            self._intake.subscribe(Header, recorded, lambda told: self._on_recorded(slot, told), COMMANDS)

    def _set_running(self, running: bool) -> None:
        self._running = running
        self._next_tick = time.monotonic()
        for slot in self._slots.values():
            if not running:
                self._end_act(slot, "the simulator was deactivated")
            elif slot.robot.pending is not None:
                slot.show(slot.robot.pending)

    def _on_command(self, slot: Slot, data: bytes) -> None:
        if not self._running:
            return
        if slot.act is not None:
            return
        if self._settings.lockstep and slot.must_wait:
            slot.unanswered = data
            return
        try:
            message = deserialize_message(data, self._command_type)
            values, answered_ns = decode_command(self._embodiment, message)
            if self._settings.lockstep:
                snapshot = slot.robot.answer(values, answered_ns)
                if snapshot is not None:
                    self._show_clock_now_and_then()
                    slot.show(snapshot)
            elif answered_ns is None or answered_ns > slot.expert_answered_ns:
                slot.command, slot.command_at = values, time.monotonic()
        except BadRequest as error:
            self._node.get_logger().warning(f"command refused: {error}", throttle_duration_sec=2.0)

    def _on_recorded(self, slot: Slot, told: Header) -> None:
        slot.recorder.told(stamp_to_ns(told.stamp))

    def _lockstep_round(self) -> None:
        acting = False
        for slot in self._slots.values():
            is_cancelled = slot.act is not None and slot.act.cancelled is not None
            if slot.must_wait and not is_cancelled:
                continue
            if slot.unanswered is not None:
                data, slot.unanswered = slot.unanswered, None
                self._on_command(slot, data)
            if slot.act is not None:
                acting = True
                self._expert_step(slot)
        self._show_clock_now_and_then()
        if acting:
            self._intake.take(0.0)
            return
        took = self._intake.take(min(IDLE_WAIT_S, self._settings.republish_s / 2))
        if not took:
            self._show_clock()
        for slot in self._slots.values():
            pending = slot.robot.pending
            if pending is not None and time.monotonic() - slot.shown_at >= self._settings.republish_s:
                self.republished += 1
                slot.show(pending)

    def _real_time_round(self) -> None:
        period = 1.0 / (self._embodiment.control_rate_hz * self._settings.real_time_factor)
        left = self._next_tick - time.monotonic()
        if left > 0:
            self._intake.take(min(left, period / CLOCK_TICKS))
            self._show_clock(part=1.0 - max(0.0, self._next_tick - time.monotonic()) / period)
            return
        if left < -period:
            # What is late stays late: catching up in a burst would be a robot that no clock fits.
            self.late_ticks += int(-left / period)
            self._next_tick = time.monotonic()
        self._next_tick += period
        for slot in self._slots.values():
            if slot.robot.pending is None:
                continue
            if slot.act is not None:
                self._expert_step(slot)
                continue
            fresh = time.monotonic() - slot.command_at < self._embodiment.watchdog_periods * period
            if slot.command is not None and (fresh or self._embodiment.action.hold_still != "zero"):
                slot.show(slot.robot.step(slot.command))
            else:
                slot.show(slot.robot.idle())
        self._show_clock()

    def _expert_step(self, slot: Slot) -> None:
        act = slot.act
        assert act is not None
        if act.cancelled is not None or act.expert.finished:
            self._end_act(slot, act.cancelled)
            return
        try:
            step = act.expert.step()
        except EfmError as error:
            self._end_act(slot, str(error))
            return
        slot.command_robot(step.action, step.stamp_ns)
        slot.expert_answered_ns = step.stamp_ns
        slot.steps_publisher.publish(self._policy_step(act, step))
        slot.show(step.after)
        if time.monotonic() - act.fed_back_at >= 1.0:
            act.fed_back_at = time.monotonic()
            act.feedback(act.expert.steps, step.after.stamp_ns)

    def _policy_step(self, act: Act, step: ExpertStep) -> PolicyStep:
        message = PolicyStep(
            episode_id=act.episode_id, step=act.expert.steps - 1, actor=PolicyStep.ACTOR_EXPERT
        )
        message.header.stamp = ns_to_stamp(step.stamp_ns)
        message.header.frame_id = self._embodiment.action.frame_id
        message.gate = PolicyStep.GATE_PASSED
        message.log_prob = message.temperature = message.latency = float("nan")
        message.action = message.command = step.action.tolist()
        return message

    def _end_act(self, slot: Slot, why: str | None) -> None:
        act, slot.act = slot.act, None
        if act is None:
            return
        outcome = EpisodeSummary.OUTCOME_SUCCESS if act.expert.success else EpisodeSummary.OUTCOME_FAILURE
        slot.command = None
        act.result.set_result(
            ActResult(
                act.expert.steps, act.expert.seed, outcome, cancelled=why is not None, message=why or ""
            )
        )

    def _show_clock_now_and_then(self) -> None:
        if time.monotonic() - self._clock_shown_at >= CLOCK_PERIOD_S:
            self._show_clock()

    def _show_clock(self, part: float = 0.0) -> None:
        """Publishes the time: that of the newest observation, and in real time `part` of a control period
        more.
        """
        if self._clock_publisher is None or not self._running:
            return
        self._clock_shown_at = time.monotonic()
        period_ns = 1e9 / self._embodiment.control_rate_hz
        now_ns = self._clock.now_ns + int(min(max(part, 0.0), 0.99) * period_ns)
        self._clock_publisher.publish(Clock(clock=ns_to_stamp(now_ns)))
