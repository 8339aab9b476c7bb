"""A person's share in the control of one robot: taking over, steering, and letting go without a jump."""

from __future__ import annotations

import math

import numpy as np


class Person:
    """Not thread-safe: the loop that owns it holds a lock.

    Attributes:
        has_control: Whether the person has taken over.
    """

    def __init__(self, timeout_s: float, ramp_steps: int) -> None:
        """Begins without a person.

        Args:
            timeout_s: A command is good for so long [s].
            ramp_steps: Control steps in which the policy takes over again after the person has let go.
        """
        self.has_control = False
        self._timeout_s = timeout_s
        self._ramp_steps = ramp_steps
        self._ramp_left = 0
        self._wish: np.ndarray | None = None
        self._wished_s = -math.inf

    def command(self, values: np.ndarray, now_s: float) -> None:
        """Takes what the person wants, float [D], at a time on the steady clock."""
        self._wish, self._wished_s = np.asarray(values, np.float64), now_s

    def wish(self, now_s: float) -> np.ndarray | None:
        """Returns what the person wants now, float [D]; None where they have said nothing lately."""
        return self._wish if now_s - self._wished_s <= self._timeout_s else None

    def let_go(self) -> None:
        """Gives control back; the policy's share grows from small to whole with the next steps."""
        self.has_control = False
        self._ramp_left = self._ramp_steps

    def new_act(self) -> None:
        """Forgets the act before: its ramp, and what was wanted in a scene that is another one now."""
        self._ramp_left = 0
        self._wished_s = -math.inf

    def next_share_of_policy(self) -> float:
        """Returns the policy's share in the next step, in (0, 1]."""
        share = 1.0 - self._ramp_left / (self._ramp_steps + 1)
        self._ramp_left = max(0, self._ramp_left - 1)
        return share
