"""The chunk that is being executed: which of its actions is next, and when the next inference is due.

Action k of a chunk belongs to the control step k steps after the one whose observation it was inferred
from. So a chunk that comes late, or was asked for ahead of time, is entered at its right place instead of
at its beginning, and the robot does not run back along its path. Left out: rate limits, which smooth what
two chunks disagree about.
"""

from __future__ import annotations

from dataclasses import dataclass

from efm_policy_node.onnx_policy import Decision


@dataclass(frozen=True)
class ActionPlan:
    """One decision and its place in time.

    Attributes:
        decision: The chunk.
        stamp_ns: Stamp of the observation that it was inferred from.
        first_step: Control step (counted since the start of the act) of that observation.
        execute: Actions of the chunk that are executed before the next inference is due.
        ahead: Control steps before that at which the next inference is asked for. Up to so many more
            actions are taken from this chunk while the next one is on its way.
    """

    decision: Decision
    stamp_ns: int
    first_step: int
    execute: int
    ahead: int

    def index(self, step: int) -> int | None:
        """Returns the position in the chunk of a control step; None: the chunk has none for it."""
        index = step - self.first_step
        return index if 0 <= index < min(self.execute + self.ahead, len(self.decision.actions)) else None

    def wants_next(self, step: int) -> bool:
        """Whether the next inference should start from the observation of this control step."""
        elapsed = step - self.first_step
        return elapsed > 0 and elapsed >= self.execute - self.ahead
