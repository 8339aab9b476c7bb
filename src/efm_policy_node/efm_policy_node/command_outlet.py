"""The last stretch of every command: safety gate, sending, and the hold-still command at the end.

It knows whether the robot was told to move last, so that holding still is said once and nothing is said to
a robot that someone else commands. The limit on change counts from what the robot was told last, or from
where it is held. Not thread-safe: the loop that owns it holds a lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np

from efm_core.embodiment import Embodiment
from efm_core.errors import LimitExceeded
from efm_core.safety import Gate, SafetyGate, hold_still_command

# Stamp of the hold-still command at the end. No observation has it, so that a world in lockstep does not
# step: what answers its observation is another command, which this one may overtake in a queue of one [ns].
NO_OBSERVATION_NS = 1

Send = Callable[[np.ndarray, int], None]


class CommandOutlet:
    """Gates and sends the commands of one robot.

    Attributes:
        state: Newest state [S]; None: none yet.
        moving: A command other than hold-still was sent last.
    """

    def __init__(
        self, embodiment: Embodiment, send: Send, ros_now_ns: Callable[[], int] | None, dry_run: bool
    ) -> None:
        """Makes an outlet that has sent nothing.

        Args:
            embodiment: Gives the limits, and what holding still means.
            send: Publishes a command, float [D], that answers the observation of a stamp [ns].
            ros_now_ns: The robot's clock; None in lockstep, where every command comes one period after the
                last.
            dry_run: Nothing is ever sent.
        """
        self.state: np.ndarray | None = None
        self.moving = False
        self._embodiment = embodiment
        self._gate = SafetyGate(embodiment.action, embodiment.control_rate_hz)
        self._send, self._ros_now_ns, self._dry_run = send, ros_now_ns, dry_run
        self._last: np.ndarray | None = None
        self._held: np.ndarray | None = None
        self._answer: tuple[int, np.ndarray] | None = None  # Stamp and command that answered it.
        self._sent_ns: int | None = None

    def begin(self) -> None:
        """Forgets what was sent before: since then someone else may have moved the robot.

        Raises:
            LimitExceeded: The robot is so far outside its bounds that the first command would be a jump.
        """
        if not self.moving:
            self._last = self._held = self._answer = self._sent_ns = None
            self._gate.reset(self.where())

    def clock_went_back(self) -> None:
        """Forgets times and stamps of the clock before."""
        self._sent_ns = self._answer = None

    def gated(self, action: np.ndarray) -> tuple[np.ndarray, Gate]:
        """Returns the command float [D] for an action, and what the gate did.

        Raises:
            ActionNotFinite: The action holds NaN or infinity.
        """
        since_s = None
        if self._ros_now_ns is not None and self._sent_ns is not None:
            since_s = (self._ros_now_ns() - self._sent_ns) / 1e9
        command, flags = self._gate.check(action, since_s)
        return command, Gate(flags)

    def send(self, command: np.ndarray, gate: Gate, stamp_ns: int, for_real: bool = True) -> Gate:
        """Sends a gated command, or pretends to.

        Args:
            command: float [D].
            gate: What the gate did; HELD for a command that holds still.
            stamp_ns: Stamp of the observation that it answers.
            for_real: False where the policy runs in the shadow of another commander.

        Returns:
            The flags, with DRY_RUN where nothing was sent.
        """
        if self._dry_run or not for_real:
            return gate | Gate.DRY_RUN
        self._send(command, stamp_ns)
        self._last, self._answer = command, (stamp_ns, command)
        self._sent_ns = self._ros_now_ns() if self._ros_now_ns is not None else None
        self.moving = not gate & Gate.HELD
        if not self.moving:
            self._keep(command)
        return gate

    def send_again(self, stamp_ns: int) -> bool:
        """Repeats the last command if it answered this observation; returns whether it did."""
        if self._answer is None or self._answer[0] != stamp_ns:
            return False
        self._send(self._answer[1], stamp_ns)
        return True

    def still(self) -> np.ndarray | None:
        """Returns what holds still, float [D]; None: nothing is known that would.

        Once held, the same values: measuring again would let a sagging arm creep.
        """
        if not self.moving and self._held is not None:
            return self._held
        return hold_still_command(self._embodiment, self._last, self.state)

    def newest(self) -> np.ndarray | None:
        """Returns what the robot was told last, float [D]; where that is nothing, what holds it still."""
        return self._last if self.moving else self.still()

    def where(self) -> np.ndarray | None:
        """Returns where the robot is, as a command, whoever brought it there, float [D]; None: unknown."""
        return hold_still_command(self._embodiment, None, self.state)

    def hold(self) -> None:
        """Sends the hold-still command, if the robot was told to move last."""
        if not self.moving:
            return
        still = self.still()
        if still is not None:
            self._send(still, NO_OBSERVATION_NS)
            self._keep(still)
        self.moving = False

    def stop_leftover(self) -> None:
        """Stops a robot that a process before this one may have left moving, where holding still is zero.

        A velocity goes on until another comes; a position is reached, and ends there. Nothing is sent to a
        robot that this process has commanded.
        """
        zero = self._embodiment.action.hold_still == "zero"
        still = self.still() if zero and self._last is None and not self._dry_run else None
        if still is not None:
            self._send(still, NO_OBSERVATION_NS)
            self._last = still
            self._keep(still)

    def _keep(self, still: np.ndarray) -> None:
        """Lets the limit on change count from where the robot is held."""
        self._held = still
        # Held outside its bounds, it counts from the last command.
        with contextlib.suppress(LimitExceeded):
            self._gate.reset(still)
