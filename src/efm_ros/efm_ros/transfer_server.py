"""The learner's side of the two file transfers: episodes come in (`submit_episode`), bundles go out.

Any part may be asked for again by anyone at any time, and what has come is on disk: robots and learner may be
cut off or restarted anywhere, and go on from there.
Left out: what happens with an episode, which the node's `take` decides.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

from rclpy.node import Node

from efm_core.archive import MAX_PART_BYTES, PartReceiver, PartSource, unpack
from efm_core.bundle import Bundle, load_bundle
from efm_core.errors import (
    BadRequest,
    BundleUnknown,
    EfmError,
    EpisodeDuplicate,
    LearnerPaused,
    Reason,
    reason_of,
)
from efm_core.ids import check_name
from efm_msgs.msg import ModelInfo
from efm_msgs.srv import GetBundle, SubmitEpisode
from efm_ros.conversion import set_bytes
from efm_ros.qos import MODELS

LARGEST_EPISODE_BYTES = 8 << 30  # A claim beyond it is a mistake, not an episode.
LEDGER = ".taken"
KINDS = {"policy": ModelInfo.KIND_POLICY, "reward": ModelInfo.KIND_REWARD, "both": ModelInfo.KIND_BOTH}


class EpisodeReceiver:
    """Serves `submit_episode`: parts become an archive, the archive a folder in the inbox, which `take` gets.

    A ledger in the inbox remembers every episode taken with its SHA-256, so that the same one is acknowledged
    again without being taken twice, and another one of the same id is refused.
    """

    def __init__(
        self,
        node: Node,
        inbox: Path,
        take: Callable[[Path, str], None],
        accepting: Callable[[], bool] = lambda: True,
    ) -> None:
        """Opens the service.

        Args:
            node: Node that serves.
            inbox: Folder for episodes and for parts on their way.
            take: Called with the folder of a whole episode and the robot's name. It returns when the episode
                is safe (moving the folder away is fine), or raises an EfmError to refuse it: the folder is
                removed and the robot keeps its copy. It is called again for an episode that a crash kept
                from the ledger.
            accepting: False makes robots wait with episodes that they have not begun to send.

        Raises:
            SpoolFull, OSError: The inbox cannot be made or read.
        """
        self._inbox = inbox
        self._take = take
        self._accepting = accepting
        self._receivers: dict[str, PartReceiver] = {}
        inbox.mkdir(parents=True, exist_ok=True)
        self._taken = _read_ledger(inbox / LEDGER)
        self._logger = node.get_logger()
        self.service = node.create_service(SubmitEpisode, "submit_episode", self._serve)

    def _serve(
        self, request: SubmitEpisode.Request, answer: SubmitEpisode.Response
    ) -> SubmitEpisode.Response:
        name = request.episode_id
        try:
            answer.next_offset, answer.message = self._add(request)
            answer.reason = int(Reason.OK)
        except EfmError as error:
            answer.reason, answer.message = int(reason_of(error)), str(error)
            answer.next_offset = self._receivers[name].next_offset if name in self._receivers else 0
        except Exception as error:  # noqa: BLE001 - one odd episode must not keep the others away
            answer.reason, answer.message = int(Reason.INTERNAL), f"{type(error).__name__}: {error}"
            self._logger.error(f"episode {name}: {traceback.format_exc()}")
        return answer

    def _add(self, request: SubmitEpisode.Request) -> tuple[int, str]:
        """Takes one part; gives the offset of the next one and words for people."""
        name = check_name(request.episode_id, "episode_id")
        if request.total_size > LARGEST_EPISODE_BYTES:
            raise BadRequest(
                f"total_size: expected at most {LARGEST_EPISODE_BYTES}, found {request.total_size}"
            )
        if name in self._taken:
            if self._taken[name] != request.sha256:
                raise EpisodeDuplicate(
                    f"episode {name}: was taken with SHA-256 {self._taken[name]}, this one has "
                    f"{request.sha256}; give it another id"
                )
            return request.total_size, "was taken before"
        receiver = self._receivers.get(name)
        if receiver is None or (receiver.sha256, receiver.total_size) != (request.sha256, request.total_size):
            if not self._accepting():
                raise LearnerPaused("the learner takes no new episodes now; learner_status says when it does")
            receiver = PartReceiver(self._inbox, name, request.total_size, request.sha256)
            self._receivers[name] = receiver
        if request.data:
            receiver.add(request.offset, bytes(request.data))
        if receiver.next_offset < request.total_size:
            return receiver.next_offset, ""
        archive = receiver.finish()
        del self._receivers[name]
        try:
            folder = unpack(archive, self._inbox, name)
        finally:
            archive.unlink(missing_ok=True)
        try:
            self._take(folder, request.robot)
        except EfmError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._remember(name, request.sha256)
        return request.total_size, "taken"

    def _remember(self, name: str, sha256: str) -> None:
        with (self._inbox / LEDGER).open("a", encoding="utf-8") as file:
            file.write(f"\n{name} {sha256}")  # A new line first: a crash may have cut the one before short.
            file.flush()
            os.fsync(file.fileno())
        self._taken[name] = sha256


class BundleServer:
    """Serves `get_bundle` out of a folder of bundles, and announces them on `models`."""

    def __init__(self, node: Node, folder: Path) -> None:
        """Opens service and topic; `folder` holds one folder for each bundle."""
        self._node = node
        self._folder = folder
        self._sources: dict[str, tuple[PartSource, str]] = {}
        self.publisher = node.create_publisher(ModelInfo, "models", MODELS)
        self.service = node.create_service(GetBundle, "get_bundle", self._serve)

    def announce(self, bundle: Bundle) -> ModelInfo:
        """Publishes a bundle that lies in the folder, and gives what was published.

        Raises:
            BundleUnknown: It does not lie there.
        """
        source, sha256 = self._source(bundle.id)
        info = ModelInfo(
            bundle_id=bundle.id,
            kind=KINDS[bundle.manifest.kind],
            embodiment_digest=bundle.embodiment.digest,
            parent_id=bundle.manifest.parent_id or "",
            version=bundle.manifest.version,
            archive_size=source.size,
            archive_sha256=sha256,
        )
        info.header.stamp = self._node.get_clock().now().to_msg()
        self.publisher.publish(info)
        return info

    def _serve(self, request: GetBundle.Request, answer: GetBundle.Response) -> GetBundle.Response:
        try:
            source, sha256 = self._source(request.bundle_id)
            data = source.read(request.offset, min(request.length or MAX_PART_BYTES, MAX_PART_BYTES))
            answer.total_size, answer.sha256 = source.size, sha256
            set_bytes(answer, "data", data)
            answer.reason = int(Reason.OK)
        except EfmError as error:
            answer.reason, answer.message = int(reason_of(error)), str(error)
        except OSError as error:
            answer.reason, answer.message = int(Reason.INTERNAL), str(error)
            self._node.get_logger().error(f"bundle {request.bundle_id}: {error}")
        return answer

    def _source(self, bundle_id: str) -> tuple[PartSource, str]:
        """Opens a bundle's archive; the SHA-256 is computed once."""
        folder = self._folder / check_name(bundle_id, "bundle_id")
        if not folder.is_dir():
            self._sources.pop(bundle_id, None)
            raise BundleUnknown(f"{folder}: expected a bundle's folder, found none")
        if bundle_id not in self._sources:
            source = PartSource(load_bundle(folder, verify=False).path)
            self._sources[bundle_id] = source, source.sha256()
        return self._sources[bundle_id]


def _read_ledger(path: Path) -> dict[str, str]:
    """Reads name -> SHA-256; a line that a crash cut short is left out, its episode comes again."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    pairs = (line.split() for line in lines)
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and len(pair[1]) == 64}
