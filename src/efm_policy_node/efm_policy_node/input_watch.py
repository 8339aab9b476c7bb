"""Watches that fresh observations keep coming: when they stop, and when that has lasted too long.

The robot's clock decides, as for all watchdogs; where it stands still (a dead simulator) the steady clock
does. In lockstep the world waits for us and simulated time says nothing, so only the steady clock counts.
"""

from __future__ import annotations

from enum import Enum

from efm_core.safety import Watchdog

# So long without an observation on the steady clock is stale, whatever the robot's clock says [s].
FROZEN_CLOCK_S = 2.0


class Freshness(Enum):
    """What `InputWatch.check` found."""

    FRESH = "fresh"
    JUST_STALE = "just stale"
    STALE = "stale"
    OVER = "over"


class InputWatch:
    """Not thread-safe: its owner holds a lock."""

    def __init__(self, limit_s: float | None, end_s: float) -> None:
        """Makes a watch that is not begun.

        Args:
            limit_s: Time without an observation on the robot's clock after which input is stale [s]; None
                in lockstep.
            end_s: Stale for so long is over [s].
        """
        self._watchdog = None if limit_s is None else Watchdog(limit_s)
        self._end_s = end_s
        self._fed_s = 0.0
        self._stale_s: float | None = None

    @property
    def is_stale(self) -> bool:
        """Whether input was stale at the last check."""
        return self._stale_s is not None

    def feed(self, steady_s: float, ros_s: float) -> float | None:
        """Says that there was an observation, or that none is expected; both clocks in seconds.

        Returns:
            How long input had been stale until now; None if it was fresh.
        """
        stale_s, self._stale_s, self._fed_s = self._stale_s, None, steady_s
        if self._watchdog is not None:
            self._watchdog.feed(ros_s)
        return None if stale_s is None else steady_s - stale_s

    def check(self, steady_s: float, ros_s: float) -> Freshness:
        """Judges this moment; JUST_STALE is found once for every gap."""
        late = self._watchdog is not None and self._watchdog.stale(ros_s)
        if not late and steady_s - self._fed_s <= FROZEN_CLOCK_S:
            return Freshness.FRESH
        if self._stale_s is None:
            self._stale_s = steady_s
            return Freshness.JUST_STALE
        return Freshness.OVER if steady_s - self._stale_s > self._end_s else Freshness.STALE

    def stale_for(self, steady_s: float) -> float:
        """Returns how long input has been stale [s]; 0 while it is fresh."""
        return 0.0 if self._stale_s is None else steady_s - self._stale_s
