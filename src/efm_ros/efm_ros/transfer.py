"""The robot's side of the two file transfers: episodes go up to the learner, bundles come down from it.

Both move an archive in parts of at most 1 MiB through a service, ask where to go on after every cut, check
SHA-256 at the end, and keep trying with growing pauses while the learner is away. Both block, so they run in
a thread of their own while the node's executor takes the answers.
Left out: the learner's side (`transfer_server`), and deciding which bundle to fetch.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.client import Client
from rclpy.node import Node

from efm_core.archive import MAX_PART_BYTES, PartReceiver, PartSource, unpack
from efm_core.errors import BundleUnknown, EfmError, LearnerPaused, Reason, TransferCorrupt, WaitTimeout
from efm_core.spool import Spool
from efm_msgs.srv import GetBundle, SubmitEpisode
from efm_ros.conversion import set_bytes

PART_TIMEOUT_S = 10.0  # One part on a slow radio link; the last one includes the learner's check and sync.
AWAY_S = 1.0  # Between looks for a learner that is away; a look costs nothing.
RESTARTS = 3  # Transfers of one archive from offset 0 before it rests.
# Refusals that another attempt cannot change: the episode stays in the spool and is not offered again.
FOR_GOOD = frozenset(
    {
        Reason.BAD_REQUEST,
        Reason.EMBODIMENT_INVALID,
        Reason.EMBODIMENT_MISMATCH,
        Reason.EPISODE_INVALID,
        Reason.EPISODE_TRUNCATED,
        Reason.EPISODE_STALE,
        Reason.EPISODE_DUPLICATE,  # Of that id with another content.
    }
)


class BackOff:
    """Pauses between attempts: each twice the one before, with a random share so that robots spread out."""

    def __init__(
        self, first_s: float = 0.5, longest_s: float = 30.0, rng: random.Random | None = None
    ) -> None:
        """Takes the first and the longest pause [s]."""
        self._first_s = first_s
        self._longest_s = longest_s
        self._rng = rng or random.Random()
        self._last_s = 0.0

    def pause(self) -> float:
        """Gives the next pause [s]."""
        self._last_s = min(max(self._first_s, 2 * self._last_s), self._longest_s)
        return self._last_s * self._rng.uniform(0.75, 1.25)

    def reset(self) -> None:
        """Begins again with the shortest pause, after a success."""
        self._last_s = 0.0


class Asker:
    """Calls a service from a thread that is not the executor's, with a deadline on every wait."""

    def __init__(self, node: Node, service_type: type, name: str, stopped: threading.Event) -> None:
        """Makes the client; `stopped` ends every wait at once."""
        self._node = node
        self._stopped = stopped
        self._client: Client = node.create_client(service_type, name, callback_group=ReentrantCallbackGroup())

    def is_there(self) -> bool:
        """True when the service is in the graph."""
        return self._client.service_is_ready()

    def ask(self, request: Any, timeout_s: float = PART_TIMEOUT_S) -> Any:
        """Calls the service and gives its answer.

        Raises:
            WaitTimeout: The service is not there, does not answer within `timeout_s` (steady clock), or the
                wait was stopped.
        """
        name = self._client.srv_name
        if not self.is_there():
            raise WaitTimeout(f"expected the service '{name}', found none; is the learner running?")
        answered = threading.Event()
        future = self._client.call_async(request)
        future.add_done_callback(lambda _: answered.set())
        deadline = time.monotonic() + timeout_s
        while not answered.wait(0.05):
            if self._stopped.is_set() or time.monotonic() > deadline:
                self._client.remove_pending_request(future)
                waited = "until the node stopped" if self._stopped.is_set() else f"for {timeout_s:g} s"
                raise WaitTimeout(f"waited {waited} for an answer of '{name}'; is the learner busy or away?")
        return future.result()

    def destroy(self) -> None:
        """Gives the client back."""
        self._node.destroy_client(self._client)


class EpisodeSender:
    """Hands the episodes of a spool to the learner, oldest first, until all are acknowledged. Owns a thread.

    What the learner refuses for good stays in the spool and is not offered again by this sender.
    """

    def __init__(
        self,
        node: Node,
        spool: Spool,
        learner: str,
        robot: str = "",
        told: Callable[[str, Reason, str], None] | None = None,
        back_off: BackOff | None = None,
    ) -> None:
        """Makes the client; `start` begins.

        Args:
            node: Node whose executor takes the answers.
            spool: Where the episodes are; the sender acknowledges in it.
            learner: Namespace of the learner, for example '/learner'.
            robot: Robot's namespace without leading slash, as the learner shall know it.
            told: Called from the sender's thread with episode id, reason and words: OK when it is
                acknowledged and out of the spool, else why it is not (yet).
            back_off: Pauses between attempts.
        """
        self._logger = node.get_logger()
        self._spool = spool
        self._robot = robot
        self._told = told or (lambda episode_id, reason, message: None)
        self._back_off = back_off or BackOff()
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._refused: dict[str, str] = {}
        self._asker = Asker(node, SubmitEpisode, f"{learner.rstrip('/')}/submit_episode", self._stopped)
        self._thread = threading.Thread(target=self._run, name="episode sender", daemon=True)

    @property
    def refused(self) -> dict[str, str]:
        """Episodes that the learner refused for good, with its words."""
        return dict(self._refused)

    @property
    def learner_is_there(self) -> bool:
        """True when the learner's service is in the graph."""
        return self._asker.is_there()

    def start(self) -> None:
        """Begins to send what is in the spool."""
        self._thread.start()

    def notify(self) -> None:
        """Says that an episode was added; it is tried at once, whatever pause is running."""
        self._wake.set()

    def stop(self, timeout_s: float = 1.0) -> None:
        """Ends the thread; a half-sent episode goes on from there the next time."""
        self._stopped.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._asker.destroy()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            try:
                pause = self._send_all()
            except Exception:  # noqa: BLE001 - a bug must not end the hand-over for the rest of the day
                self._logger.error(f"episode sender: {traceback.format_exc()}")
                pause = self._back_off.pause()
            self._wake.wait(pause)

    def _waiting(self) -> list[Path]:
        return [path for path in self._spool.pending() if path.name not in self._refused]

    def _send_all(self) -> float | None:
        """Sends what waits; gives the pause before the next attempt, None when nothing is left to do."""
        waiting = self._waiting()
        if waiting and not self._asker.is_there():
            return AWAY_S
        failed = False
        for path in waiting:
            if self._stopped.is_set():
                return None
            try:
                self._send(path)
            except (WaitTimeout, LearnerPaused) as error:
                self._told(path.name, Reason(error.reason), str(error))
                return self._back_off.pause()  # The others would fare the same.
            except EfmError as error:
                failed = True
                self._told(path.name, Reason(error.reason), str(error))
            else:
                self._back_off.reset()
        return self._back_off.pause() if failed else None

    def _send(self, folder: Path) -> None:
        """Sends one episode, after which it is out of the spool or refused for good."""
        source = PartSource(folder)
        request = SubmitEpisode.Request(
            robot=self._robot, episode_id=folder.name, total_size=source.size, sha256=source.sha256()
        )
        restarts = 0
        answer = self._asker.ask(request)  # Empty: asks where to go on.
        while not self._is_done(request, answer):
            offset = answer.next_offset
            if answer.reason == Reason.TRANSFER_CORRUPT or (request.data and offset <= request.offset):
                restarts += 1
                if restarts > RESTARTS:
                    raise TransferCorrupt(
                        f"episode {folder.name}: began {restarts} times; last answer: {answer.message}"
                    )
            request.offset = offset
            set_bytes(request, "data", source.read(offset, MAX_PART_BYTES))
            answer = self._asker.ask(request)

    def _is_done(self, request: SubmitEpisode.Request, answer: SubmitEpisode.Response) -> bool:
        """True when the episode needs no more parts; raises when this is not the time to send it."""
        reason = Reason(answer.reason)
        complete = answer.next_offset == request.total_size
        if reason in (Reason.OK, Reason.EPISODE_DUPLICATE) and complete:
            self._spool.acknowledge(request.episode_id, request.sha256)
            self._told(request.episode_id, Reason.OK, answer.message)
            return True
        if reason in FOR_GOOD:
            self._refused[request.episode_id] = answer.message
            self._told(request.episode_id, reason, answer.message)
            return True
        if reason in (Reason.PAUSED, Reason.SPOOL_FULL, Reason.NOT_ACTIVE):
            raise LearnerPaused(f"{reason.name}: {answer.message}")
        if reason not in (Reason.OK, Reason.TRANSFER_CORRUPT):
            raise EfmError(f"{reason.name}: {answer.message}")
        return False


class BundleFetcher:
    """Fetches announced bundles into a folder. `fetch` blocks; `stop` ends it from another thread."""

    def __init__(self, node: Node, folder: Path, learner: str, back_off: BackOff | None = None) -> None:
        """Makes the client.

        Args:
            node: Node whose executor takes the answers.
            folder: Where bundles are kept, one folder each; several nodes may share it.
            learner: Namespace of the learner, for example '/learner'.
            back_off: Pauses between attempts.
        """
        self._folder = folder
        # Parts lie apart: two nodes that share the cache would mix theirs.
        self._own = folder / f".fetching{node.get_fully_qualified_name().replace('/', '.')}"
        self._back_off = back_off or BackOff()
        self._stopped = threading.Event()
        self._asker = Asker(node, GetBundle, f"{learner.rstrip('/')}/get_bundle", self._stopped)

    def fetch(
        self,
        bundle_id: str,
        size: int,
        sha256: str,
        deadline_s: float = 600.0,
        is_outdated: Callable[[], bool] = lambda: False,
    ) -> Path:
        """Fetches one bundle, from where an earlier attempt was cut.

        Args:
            bundle_id: Which.
            size: Size of its archive in bytes, as announced.
            sha256: SHA-256 of its archive, as announced.
            deadline_s: Longest time in all, pauses included (steady clock).
            is_outdated: Looked at between attempts; True gives up, since another bundle is wanted by now.

        Returns:
            The bundle's folder; `efm_core.bundle.load_bundle` checks what is in it.

        Raises:
            WaitTimeout: The deadline passed, `stop` was called, or the bundle is outdated.
            BundleUnknown: The learner does not have it.
            TransferCorrupt: Its bytes are not the announced ones, again and again.
            SpoolFull: The disk is full.
        """
        final = self._folder / bundle_id
        deadline = time.monotonic() + deadline_s
        corrupt = 0
        self._back_off.reset()
        while not final.is_dir():
            try:
                return self._fetch_once(bundle_id, size, sha256)
            except TransferCorrupt:
                corrupt += 1
                if corrupt > RESTARTS:
                    raise
            except WaitTimeout as error:
                if self._stopped.is_set() or is_outdated() or time.monotonic() > deadline:
                    raise WaitTimeout(f"bundle {bundle_id} was not fetched: {error}") from error
            self._stopped.wait(min(self._back_off.pause(), max(0.0, deadline - time.monotonic())))
        return final

    def stop(self) -> None:
        """Ends a running fetch; what has come is kept."""
        self._stopped.set()

    def destroy(self) -> None:
        """Gives the client back, after `stop` and the end of the thread that fetches."""
        self._asker.destroy()

    def _fetch_once(self, bundle_id: str, size: int, sha256: str) -> Path:
        receiver = PartReceiver(self._own, bundle_id, size, sha256)
        while receiver.next_offset < size:
            offset = receiver.next_offset
            answer = self._asker.ask(
                GetBundle.Request(bundle_id=bundle_id, offset=offset, length=MAX_PART_BYTES)
            )
            if answer.reason != Reason.OK:
                raise BundleUnknown(f"bundle {bundle_id}: {answer.message}")
            if (answer.total_size, answer.sha256) != (size, sha256) or not answer.data:
                raise TransferCorrupt(
                    f"bundle {bundle_id}: expected an archive of {size} bytes with SHA-256 {sha256}, found "
                    f"{answer.total_size} bytes with {answer.sha256}"
                )
            receiver.add(offset, bytes(answer.data))
        archive = receiver.finish()
        try:
            unpacked, final = unpack(archive, self._own, bundle_id), self._folder / bundle_id
            try:
                return unpacked.rename(final)
            except OSError:
                shutil.rmtree(unpacked)
                if not final.is_dir():
                    raise
                return final  # The other node was faster.
        finally:
            archive.unlink(missing_ok=True)
