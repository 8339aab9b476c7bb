"""Which model acts, and how a new one takes its place without costing a control tick.

A new bundle is fetched, verified, loaded and warmed up in a thread of its own. Once it is ready the next
act takes it; acts that run keep the model that they began with, so that an episode is of one model. A
bundle that fails anywhere on the way is refused and the old one stays; one that fails while it acts is
refused too, and the one before comes back. Left out: fetching itself and publishing (functions that the
node gives), and acting.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Protocol

from efm_core.embodiment import Embodiment
from efm_core.errors import BundleInvalid, BundleTampered, EfmError, EmbodimentMismatch, Reason, reason_of
from efm_policy_node.onnx_policy import OnnxPolicy

# A latched topic delivers up to ten old announcements to a late joiner; only the newest of such a burst
# counts [s].
BURST_S = 0.2


class State(IntEnum):
    """The constants STATE_* of `ModelStatus.msg`."""

    UNSET = 0
    FETCHING = 1
    LOADING = 2
    READY = 3
    ACTIVE = 4
    REFUSED = 5


@dataclass(frozen=True)
class Offer:
    """An announced bundle that could be fetched: the fields of `ModelInfo.msg` that decide.

    Attributes:
        path: Where it is already, on this disk; None: it has to be fetched.
    """

    bundle_id: str
    embodiment_digest: str = ""
    archive_size: int = 0
    archive_sha256: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class Report:
    """What became of a bundle; `stall_s` is the time that taking it over can have kept a control tick
    waiting.
    """

    bundle_id: str
    state: State
    reason: Reason = Reason.UNSET
    message: str = ""
    stall_s: float = math.nan


class Workshop(Protocol):
    """What a swap needs done. Called from its thread."""

    def fetch(self, offer: Offer) -> Path:
        """Returns the folder of an announced bundle; blocks. Raises EfmError."""

    def load(self, path: Path) -> OnnxPolicy:
        """Verifies, loads and warms up. Raises EfmError."""

    def report(self, report: Report) -> None:
        """Tells what became of a bundle; also called from the threads that call `ModelSwap`."""


class ModelSwap:
    """Keeps the model for the next act. All methods may be called from any thread."""

    def __init__(self, embodiment: Embodiment, workshop: Workshop, keep: int = 3) -> None:
        """Begins without a model and without its thread; `open` starts that.

        Args:
            embodiment: Of the robots.
            workshop: Fetches, loads and tells.
            keep: Fetched bundles that stay on the disk, besides those in use.
        """
        self._digest = embodiment.digest
        self._workshop = workshop
        self._keep = keep
        self._lock = threading.Condition()
        self._current: OnnxPolicy | None = None
        self._previous: OnnxPolicy | None = None
        self._wanted: Offer | None = None
        self._fetched: list[Path] = []
        self._refusal: Report | None = None
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def current(self) -> OnnxPolicy | None:
        """The model that the next act gets; None: none yet."""
        with self._lock:
            return self._current

    @property
    def refusal(self) -> Report | None:
        """The newest refusal; None: there was none."""
        with self._lock:
            return self._refusal

    def open(self, first: Path | None) -> None:
        """Loads the first model, if there is one, and starts to wait for others.

        Raises:
            EfmError: The first model cannot be used.
        """
        if first is not None:
            policy = self._workshop.load(first)
            with self._lock:
                self._current = policy
        self._thread = threading.Thread(target=self._run, name="model swap", daemon=True)
        self._thread.start()

    def offer(self, offer: Offer) -> None:
        """Takes note of an announced bundle; a newer announcement replaces one that was not begun."""
        with self._lock:
            self._wanted = offer
            self._lock.notify_all()

    def failed(self, policy: OnnxPolicy, error: EfmError) -> None:
        """Says that a model failed while it acted: it is refused, and the one before it comes back."""
        with self._lock:
            if policy is not self._current or self._previous is None:
                return
            self._current, self._previous = self._previous, None
            back = self._current
        self._refuse(policy.id, error, f"{error}; went back to {back.id}")
        self._workshop.report(Report(back.id, State.READY))

    def proved(self, policy: OnnxPolicy) -> None:
        """Says that a model finished an act in order; the one before it is not needed any more."""
        with self._lock:
            if policy is self._current:
                self._previous = None

    def close(self, timeout_s: float = 2.0) -> None:
        """Ends the thread; what it is doing is finished or left."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    # The thread
    # --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (offer := self._next()) is not None:
            try:
                self._bring(offer)
            except EfmError as error:
                self._refuse(offer.bundle_id, error, str(error))
            except Exception as error:  # noqa: BLE001  A bundle may not end the thread that brings the next one.
                self._refuse(offer.bundle_id, error, f"{type(error).__name__}: {error}")

    def _refuse(self, bundle_id: str, error: Exception, message: str) -> None:
        refusal = Report(bundle_id, State.REFUSED, reason_of(error), message)
        with self._lock:
            self._refusal = refusal
        self._workshop.report(refusal)

    def _next(self) -> Offer | None:
        """Waits for an announcement, and for the end of its burst; None at the end."""
        with self._lock:
            while self._wanted is None and not self._closing:
                self._lock.wait()
            quiet = time.monotonic() + BURST_S
            while not self._closing and (left := quiet - time.monotonic()) > 0:
                before = self._wanted
                self._lock.wait(left)
                if self._wanted is not before:
                    quiet = time.monotonic() + BURST_S
            offer, self._wanted = self._wanted, None
            return None if self._closing else offer

    def _bring(self, offer: Offer) -> None:
        current = self.current
        if current is not None and current.id == offer.bundle_id:
            self._workshop.report(Report(current.id, State.READY))
            return
        if offer.embodiment_digest and offer.embodiment_digest != self._digest:
            raise EmbodimentMismatch(
                f"bundle {offer.bundle_id}: expected embodiment {self._digest}, found "
                f"{offer.embodiment_digest}; is this the learner of another kind of robot?"
            )
        path = offer.path
        if path is None:
            self._workshop.report(Report(offer.bundle_id, State.FETCHING))
            path = self._workshop.fetch(offer)
        self._workshop.report(Report(offer.bundle_id, State.LOADING))
        try:
            policy = self._workshop.load(path)
        except (BundleInvalid, BundleTampered):
            if offer.path is None:  # Fetched again the next time, instead of found here.
                shutil.rmtree(path, ignore_errors=True)
            raise
        began = time.monotonic()
        with self._lock:
            self._previous, self._current = self._current, policy
        self._workshop.report(Report(policy.id, State.READY, stall_s=time.monotonic() - began))
        if offer.path is None:
            self._forget_old(path)

    def _forget_old(self, newest: Path) -> None:
        """Removes fetched bundles that nobody will want again; one that still acts is loaded already."""
        self._fetched = [path for path in self._fetched if path != newest] + [newest]
        while len(self._fetched) > self._keep:
            shutil.rmtree(self._fetched.pop(0), ignore_errors=True)
