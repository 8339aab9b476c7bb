"""The learner's side of the two file transfers: takes episodes (`submit_episode`), gives out bundles (`get_bundle`).

Both services are stateless to their clients: any part may be asked for again, in any session, by any robot. What has come is
on disk, so a restarted learner goes on where it was.
Left out: what happens with an episode; the node's `take` decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from efm_core.archive import PartReceiver, PartSource, pack, unpack
from efm_core.bundle import Bundle, load_bundle
from efm_core.errors import BadRequest, EfmError, LearnerPaused, Reason, TransferCorrupt, reason_of
from efm_msgs.msg import ModelInfo
from efm_msgs.srv import GetBundle, SubmitEpisode
from rclpy.node import Node

from efm_ros.conversion import set_bytes
from efm_ros.qos import MODELS
from efm_ros.transfer import PART_BYTES

LARGEST_EPISODE_BYTES = 8 << 30  # A claim beyond it is a mistake, not an episode.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
KINDS = {"policy": ModelInfo.KIND_POLICY, "reward": ModelInfo.KIND_REWARD, "both": ModelInfo.KIND_BOTH}


class EpisodeReceiver:
    """Serves `submit_episode`: parts become an archive, the archive an episode folder in the inbox."""

    def __init__(
        self,
        node: Node,
        inbox: Path,
        take: Callable[[Path, str], None],
        accepting: Callable[[], bool] = lambda: True,
        is_known: Callable[[str], bool] = lambda episode_id: False,
    ) -> None:
        """Opens the service.

        Args:
            node: Node that serves.
            inbox: Folder for episodes and for parts on their way.
            take: Called with the episode's folder and the robot; returns when the episode is safe, raises an EfmError to
                refuse it, which removes it again.
            accepting: False makes robots wait with episodes that they have not begun to send.
            is_known: True for an episode that was taken before and is no longer in the inbox.
        """
        self._inbox = inbox
        self._take = take
        self._accepting = accepting
        self._is_known = is_known
        self._receivers: dict[str, PartReceiver] = {}
        inbox.mkdir(parents=True, exist_ok=True)
        self.service = node.create_service(SubmitEpisode, "submit_episode", self._serve)

    def _serve(self, request: SubmitEpisode.Request, answer: SubmitEpisode.Response) -> SubmitEpisode.Response:
        try:
            _check(request)
            answer.next_offset = self._add(request)
            answer.reason = int(Reason.OK)
            if answer.next_offset == request.total_size and self._has(request.episode_id):
                answer.message = "taken"
        except EfmError as error:
            answer.reason, answer.message = int(reason_of(error)), str(error)
            receiver = self._receivers.get(request.episode_id)
            answer.next_offset = receiver.next_offset if receiver is not None else 0
        return answer

    def _has(self, episode_id: str) -> bool:
        return (self._inbox / episode_id).is_dir() or self._is_known(episode_id)

    def _add(self, request: SubmitEpisode.Request) -> int:
        """Takes one part; gives the offset of the next."""
        name = request.episode_id
        if self._has(name):
            return request.total_size
        receiver = self._receivers.get(name)
        if receiver is None:
            if not self._accepting():
                raise LearnerPaused("the learner takes no new episodes now; it says when on learner_status")
            receiver = PartReceiver(self._inbox, name, request.total_size, request.sha256)
            self._receivers[name] = receiver
        if request.data:
            receiver.add(request.offset, bytes(request.data))
        if receiver.next_offset < request.total_size:
            return receiver.next_offset
        del self._receivers[name]
        archive = receiver.finish()
        folder = unpack(archive, self._inbox, name)
        archive.unlink()
        self._take(folder, request.robot)
        return request.total_size


class BundleServer:
    """Serves `get_bundle` and announces bundles on `models`."""

    def __init__(self, node: Node, folder: Path) -> None:
        """Opens service and topic; `folder` holds one folder for each bundle."""
        self._node = node
        self._folder = folder
        self._archives = folder / ".archives"
        self._archives.mkdir(parents=True, exist_ok=True)
        self._packed: dict[str, tuple[int, str]] = {}
        self.publisher = node.create_publisher(ModelInfo, "models", MODELS)
        self.service = node.create_service(GetBundle, "get_bundle", self._serve)

    def announce(self, bundle: Bundle) -> ModelInfo:
        """Publishes a bundle that lies in the folder, and gives what was published."""
        size, sha256 = self._pack(bundle.id)
        info = ModelInfo(
            bundle_id=bundle.id,
            kind=KINDS[bundle.manifest.kind],
            embodiment_digest=bundle.embodiment.digest,
            parent_id=bundle.manifest.parent_id or "",
            version=bundle.manifest.version,
            archive_size=size,
            archive_sha256=sha256,
        )
        info.header.stamp = self._node.get_clock().now().to_msg()
        self.publisher.publish(info)
        return info

    def _serve(self, request: GetBundle.Request, answer: GetBundle.Response) -> GetBundle.Response:
        try:
            if not _NAME.fullmatch(request.bundle_id):
                raise BadRequest(f"expected a bundle's id, found '{request.bundle_id}'")
            answer.total_size, answer.sha256 = self._pack(request.bundle_id)
            length = min(request.length or PART_BYTES, PART_BYTES)
            source = PartSource(self._archive(request.bundle_id))
            set_bytes(answer, "data", source.read(request.offset, length))
            answer.reason = int(Reason.OK)
        except EfmError as error:
            answer.reason, answer.message = int(reason_of(error)), str(error)
        return answer

    def _archive(self, bundle_id: str) -> Path:
        return self._archives / f"{bundle_id}.tar"

    def _pack(self, bundle_id: str) -> tuple[int, str]:
        """Packs a bundle once; gives size and SHA-256 of its archive."""
        if bundle_id not in self._packed:
            bundle = load_bundle(self._folder / bundle_id, verify=False)
            self._packed[bundle_id] = pack(bundle.path, self._archive(bundle_id))
        return self._packed[bundle_id]


def _check(request: SubmitEpisode.Request) -> None:
    if not _NAME.fullmatch(request.episode_id):
        raise BadRequest(f"episode_id: expected letters, digits, - and _, found '{request.episode_id}'")
    if not 0 < request.total_size <= LARGEST_EPISODE_BYTES:
        raise BadRequest(f"total_size: expected 1 to {LARGEST_EPISODE_BYTES} bytes, found {request.total_size}")
    if not _SHA256.fullmatch(request.sha256):
        raise BadRequest(f"sha256: expected 64 hex digits, found '{request.sha256}'")
    if len(request.data) > PART_BYTES:
        raise BadRequest(f"data: expected at most {PART_BYTES} bytes, found {len(request.data)}")
    if request.offset + len(request.data) > request.total_size:
        raise TransferCorrupt(f"the part ends at {request.offset + len(request.data)}, past {request.total_size}")
