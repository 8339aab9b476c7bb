"""Which model runs in a node, and how a new one takes its place without keeping anybody waiting.

A bundle on this disk, or one that a learner announced, is fetched, verified, loaded and warmed up in a thread
of its own; the model that runs is not touched. Once it is ready it is `current`, which the node takes up when
it chooses to: between two control ticks, at an episode's boundary. A bundle that fails on the way is refused
and the old one stays; one that fails while it runs is refused too, and the one before comes back. What became
of every bundle is told on `model_status` of every robot.
Left out: running models.
"""

from __future__ import annotations

import math
import shutil
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from rclpy.subscription import Subscription

from efm_core.errors import (
    BundleInvalid,
    BundleTampered,
    EfmError,
    EmbodimentMismatch,
    Reason,
    WaitTimeout,
    reason_of,
)
from efm_msgs.msg import ModelInfo, ModelStatus
from efm_ros.lifecycle import OK, WARN, EfmLifecycleNode
from efm_ros.names import in_robot, robot_label
from efm_ros.qos import LATCHED, MODELS
from efm_ros.transfer import BundleFetcher

# A latched topic gives a late joiner up to ten announcements at once; only the newest of such a burst counts.
BURST_S = 0.2


class Model(Protocol):
    """A loaded and warmed-up model."""

    @property
    def id(self) -> str:
        """The bundle's id."""

    @property
    def provider(self) -> str:
        """What runs it."""

    @property
    def passed_over(self) -> tuple[str, ...]:
        """Better providers that are installed and did not come up."""


AnyModel = TypeVar("AnyModel", bound=Model)


@dataclass(frozen=True)
class Refusal:
    """A bundle that is not used, and why."""

    bundle_id: str
    reason: Reason
    message: str


class ModelSupply(Generic[AnyModel]):
    """Keeps the model that a node is to run. Any thread may call any method."""

    def __init__(
        self,
        node: EfmLifecycleNode,
        robots: Sequence[str],
        load: Callable[[Path], AnyModel],
        bundle_dir: Path,
        learner: str,
        embodiment_digest: str,
        kinds: Sequence[int],
        ready: Callable[[AnyModel], None] = lambda model: None,
        keep: int = 3,
    ) -> None:
        """Opens `model_status` of every robot and starts the thread.

        Args:
            node: Node that runs models.
            robots: Its `robots`.
            load: Verifies, loads and warms up the bundle in a folder, or raises an EfmError.
            bundle_dir: Where fetched bundles are kept.
            learner: Namespace of the learner.
            embodiment_digest: Of the robots; announcements for others are refused without a fetch.
            kinds: KIND constants of ModelInfo that this node runs; other announcements do not concern it.
            ready: Told of every model that becomes `current`, in the thread that brought it.
            keep: Fetched bundles that stay on the disk.
        """
        self._node = node
        self._load = load
        self._digest = embodiment_digest
        self._kinds = frozenset(kinds)
        self._topic = f"{learner.rstrip('/')}/models"
        self._ready = ready
        self._keep = keep
        self._publishers = {
            robot: node.create_publisher(ModelStatus, in_robot(robot, "model_status"), LATCHED)
            for robot in robots
        }
        self._fetcher = BundleFetcher(node, bundle_dir, learner) if learner else None
        self._changed = threading.Condition()
        self._current: AnyModel | None = None
        self._previous: AnyModel | None = None
        self._refusal: Refusal | None = None
        self._wish: Path | ModelInfo | None = None
        self._fetched: list[Path] = []
        self._closing = False
        self._subscription: Subscription | None = None
        self._thread = threading.Thread(target=self._run, name="model supply", daemon=True)
        self._thread.start()

    @property
    def current(self) -> AnyModel | None:
        """The model to run; None: none yet."""
        with self._changed:
            return self._current

    @property
    def refusal(self) -> Refusal | None:
        """The newest refusal; None: there was none since the last model that was taken."""
        with self._changed:
            return self._refusal

    def why_none(self) -> str:
        """Says why there is no model to run."""
        refusal = self.refusal
        if refusal is not None:
            return f"no bundle to run; the last one was refused: {refusal.message}"
        return f"no bundle to run yet; waiting for one on '{self._topic}', or set the parameter bundle"

    def diagnose(self, **more: object) -> None:
        """Tells what runs, and what an operator should know about it; `more` are figures of the node."""
        model, refusal = self.current, self.refusal
        level, message = OK, "ready"
        if model is None:
            level, message = WARN, self.why_none()
        elif refusal is not None:
            level, message = WARN, "goes on with the old bundle; the last one was refused"
        elif model.passed_over and model.provider == "CPUExecutionProvider":
            level = WARN
            message = (
                f"runs on the CPU: {' and '.join(model.passed_over)} did not come up; is the driver there?"
            )
        self._node.diagnose(
            "model",
            level,
            message,
            bundle_id=model.id if model is not None else "",
            provider=model.provider if model is not None else "",
            passed_over=", ".join(model.passed_over) if model is not None else "",
            refused=f"{refusal.bundle_id}: {refusal.message}" if refusal is not None else "",
            **more,
        )

    def load_now(self, path: Path) -> None:
        """Loads a bundle in the calling thread, for configure.

        Raises:
            EfmError: It is refused.
        """
        try:
            self._bring(path)
        except EfmError as error:
            self._refuse(path.resolve().name, error, str(error), log=False)  # Who configures says it.
            raise

    def want(self, path: Path) -> None:
        """Asks for the bundle in a folder; it becomes `current`, or `model_status` says why not."""
        self._put(path)

    def follow(self) -> None:
        """Asks for every bundle of the right kind that the learner announces, beginning with the newest."""
        if self._subscription is None:
            subscribe = self._node.create_subscription
            self._subscription = subscribe(ModelInfo, self._topic, self._announced, MODELS)

    def unfollow(self) -> None:
        """Leaves announcements alone from now on."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def failed(self, model: AnyModel, error: EfmError) -> None:
        """Says that a model failed while it ran: it is refused, and the one before it comes back."""
        with self._changed:
            if model is not self._current or self._previous is None:
                return
            self._current, self._previous = self._previous, None
            back = self._current
        self._refuse(model.id, error, f"{error}; went back to {back.id}")
        self._tell(back.id, ModelStatus.STATE_READY)
        self._ready(back)

    def proved(self, model: AnyModel) -> None:
        """Says that a model ran through an episode; the one before it is not needed any more."""
        with self._changed:
            if model is self._current:
                self._previous = None

    def tell_active(self, bundle_id: str, robot: str, stall_s: float) -> None:
        """Says that a robot is acted for or judged by this bundle now.

        Args:
            bundle_id: Which.
            robot: Entry of the node's `robots`.
            stall_s: How long the swap kept a control tick waiting (steady clock).
        """
        self._publish(robot, bundle_id, ModelStatus.STATE_ACTIVE, stall_s=stall_s)

    def close(self, timeout_s: float = 1.0) -> None:
        """Ends the thread and closes everything."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._fetcher is not None:
            self._fetcher.stop()
        self.unfollow()
        self._thread.join(timeout_s)
        if self._fetcher is not None:
            self._fetcher.destroy()
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        self._publishers.clear()

    # Wishes

    def _announced(self, info: ModelInfo) -> None:
        if info.kind in self._kinds:
            self._put(info)

    def _put(self, wish: Path | ModelInfo) -> None:
        with self._changed:
            self._wish = wish
            self._changed.notify_all()

    def _is_outdated(self) -> bool:
        return self._wish is not None or self._closing

    def _next(self) -> Path | ModelInfo | None:
        """Waits for a wish and for the end of its burst; None at the end."""
        with self._changed:
            self._changed.wait_for(self._is_outdated)
            while not self._closing and self._changed.wait(BURST_S):
                pass
            wish, self._wish = self._wish, None
            return None if self._closing else wish

    # In the thread

    def _run(self) -> None:
        while (wish := self._next()) is not None:
            name = wish.resolve().name if isinstance(wish, Path) else wish.bundle_id
            try:
                self._bring(
                    wish if isinstance(wish, Path) else self._fetch(wish), isinstance(wish, ModelInfo)
                )
            except EfmError as error:
                # A fetch that was given up for a newer bundle, or at the node's end, tells nothing of it.
                if not (isinstance(error, WaitTimeout) and self._is_outdated()):
                    self._refuse(name, error, str(error))
            except Exception as error:  # noqa: BLE001 - whatever is wrong with a new model, the old one runs on
                self._node.get_logger().error(traceback.format_exc())
                self._refuse(name, error, f"{type(error).__name__}: {error}")

    def _fetch(self, info: ModelInfo) -> Path:
        if info.embodiment_digest != self._digest:
            raise EmbodimentMismatch(
                f"bundle {info.bundle_id}: expected embodiment {self._digest}, found "
                f"{info.embodiment_digest}; is this the learner of another kind of robot?"
            )
        assert self._fetcher is not None  # Nobody announces without a learner.
        self._tell(info.bundle_id, ModelStatus.STATE_FETCHING)
        return self._fetcher.fetch(
            info.bundle_id, info.archive_size, info.archive_sha256, is_outdated=self._is_outdated
        )

    def _bring(self, path: Path, fetched: bool = False) -> None:
        """Loads a bundle and makes it the current one."""
        current, name = self.current, path.resolve().name  # The id, also behind a link.
        if current is not None and current.id == name:
            self._tell(current.id, ModelStatus.STATE_READY)
            self._ready(current)
            return
        self._tell(name, ModelStatus.STATE_LOADING)
        try:
            model = self._load(path)
        except (BundleInvalid, BundleTampered):
            if fetched:  # It is fetched again the next time, instead of found here.
                shutil.rmtree(path, ignore_errors=True)
            raise
        with self._changed:
            if self._closing:
                return
            self._previous, self._current = self._current, model
            self._refusal = None
        self._tell(model.id, ModelStatus.STATE_READY)
        self._ready(model)
        if fetched:
            self._forget_all_but(path)

    def _forget_all_but(self, newest: Path) -> None:
        """Removes fetched bundles that nobody will want again; one that still runs is in memory."""
        self._fetched = [path for path in self._fetched if path != newest] + [newest]
        while len(self._fetched) > self._keep:
            shutil.rmtree(self._fetched.pop(0), ignore_errors=True)

    # What is told

    def _refuse(self, bundle_id: str, error: Exception, message: str, log: bool = True) -> None:
        with self._changed:
            self._refusal = Refusal(bundle_id, reason_of(error), message)
        if log:
            self._node.get_logger().error(f"bundle {bundle_id} is refused: {message}")
        self._tell(bundle_id, ModelStatus.STATE_REFUSED, reason_of(error), message)

    def _tell(self, bundle_id: str, state: int, reason: Reason = Reason.UNSET, message: str = "") -> None:
        for robot in list(self._publishers):
            self._publish(robot, bundle_id, state, reason, message)

    def _publish(
        self,
        robot: str,
        bundle_id: str,
        state: int,
        reason: Reason = Reason.UNSET,
        message: str = "",
        stall_s: float = math.nan,
    ) -> None:
        publisher = self._publishers.get(robot)
        if publisher is None or self._closing:
            return
        status = ModelStatus(
            robot=robot_label(self._node, robot),
            node=self._node.get_name(),
            bundle_id=bundle_id,
            state=state,
            reason=int(reason),
            stall=stall_s,
            message=message,
        )
        status.header.stamp = self._node.get_clock().now().to_msg()
        publisher.publish(status)
