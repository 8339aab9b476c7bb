"""How far a world in lockstep runs ahead of who records it.

A recorder tells the newest observation that it holds. A world that has gone further than a window waits for
it, so that no queue between the two runs over and no observation is lost; but not for ever: a recorder that
has died, or was stopped, holds no robot up. Without ROS.
"""

from __future__ import annotations

import time
from collections.abc import Callable

WINDOW_STEPS = 100  # Queues between simulator and recorder hold several times as many small messages.
WINDOW_BYTES = 6 << 20  # Less than half of the shared memory through which large ones go.
LEAST_STEPS = 4
PATIENCE_S = 10.0  # Steady clock.


class RecorderWait:
    """Of one robot; used by one thread."""

    def __init__(
        self, period_ns: int, warn: Callable[[str], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        """Begins without a recorder.

        Args:
            period_ns: Of the control steps.
            warn: Told in words when a recorder is not waited for any more.
            now: Steady clock [s].
        """
        self._period_ns = period_ns
        self._warn = warn
        self._now = now
        self._window_ns = WINDOW_STEPS * period_ns
        self._held_ns = 0
        self._since: float | None = None

    def shown(self, size: int) -> None:
        """An observation of `size` bytes of pictures was shown."""
        steps = min(WINDOW_STEPS, max(LEAST_STEPS, WINDOW_BYTES // max(1, size)))
        self._window_ns = steps * self._period_ns

    def told(self, stamp_ns: int) -> None:
        """The recorder holds the observations up to this stamp [ns]; 0: it records nothing."""
        self._held_ns = stamp_ns
        self._since = None

    def must_wait(self, stamp_ns: int) -> bool:
        """Returns whether a world whose newest observation has this stamp [ns] has to wait."""
        if not self._held_ns or stamp_ns - self._held_ns <= self._window_ns:
            return False
        if self._since is None:
            self._since = self._now()
        if self._now() - self._since < PATIENCE_S:
            return True
        behind = (stamp_ns - self._held_ns) // self._period_ns
        self._warn(f"waited {PATIENCE_S:g} s for the recorder, which is {behind} steps behind; goes on")
        self.told(0)
        return False
