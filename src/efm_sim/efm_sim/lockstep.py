"""A world as a robot that is commanded: stamps, the one observation that waits for its answer, and acts of an
expert.

In lockstep a `SimulatedRobot` steps only on the command that answers its last observation; in real time it is
stepped by the clock with the newest command. `SimulatedClock` gives every observation of the process a later
stamp than the last one, over resets and over restarts of the process. Nothing here knows ROS, topics or
threads.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efm_core.embodiment import Embodiment
from efm_core.errors import BadRequest, EmbodimentMismatch
from efm_sim.world import Expert, ExpertStyle, Observation, Truth, World, WorldSpec

NANOSECONDS = 1_000_000_000
# Simulated time that is reserved in the clock's file at once; a killed process comes back this much later at
# most.
RESERVE_NS = 1000 * NANOSECONDS
# Stamps are int32 seconds.
LATEST_NS = (2**31 - 1) * NANOSECONDS - 2 * RESERVE_NS
GREATEST_SEED = 2**31 - 1


class SimulatedClock:
    """Simulated time of one process, as the newest stamp that was given away.

    It starts at the wall clock, or later where `file` says that an earlier process had come further: lockstep
    runs faster than the wall clock, so that this happens at every restart.
    """

    def __init__(self, file: Path | None, wall_ns: int) -> None:
        """Starts.

        Args:
            file: Where the time that is used up is kept. None: nowhere; stamps may then repeat after a
                restart.
            wall_ns: Wall clock [ns].

        Raises:
            BadRequest: The file holds no time, or one that stamps cannot hold.
        """
        self._file = file
        self.now_ns = max(wall_ns, _read_mark(file))
        if self.now_ns > LATEST_NS:
            raise BadRequest(
                f"{file}: expected a time before the year 2038, found {self.now_ns} ns; delete the file and "
                "start the other nodes anew, since stamps will go back"
            )
        self._mark_ns = 0
        self._reserve()

    def advance(self, stamp_ns: int) -> None:
        """Notes that a stamp was given away; the clock's time is the newest of them."""
        self.now_ns = max(self.now_ns, stamp_ns)
        if self.now_ns >= self._mark_ns:
            self._reserve()

    def close(self) -> None:
        """Keeps the exact time, so that the next process follows on without a gap."""
        self._write(self.now_ns + 1)

    def _reserve(self) -> None:
        self._mark_ns = self.now_ns + RESERVE_NS
        self._write(self._mark_ns)

    def _write(self, mark_ns: int) -> None:
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        temporary.write_text(f"{mark_ns}\n")
        temporary.replace(self._file)


def _read_mark(file: Path | None) -> int:
    if file is None:
        return 0
    with contextlib.suppress(FileNotFoundError):
        text = file.read_text().strip()
        if not text.isdecimal():
            raise BadRequest(f"{file}: expected nanoseconds as digits, found {text[:40]!r}; delete the file")
        return int(text)
    return 0


@dataclass(frozen=True)
class Snapshot:
    """An observation with its stamp, and the truth about it."""

    stamp_ns: int
    observation: Observation
    truth: Truth


@dataclass(frozen=True)
class ExpertStep:
    """One control step of an expert: `action` [D] answered the observation of `stamp_ns` and led to
    `after`.
    """

    stamp_ns: int
    action: np.ndarray
    after: Snapshot


class SimulatedRobot:
    """One world with a clock. All calls come from one thread, as the world demands."""

    def __init__(
        self, world: World, embodiment: Embodiment, clock: SimulatedClock, rng: np.random.Generator
    ) -> None:
        """Takes a world that fits the embodiment.

        Raises:
            EmbodimentMismatch: Names, order, sizes, bounds or rate differ.
        """
        check_embodiment(world.spec, embodiment)
        self._world = world
        self._embodiment = embodiment
        self._clock = clock
        self._rng = rng
        self._period_ns = round(NANOSECONDS / world.spec.control_rate_hz)
        self._last_command: np.ndarray | None = None
        self.pending: Snapshot | None = None
        self.steps = 0
        self.ignored = 0

    @property
    def instruction(self) -> str:
        """What is to be done in the running episode."""
        return self._world.instruction

    def reset(self, seed: int, instruction: str) -> tuple[Snapshot, int]:
        """Begins an episode.

        Args:
            seed: 0: one is drawn.
            instruction: Empty: the world chooses.

        Returns:
            The first observation, and the seed that was used.

        Raises:
            BadRequest: The world does not know the instruction.
        """
        seed = seed or int(self._rng.integers(1, GREATEST_SEED))
        try:
            observation = self._world.reset(seed, instruction or None)
        except ValueError as error:
            raise BadRequest(str(error)) from error
        self._last_command = None
        # Robots of one process are brought level here: one that rested does not lag behind /clock.
        self.pending = self._snapshot(observation, self._clock.now_ns + self._period_ns)
        return self.pending, seed

    def answer(self, values: np.ndarray, answered_ns: int | None) -> Snapshot | None:
        """Steps on a command in lockstep.

        Args:
            values: float [D].
            answered_ns: Stamp of the observation that the command answers [ns]. None: it does not say, and is
                taken for an answer to the newest.

        Returns:
            The next observation. None: the command answers an older observation, and nothing happened.

        Raises:
            BadRequest: The values are not finite or too many; nothing happened.
        """
        if self.pending is None or (answered_ns is not None and answered_ns != self.pending.stamp_ns):
            self.ignored += 1
            return None
        return self.step(values)

    def step(self, values: np.ndarray) -> Snapshot:
        """Steps, whatever the command answers.

        Raises:
            BadRequest: The values are not finite or too many, or there was no reset; nothing happened.
        """
        if self.pending is None:
            raise BadRequest("the world was not reset yet: call the service 'reset' first")
        try:
            observation = self._world.step(values)
        except ValueError as error:
            raise BadRequest(str(error)) from error
        self._last_command = np.array(values, np.float64)
        self.steps += 1
        self.pending = self._snapshot(observation, self.pending.stamp_ns + self._period_ns)
        return self.pending

    def idle(self) -> Snapshot:
        """Lets one control period pass without a command, as the robot's controller would.

        With `hold_still: zero` commands are speeds or steps, and none means zero (a gripper keeps its last);
        else they are places, and the last one holds. Before the first one the world rests.
        """
        if self.pending is None:
            raise BadRequest("the world was not reset yet: call the service 'reset' first")
        if self._embodiment.action.hold_still == "zero":
            return self.step(self._zero())
        if self._last_command is not None:
            return self.step(self._last_command)
        self.pending = self._snapshot(self.pending.observation, self.pending.stamp_ns + self._period_ns)
        return self.pending

    def expert(self, style: ExpertStyle, seed: int, max_steps: int) -> ExpertAct:
        """Begins an act of the world's expert from the current state on.

        Args:
            style: How it errs.
            seed: 0: one is drawn.
            max_steps: 0: the world's.

        Raises:
            BadRequest: The world has no expert.
        """
        seed = seed or int(self._rng.integers(1, GREATEST_SEED))
        try:
            expert = self._world.expert(style, seed)
        except NotImplementedError as error:
            raise BadRequest(
                f"the world '{self._world.spec.name}' has no expert; let a person or a policy act"
            ) from error
        return ExpertAct(self, expert, seed, max_steps or self._world.spec.max_steps)

    def close(self) -> None:
        """Frees the world."""
        self._world.close()

    def _snapshot(self, observation: Observation, stamp_ns: int) -> Snapshot:
        self._clock.advance(stamp_ns)
        return Snapshot(stamp_ns, observation, self._world.truth())

    def _zero(self) -> np.ndarray:
        values = np.zeros(len(self._embodiment.action.dimensions))
        for index, dimension in enumerate(self._embodiment.action.dimensions):
            if dimension.gripper and self._last_command is not None:
                values[index] = self._last_command[index]
            values[index] = min(max(values[index], dimension.low), dimension.high)
        return values


class ExpertAct:
    """One act of a world's expert: `step` until `finished`, then `success` is the demonstrator's own
    claim.
    """

    def __init__(self, robot: SimulatedRobot, expert: Expert, seed: int, max_steps: int) -> None:
        self._robot = robot
        self._expert = expert
        self.seed = seed
        self.max_steps = max_steps
        self.steps = 0

    @property
    def finished(self) -> bool:
        """True when the expert has rested long enough after its success or failure, or `max_steps` are
        over.
        """
        return self._expert.finished or self.steps >= self.max_steps

    @property
    def success(self) -> bool:
        """True when the expert sees its work done now; a demonstrator who looks at the scene would say the
        same.
        """
        return self._robot.pending is not None and self._robot.pending.truth.success

    def step(self) -> ExpertStep:
        """Lets the expert answer the newest observation."""
        before = self._robot.pending
        if before is None:
            raise BadRequest("the world was not reset yet: call the service 'reset' first")
        action = np.asarray(self._expert.act(), np.float64)
        after = self._robot.step(action)
        self.steps += 1
        return ExpertStep(before.stamp_ns, action, after)


def default_clock_file(node_name: str) -> Path:
    """Gives where a node keeps its clock: below ROS_HOME (~/.ros), apart for every ROS domain."""
    home = Path(os.environ.get("ROS_HOME") or Path.home() / ".ros")
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    return home / "efm_sim" / f"clock-{domain}-{node_name.strip('/').replace('/', '-')}"


def wall_ns() -> int:
    """Gives the wall clock [ns]."""
    return time.time_ns()


def check_embodiment(spec: WorldSpec, embodiment: Embodiment) -> None:
    """Compares what a world offers with what an embodiment wants; pictures may be larger than the model's.

    Raises:
        EmbodimentMismatch: With all differences.
    """
    state = embodiment.state
    cameras = {camera.name for camera in embodiment.cameras}
    dimensions = embodiment.action.dimensions
    faults = [
        f"camera '{name}': expected one of the world's {sorted(spec.cameras)}"
        for name in cameras - set(spec.cameras)
    ]
    names = tuple(entry.name for entry in state.entries) if state is not None else ()
    if state is not None and names != tuple(spec.state_names):
        faults.append(f"state.entries: expected {list(spec.state_names)}, found {list(names)}")
    wanted = list(zip(spec.action_names, spec.action_low, spec.action_high, strict=True))
    found = [(dimension.name, dimension.low, dimension.high) for dimension in dimensions]
    if [name for name, _, _ in wanted] != [name for name, _, _ in found]:
        faults.append(
            f"action.dimensions: expected {list(spec.action_names)}, found {[name for name, _, _ in found]}"
        )
    else:
        faults += [
            f"action '{name}': expected bounds within [{low:g}, {high:g}], found [{its_low:g}, {its_high:g}]"
            for (name, low, high), (_, its_low, its_high) in zip(wanted, found, strict=True)
            if its_low < low - 1e-9 or its_high > high + 1e-9
        ]
    if not math.isclose(spec.control_rate_hz, embodiment.control_rate_hz):
        faults.append(
            f"control_rate_hz: expected {spec.control_rate_hz:g}, found {embodiment.control_rate_hz:g}"
        )
    if faults:
        raise EmbodimentMismatch(
            f"embodiment '{embodiment.name}' does not fit the world '{spec.name}': {'; '.join(faults)}; "
            "set the parameter 'embodiment' to one made for this world"
        )
