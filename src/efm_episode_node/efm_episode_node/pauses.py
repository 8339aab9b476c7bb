"""Why a run of episodes waits between two of them: a person, the e-stop, the learner, the spool, or a
detector that lies.
"""

from __future__ import annotations

from efm_core.errors import SpoolFull
from efm_core.summary import EndReason, Mode, Summary
from efm_episode_node.ports import Shelf
from efm_episode_node.run_types import Controls, RunRequest


class Pauses:
    """Knows what holds a run back; whoever can end the pause is named. Used by the runner's thread."""

    def __init__(self, controls: Controls, shelf: Shelf, instant_limit: int) -> None:
        """Begins; `instant_limit` successes in a row right after the reset pause practice."""
        self._controls = controls
        self._shelf = shelf
        self._limit = instant_limit
        self._instant = 0

    def begin(self) -> None:
        """Forgets what was counted in an earlier run."""
        self._instant = 0

    def is_instant(self, summary: Summary, held: int) -> bool:
        """Counts an episode; True when success was seen as soon as the detector's hold allows.

        A detector that is satisfied by every fresh scene teaches nothing: its threshold is wrong, or the
        reset is.
        """
        instant = summary.end_reason is EndReason.SUCCESS_DETECTED and summary.steps <= held + 1
        self._instant = self._instant + 1 if instant else 0
        if self._instant >= self._limit and summary.mode is Mode.PRACTICE:
            self._controls.paused = True
        return instant

    def why(self, request: RunRequest) -> str:
        """Says what holds the run back now; empty: nothing."""
        if self._controls.estop:
            return "the e-stop is pressed; release it to go on"
        if self._instant >= self._limit and request.mode is Mode.PRACTICE:
            if self._controls.paused:
                return (
                    f"the success detector fired right after the reset in {self._instant} episodes in a "
                    "row: its threshold is too high for this scene, or the reset does not undo the task; "
                    "nothing of them was handed over. Mend that, then call episodes/pause with false"
                )
            self._instant = 0
        if self._controls.paused:
            return "paused by a person; call episodes/pause with false to go on"
        if request.mode is Mode.PRACTICE and self._controls.learner_pauses:
            return self._controls.learner_pauses
        try:
            self._shelf.require_space(request.mode)
        except SpoolFull as error:
            return str(error)
        return ""
