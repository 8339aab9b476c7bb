"""How the scene is made ready for an episode: one small class for every way.

    class BellReset:
        def __init__(self, context: ResetContext) -> None:
            self._context = context

        def missing(self) -> str:
            return ""

        def reset(self, seed: int, instruction: str) -> Scene:
            ring_the_bell()
            return Scene(self._context.now_ns(), 0, instruction)

A way of your own is one file with such a class, registered by name under the entry point group `efm.resets`;
the parameter `reset` of the episode node names it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Protocol

import numpy as np
from rclpy.node import Node

from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest, EfmError, EstopPressed, Reason, WaitTimeout, nearest
from efm_core.safety import SafetyGate
from efm_episode_node.run_types import Scene
from efm_episode_node.service_caller import ServiceCaller
from efm_msgs.srv import ResetWorld
from efm_ros.commands import CommandChannel
from efm_ros.conversion import stamp_to_ns

ENTRY_POINT_GROUP = "efm.resets"
SETTLE_S = 1.0  # A trajectory's last point is held so long before the episode begins.
LEAST_MOVE_S = 2.0  # A move to a point of a trajectory takes at least so long.


@dataclass(frozen=True)
class ResetContext:
    """What a reset may use. `reset` is called in the runner's thread, so that it may wait.

    Attributes:
        node: For topics and services of its own.
        embodiment: `embodiment.reset` has its settings.
        timeout_s: Longest wait for machines.
        wait_for_person: Shows a text, waits until a person confirms, raises WaitTimeout or ends the run.
        measured: Where every action dimension is now, float64 [D]; None where that is not measured.
        stopped: Why the reset must end at once: "cancelled", or "the e-stop is pressed"; empty: it need not.
        dry_run: Nothing may be sent to the robot.
        policy_missing: Names the policy's action where nobody offers it; empty when it is there.
        ask_policy: Lets the policy act on an instruction, unrecorded, and waits for its end.
        instruction: What the policy is asked for by method 'policy'.
    """

    node: Node
    embodiment: Embodiment
    timeout_s: float
    wait_for_person: Callable[[str], None]
    measured: Callable[[], np.ndarray | None]
    stopped: Callable[[], str]
    dry_run: bool
    policy_missing: Callable[[], str]
    ask_policy: Callable[[str], None]
    instruction: str

    def now_ns(self) -> int:
        """Gives the robot's clock [ns]."""
        return self.node.get_clock().now().nanoseconds


class Reset(Protocol):
    """A way to make the scene ready. Made once with the context; `reset` is called before every episode."""

    def missing(self) -> str:
        """Names what the reset needs and is not there, for people; empty when all is there. Returns at
        once.
        """

    def reset(self, seed: int, instruction: str) -> Scene:
        """Makes the scene ready and gives the stamp of the first observation that counts.

        Args:
            seed: Of the start state, for what can be seeded. 0: none.
            instruction: Of the episode. Empty: the reset chooses one.

        Raises:
            EfmError: WaitTimeout is tried again, everything else ends the run.
        """


class ServiceReset:
    """A simulator's service resets, seeds, and knows the instructions."""

    def __init__(self, context: ResetContext) -> None:
        self._context = context
        self._service = ServiceCaller(
            context.node,
            ResetWorld,
            context.embodiment.reset.service,
            lambda: context.stopped() == "cancelled",
        )

    def missing(self) -> str:
        """Looks for the simulator's service."""
        return "" if self._service.is_there() else f"service {self._service.name} (is the simulator running?)"

    def reset(self, seed: int, instruction: str) -> Scene:
        """Asks the simulator, which may choose seed and instruction itself."""
        request = ResetWorld.Request(seed=seed, instruction=instruction)
        answer = self._service.call(request, self._context.timeout_s)
        if answer.reason == Reason.NOT_ACTIVE:
            raise WaitTimeout(f"service {self._service.name}: {answer.message}")
        if answer.reason != Reason.OK:
            raise BadRequest(f"service {self._service.name}: {answer.message}")
        return Scene(stamp_to_ns(answer.stamp), answer.seed, answer.instruction)


class PersonReset:
    """A person puts the scene in order and confirms with `episodes/reset_done`."""

    def __init__(self, context: ResetContext) -> None:
        self._context = context

    def missing(self) -> str:
        """Nothing: a person is asked when it is time."""
        return ""

    def reset(self, seed: int, instruction: str) -> Scene:
        """Asks a person and waits for the confirmation."""
        task = f" for '{instruction}'" if instruction else ""
        self._context.wait_for_person(f"make the scene ready{task}, then call episodes/reset_done")
        return Scene(self._context.now_ns(), 0, instruction)


class TrajectoryReset:
    """The robot drives through the points of `reset.points`, slowly, and through the safety gate.

    Points are places where the embodiment commands places (hold_still measured or last), reached from where
    the robot is measured to be; else each is one command for one control period.
    """

    def __init__(self, context: ResetContext) -> None:
        self._context = context
        self._embodiment = context.embodiment
        if not self._embodiment.reset.points:
            raise BadRequest(f"embodiment '{self._embodiment.name}': reset 'trajectory' needs reset.points")
        self._places = self._embodiment.action.hold_still != "zero"
        self._channel = CommandChannel(context.node, self._embodiment)

    def missing(self) -> str:
        """Looks for the robot's measured positions."""
        if self._places and self._context.measured() is None:
            return "the measured positions of all action dimensions"
        return ""

    def reset(self, seed: int, instruction: str) -> Scene:
        """Drives the robot through the points, or stops where it may not move."""
        gate = SafetyGate(self._embodiment.action, self._embodiment.control_rate_hz)
        period_s = 1.0 / self._embodiment.control_rate_hz
        here = self._context.measured() if self._places else None
        if here is not None:
            gate.reset(here)
        try:
            for values in self._path(here):
                if why := self._context.stopped():
                    raise EstopPressed(f"the reset was stopped: {why}")
                command, _ = gate.check(values, period_s)
                if not self._context.dry_run:
                    self._channel.send(command, self._context.now_ns())
                time.sleep(period_s)
        finally:
            if not self._context.dry_run:
                self._channel.hold(self._context.now_ns(), self._context.measured())
        time.sleep(SETTLE_S)
        return Scene(self._context.now_ns(), 0, instruction)

    def _path(self, here: np.ndarray | None) -> np.ndarray:
        """Returns the commands [N, D], one per control period."""
        points = np.array(self._embodiment.reset.points, np.float64)
        if here is None:
            return points
        dimensions = self._embodiment.action.dimensions
        rates = np.array([dimension.max_rate for dimension in dimensions])
        legs = []
        for start, end in zip([here, *points[:-1]], points, strict=True):
            duration_s = max(LEAST_MOVE_S, float(np.max(np.abs(end - start) / rates)))
            share = np.linspace(0.0, 1.0, max(2, round(duration_s * self._embodiment.control_rate_hz) + 1))[
                1:
            ]
            legs.append(start + share[:, None] * (end - start))
        return np.concatenate(legs)


class PolicyReset:
    """The policy undoes the task itself, asked by an instruction of its own; nothing of it is recorded."""

    def __init__(self, context: ResetContext) -> None:
        self._context = context
        if not context.instruction:
            raise BadRequest(
                "reset 'policy': expected the parameter 'reset_instruction', found an empty text"
            )

    def missing(self) -> str:
        """Names the policy's action."""
        return self._context.policy_missing()

    def reset(self, seed: int, instruction: str) -> Scene:
        """Lets the policy act."""
        self._context.ask_policy(self._context.instruction)
        return Scene(self._context.now_ns(), 0, instruction)


class NoReset:
    """The episode begins where the last one ended."""

    def __init__(self, context: ResetContext) -> None:
        self._context = context

    def missing(self) -> str:
        """Nothing."""
        return ""

    def reset(self, seed: int, instruction: str) -> Scene:
        """Begins now."""
        return Scene(self._context.now_ns(), 0, instruction)


BUILT_IN: dict[str, Callable[[ResetContext], Reset]] = {
    "service": ServiceReset,
    "person": PersonReset,
    "trajectory": TrajectoryReset,
    "policy": PolicyReset,
    "none": NoReset,
}


def make_reset(name: str, context: ResetContext) -> Reset:
    """Makes a reset by name.

    Raises:
        BadRequest: The name is unknown, or the reset's settings are missing.
    """
    others = {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINT_GROUP)}
    if name in BUILT_IN:
        return BUILT_IN[name](context)
    if name in others:
        try:
            return others[name].load()(context)
        except EfmError:
            raise
        except Exception as error:
            raise BadRequest(f"reset '{name}' ({others[name].value}) does not load: {error}") from error
    known = [*BUILT_IN, *others]
    raise BadRequest(f"reset: expected one of {', '.join(known)}, found '{name}'{nearest(name, known)}")
