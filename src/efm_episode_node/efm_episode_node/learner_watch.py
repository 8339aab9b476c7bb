"""What the robot knows of its learner: whether it is there, takes episodes, and whose policy it expects.

Practice that begins before the learner is up, or with a policy that is older than the learner's, would only
make episodes that the learner refuses as stale; so it waits for both, for a limited time. A learner that dies
later holds nobody up: robots go on with the policy they have and keep their episodes. Without ROS.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from efm_core.summary import Mode


class LearnerWatch:
    """Says why practice waits for its learner. Any thread may call any method."""

    def __init__(
        self,
        name: str,
        limit_s: float,
        warn: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins without having heard of the learner.

        Args:
            name: Of the learner, for people. Empty: there is none.
            limit_s: Longest wait before the first episode of practice (steady clock).
            warn: Told in words when practice begins all the same.
            now: Steady clock [s].
        """
        self._name = name
        self._limit_s = limit_s
        self._warn = warn
        self._now = now
        self._lock = threading.Lock()
        self._is_there = False
        self._refuses = ""
        self._bundle_id = ""
        self._taken: dict[str, str] = {}
        self._deadline: float | None = None
        self._settled = not name

    def begin(self, mode: Mode) -> None:
        """A run begins; the time of the first one of practice is counted from here."""
        with self._lock:
            if mode is Mode.PRACTICE and self._deadline is None:
                self._deadline = self._now() + self._limit_s

    def heard(self, accepting: bool, why_not: str, bundle_id: str) -> None:
        """The learner said where it stands; `bundle_id`: the policy that it announced last, empty: none."""
        with self._lock:
            self._is_there, self._bundle_id = True, bundle_id
            self._refuses = "" if accepting else f"the learner takes no episodes now: {why_not}"

    def taken(self, node: str, bundle_id: str) -> None:
        """A node that runs models has this bundle ready, acts with it, or has refused it for good."""
        with self._lock:
            self._taken[node] = bundle_id

    def lost(self) -> None:
        """Nobody speaks for the learner any more; does nothing where nobody ever did."""
        with self._lock:
            self._is_there, self._refuses = False, ""

    @property
    def is_there(self) -> bool:
        """True while somebody speaks for the learner."""
        return self._is_there

    def why(self) -> str:
        """Says why practice waits now; empty: it need not."""
        with self._lock:
            if self._settled:
                return self._refuses
            missing = self._missing()
            if not missing:
                self._settled = self._deadline is not None
                return self._refuses
            if self._deadline is None or self._now() < self._deadline:
                return f"waits at most {self._limit_s:g} s for {missing}"
            self._settled = True
        self._warn(
            f"waited {self._limit_s:g} s for {missing}: practises all the same, with the policy that is "
            "there; episodes are kept in the spool until a learner takes them or its quota is reached"
        )
        return self._refuses

    def _missing(self) -> str:
        if not self._is_there:
            return f"the learner {self._name} (is it running and active?)"
        if self._bundle_id and self._bundle_id not in self._taken.values():
            return f"the policy node to take the learner's bundle {self._bundle_id} (does it follow models?)"
        return ""
