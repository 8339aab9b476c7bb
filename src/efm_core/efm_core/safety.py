"""The last things before a command leaves: the safety gate, holding still, and the watchdog over inputs.

The gate knows one robot's limits and its last command. It cuts what is too much and refuses what is no
number; it does not know obstacles, forces or other robots. The e-stop is a topic and belongs to the node.
"""

from __future__ import annotations

import math
from enum import IntFlag

import numpy as np
import numpy.typing as npt

from efm_core.embodiment import Action, Embodiment
from efm_core.errors import ActionNotFinite, LimitExceeded

Command = npt.NDArray[np.float64]

# A cut smaller than this part of a dimension's range is rounding: it is made, but not flagged.
NEGLIGIBLE = 1e-6
# After a pause the robot may not jump as if it had been allowed to move all the while.
LONGEST_STEP_PERIODS = 2.0


class Gate(IntFlag):
    """What the gate did: the constants of `efm_msgs/msg/PolicyStep.msg`, without their prefix GATE_."""

    PASSED = 0
    BOUNDED = 1
    RATE_LIMITED = 2
    HELD = 4
    DRY_RUN = 8


class SafetyGate:
    """Keeps commands within bounds and within their greatest change per second.

    Call order: `reset` when an episode begins or the robot was moved by others, then `check` for every
    command that is sent. A command always is within the bounds.
    """

    def __init__(self, action: Action, control_rate_hz: float) -> None:
        if not (math.isfinite(control_rate_hz) and control_rate_hz > 0):
            raise ValueError(f"control rate: expected more than 0 Hz, found {control_rate_hz}")
        self._dimensions = action.dimensions
        self._low = np.array([item.low for item in action.dimensions])
        self._high = np.array([item.high for item in action.dimensions])
        self._max_rate = np.array([item.max_rate for item in action.dimensions])
        self._unlimited = np.where(np.isinf(self._max_rate), np.inf, 0.0)
        self._finite_rate = np.where(np.isinf(self._max_rate), 0.0, self._max_rate)
        self._negligible = NEGLIGIBLE * (self._high - self._low)
        self._period_s = 1.0 / control_rate_hz
        self._previous: Command | None = None

    def reset(self, previous: npt.ArrayLike | None = None) -> None:
        """Forgets the last command.

        Args:
            previous: [D] where the robot is now, in the units of the action, or the command that holds it:
                the next command may change from there only at the greatest rate. None: the next command is
                only bounded.

        Raises:
            ActionNotFinite: a number is NaN or infinite.
            LimitExceeded: a number is out of bounds by more than one control step could mend.
        """
        if previous is None:
            self._previous = None
            return
        values = self._finite(previous)
        bounded = np.clip(values, self._low, self._high)
        outside = np.abs(values - bounded) > np.maximum(self._max_rate * self._period_s, self._negligible)
        if outside.any():
            index = int(np.argmax(outside))
            item = self._dimensions[index]
            raise LimitExceeded(
                f"'{item.name}': expected {item.low:g} .. {item.high:g} {item.unit}, found the robot at "
                f"{values[index]:g}; move it within its bounds first"
            )
        self._previous = bounded

    def check(self, values: npt.ArrayLike, dt_s: float | None = None) -> tuple[Command, int]:
        """Makes an action a command.

        Args:
            values: [D] in the units of the embodiment.
            dt_s: seconds since the last command; None: one control period. Less than 0 or NaN (a clock that
                was set back) counts as one period, more than two periods as two.

        Returns:
            The command float64 [D], and the sum of Gate flags.

        Raises:
            ActionNotFinite: a number is NaN or infinite; the last command stays what it was.
            ValueError: not D numbers.
        """
        action = self._finite(values)
        command = np.clip(action, self._low, self._high)
        flags = Gate.PASSED
        if (np.abs(command - action) > self._negligible).any():
            flags |= Gate.BOUNDED
        if self._previous is not None:
            # An unlimited dimension has an infinite step, also after no time at all.
            step = self._finite_rate * self._seconds(dt_s) + self._unlimited
            limited = np.clip(command, self._previous - step, self._previous + step)
            if (np.abs(limited - command) > self._negligible).any():
                flags |= Gate.RATE_LIMITED
            command = limited
        self._previous = command
        return command.copy(), int(flags)

    def _seconds(self, dt_s: float | None) -> float:
        if dt_s is None or not dt_s >= 0:
            return self._period_s
        return min(dt_s, LONGEST_STEP_PERIODS * self._period_s)

    def _finite(self, values: npt.ArrayLike) -> Command:
        action = np.asarray(values, dtype=np.float64)
        if action.shape != self._low.shape:
            raise ValueError(
                f"action: expected {len(self._low)} numbers, found the shape {list(action.shape)}"
            )
        finite = np.isfinite(action)
        if not finite.all():
            names = [
                f"'{item.name}' is {value}"
                for item, value, fine in zip(self._dimensions, action, finite, strict=True)
                if not fine
            ]
            raise ActionNotFinite(
                f"action: expected finite numbers, found {', '.join(names)}; nothing was sent"
            )
        return action


def hold_still_command(
    embodiment: Embodiment, last: npt.ArrayLike | None, state: npt.ArrayLike | None
) -> Command | None:
    """As `hold_still_values`, with positions taken from the newest state vector [S]; None: no state yet."""
    return hold_still_values(embodiment.action, last, measured_positions(embodiment, state))


def measured_positions(embodiment: Embodiment, state: npt.ArrayLike | None) -> Command | None:
    """Finds where every action dimension is in a state vector.

    Args:
        embodiment: names of the state entries and action dimensions.
        state: [S], or None.

    Returns:
        float64 [D], NaN for a dimension that the state does not show. None: there is no state, or it shows
        none of them.
    """
    indices = embodiment.measured_indices()
    if state is None or all(index is None for index in indices):
        return None
    values = np.asarray(state, dtype=np.float64)
    return np.array([np.nan if index is None else values[index] for index in indices])


def hold_still_values(
    action: Action, last: npt.ArrayLike | None, measured: npt.ArrayLike | None
) -> Command | None:
    """Returns the command that stops the robot where it is, as its embodiment says.

    Args:
        action: with `hold_still`.
        last: [D] the last command that was sent; None: none yet.
        measured: [D] the measured positions, NaN where unknown; None: nothing was measured.

    Returns:
        float64 [D]. A gripper keeps its last command, so that nothing is dropped. Where `hold_still` is
        measured and a position is not known, the last command stands in. None where neither is known: nothing
        that could be sent would surely be still, and a robot that was never commanded is.
    """
    unknown = np.full(len(action.dimensions), np.nan)
    kept = unknown if last is None else np.array(last, dtype=np.float64)
    positions = unknown if measured is None else np.array(measured, dtype=np.float64)
    known = np.isfinite(positions)
    command = {
        "zero": np.zeros_like(kept),
        "last": np.where(np.isfinite(kept), kept, positions),
        "measured": np.where(known, positions, kept),
    }[action.hold_still]
    gripper = np.array([item.gripper for item in action.dimensions])
    command[gripper] = np.where(np.isfinite(kept), kept, positions)[gripper]
    return command if np.isfinite(command).all() else None


class Watchdog:
    """Says when an input has been silent for too long. Times are seconds on one clock, which may be set back.

    Args:
        limit_s: silence that is still fine.
    """

    def __init__(self, limit_s: float) -> None:
        if not (math.isfinite(limit_s) and limit_s > 0):
            raise ValueError(f"watchdog: expected a limit of more than 0 s, found {limit_s}")
        self.limit_s = limit_s
        self._fed_s: float | None = None

    def feed(self, now_s: float) -> None:
        """Notes that an input came."""
        self._fed_s = now_s

    def stale(self, now_s: float) -> bool:
        """Returns whether the last input is older than the limit; true before the first.

        When the clock was set back, the silence counts from the new time.
        """
        if self._fed_s is None:
            return True
        if now_s < self._fed_s:
            self._fed_s = now_s
        return not now_s - self._fed_s <= self.limit_s  # Also true of NaN.
