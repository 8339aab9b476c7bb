"""The clients of the two file transfers between robot and learner: episodes go up, bundles come down.

Both move an archive in parts of at most 1 MiB through a service, ask where to go on after every cut, check SHA-256 at the
end, and keep trying with growing pauses while the learner is away. Both block, so they run in a thread of their own while
the node's executor takes the answers.
Left out: the servers (`transfer_server`), and deciding which bundle to fetch.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efm_core.archive import PartReceiver, PartSource, pack, unpack
from efm_core.errors import BundleUnknown, EfmError, LearnerPaused, Reason, TransferCorrupt, WaitTimeout
from efm_core.spool import Spool
from efm_msgs.srv import GetBundle, SubmitEpisode
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.client import Client
from rclpy.node import Node

from efm_ros.conversion import set_bytes

PART_BYTES = 1 << 20  # The greatest part that either service takes.
PART_TIMEOUT_S = 10.0  # One part on a slow radio link; the last one includes the learner's check and sync to disk.
RESTARTS = 3  # Transfers from offset 0 of one archive before it rests for a while.


@dataclass
class BackOff:
    """Pauses between attempts: each twice the one before, up to a limit, with a random share so that robots spread out."""

    first_s: float = 0.5
    longest_s: float = 30.0
    rng: random.Random = random.Random()
    _next_s: float = 0.0

    def pause(self) -> float:
        """Gives the next pause [s]."""
        self._next_s = min(max(self.first_s, 2 * self._next_s), self.longest_s)
        return self._next_s * self.rng.uniform(0.75, 1.25)

    def reset(self) -> None:
        """Begins again with the shortest pause, after a success."""
        self._next_s = 0.0


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
        """Calls the service.

        Args:
            request: Its request.
            timeout_s: Longest wait for the answer (steady clock).

        Raises:
            WaitTimeout: The service is not there, does not answer in time, or the wait was stopped.
        """
        name = self._client.srv_name
        if not self._client.service_is_ready():
            raise WaitTimeout(f"expected the service '{name}', found none; is the learner running?")
        answered = threading.Event()
        future = self._client.call_async(request)
        future.add_done_callback(lambda _: answered.set())
        deadline = time.monotonic() + timeout_s
        while not answered.wait(0.05):
            if self._stopped.is_set() or time.monotonic() > deadline:
                self._client.remove_pending_request(future)
                waited = "until the node stopped" if self._stopped.is_set() else f"for {timeout_s:g} s"
                raise WaitTimeout(f"expected an answer of '{name}', waited {waited}; is the learner busy or away?")
        return future.result()

    def destroy(self) -> None:
        """Gives the client back."""
        self._node.destroy_client(self._client)


class EpisodeSender:
    """Hands the episodes of a spool to the learner, oldest first, until each is acknowledged. Owns one thread.

    An episode that the learner refuses for good (invalid, stale) stays in the spool and is not offered again by this sender.
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
            told: Called from the sender's thread with episode id, reason and words: OK or DUPLICATE when it is
                acknowledged, else why it is not (yet).
            back_off: Pauses between attempts.
        """
        self._node = node
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

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def notify(self) -> None:
        """Says that an episode was added, so that it does not wait for the end of a pause."""
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
            pause: float | None = None
            if self._waiting() and self._asker.is_there():
                pause = self._send_all()
            elif self._waiting():
                pause = 1.0  # Away: look again soon, which costs nothing.
            self._wake.wait(pause)

    def _waiting(self) -> list[Path]:
        return [path for path in self._spool.pending() if path.name not in self._refused]

    def _send_all(self) -> float | None:
        """Sends what waits; gives the pause before the next attempt, None when nothing is left."""
        for path in self._waiting():
            if self._stopped.is_set():
                return None
            try:
                reason = self._send(path)
            except EfmError as error:
                self._told(path.name, Reason(error.reason), str(error))
                return self._back_off.pause()
            self._back_off.reset()
            self._told(path.name, reason, "")
        return None

    def _send(self, folder: Path) -> Reason:
        """Sends one episode; gives OK or DUPLICATE, after which it is out of the spool."""
        archive = self._spool.path / ".sending.tar"
        size, sha256 = pack(folder, archive)
        source = PartSource(archive)
        try:
            offset, empty, restarts = 0, True, 0
            while True:
                data = b"" if empty else source.read(offset, PART_BYTES)
                request = SubmitEpisode.Request(
                    robot=self._robot, episode_id=folder.name, offset=offset, total_size=size, sha256=sha256
                )
                set_bytes(request, "data", data)
                answer = self._asker.ask(request)
                reason = Reason(answer.reason)
                if reason in (Reason.OK, Reason.EPISODE_DUPLICATE) and answer.next_offset == size:
                    self._spool.acknowledge(folder.name, sha256)
                    return reason
                if reason is Reason.TRANSFER_CORRUPT:
                    restarts += 1
                elif reason is Reason.PAUSED:
                    raise LearnerPaused(answer.message)
                elif reason is not Reason.OK:
                    self._refused[folder.name] = answer.message
                    return reason
                elif not empty and answer.next_offset <= offset:
                    restarts += 1
                if restarts > RESTARTS:
                    raise TransferCorrupt(f"episode {folder.name}: began {restarts} times; last answer: {answer.message}")
                offset, empty = answer.next_offset, False
        finally:
            archive.unlink(missing_ok=True)


class BundleFetcher:
    """Fetches announced bundles into a folder. `fetch` blocks; `stop` ends it from another thread."""

    def __init__(self, node: Node, folder: Path, learner: str, back_off: BackOff | None = None) -> None:
        """Makes the client.

        Args:
            node: Node whose executor takes the answers.
            folder: Where bundles are kept, one folder each.
            learner: Namespace of the learner, for example '/learner'.
            back_off: Pauses between attempts.
        """
        self._folder = folder
        self._back_off = back_off or BackOff()
        self._stopped = threading.Event()
        self._asker = Asker(node, GetBundle, f"{learner.rstrip('/')}/get_bundle", self._stopped)

    def fetch(self, bundle_id: str, size: int, sha256: str, deadline_s: float = 600.0) -> Path:
        """Fetches one bundle, from where an earlier attempt was cut.

        Args:
            bundle_id: Which.
            size: Size of its archive in bytes, as announced.
            sha256: SHA-256 of its archive, as announced.
            deadline_s: Longest time in all, pauses included (steady clock).

        Returns:
            The bundle's folder; not opened, `efm_core.bundle.load_bundle` checks it.

        Raises:
            WaitTimeout: The deadline passed, or `stop` was called.
            BundleUnknown: The learner does not have it.
            TransferCorrupt: Its bytes are not the announced ones, again and again.
        """
        final = self._folder / bundle_id
        if final.is_dir():
            return final
        self._folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + deadline_s
        corrupt = 0
        while True:
            receiver = PartReceiver(self._folder, bundle_id, size, sha256)
            try:
                self._receive(receiver, bundle_id, size, sha256)
                archive = receiver.finish()
                unpacked = unpack(archive, self._folder, bundle_id)
                archive.unlink()
                self._back_off.reset()
                return unpacked
            except TransferCorrupt:
                corrupt += 1
                if corrupt > RESTARTS:
                    raise
            except WaitTimeout as error:
                if self._stopped.is_set() or time.monotonic() > deadline:
                    raise WaitTimeout(f"bundle {bundle_id}: not fetched within {deadline_s:g} s; {error}") from error
            self._stopped.wait(self._back_off.pause())

    def stop(self) -> None:
        """Ends a running fetch; what has come is kept."""
        self._stopped.set()

    def destroy(self) -> None:
        """Gives the client back, after `stop` and the end of the thread that fetches."""
        self._asker.destroy()

    def _receive(self, receiver: PartReceiver, bundle_id: str, size: int, sha256: str) -> None:
        while receiver.next_offset < size:
            offset = receiver.next_offset
            answer = self._asker.ask(GetBundle.Request(bundle_id=bundle_id, offset=offset, length=PART_BYTES))
            if answer.reason != Reason.OK:
                raise BundleUnknown(f"bundle {bundle_id}: {answer.message}")
            if answer.total_size != size or answer.sha256 != sha256 or not answer.data:
                raise TransferCorrupt(
                    f"bundle {bundle_id}: expected an archive of {size} bytes with SHA-256 {sha256}, found "
                    f"{answer.total_size} bytes with {answer.sha256}"
                )
            receiver.add(offset, bytes(answer.data))
