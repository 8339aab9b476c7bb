"""What the episode node tells: `episode_status` at every change and once a second, `episode_summary` after
each episode.
"""

from __future__ import annotations

import time

from rclpy.node import Node

from efm_core.summary import Summary
from efm_episode_node.hand_over import HandOver
from efm_episode_node.run_types import Phase, Progress
from efm_msgs.msg import EpisodeStatus, EpisodeSummary
from efm_ros.conversion import ns_to_stamp
from efm_ros.qos import LATCHED

# Counting a spool of many thousand episodes takes a while: it gets one part of the time in so many.
COUNT_SHARE = 50


class StatusBoard:
    """Publishes; `tell` and `publish` may be called from any thread."""

    def __init__(self, node: Node, robot: str, shelf: HandOver) -> None:
        """Opens the topics."""
        self._node = node
        self._robot = robot
        self._shelf = shelf
        self._status = node.create_publisher(EpisodeStatus, "episode_status", LATCHED)
        self._summary = node.create_publisher(EpisodeSummary, "episode_summary", LATCHED)
        self._progress = Progress()
        self._since = node.get_clock().now().to_msg()
        self._spool = (0, 0)
        self._count_after = 0.0

    @property
    def spool(self) -> tuple[int, int]:
        """Episodes that wait and bytes in use, as last counted."""
        return self._spool

    def tell(self, progress: Progress) -> None:
        """Publishes where the run stands."""
        if progress.phase is not self._progress.phase:
            self._since = self._node.get_clock().now().to_msg()
        if progress.message != self._progress.message and progress.message:
            if progress.phase is Phase.FAULT:
                self._node.get_logger().error(progress.message)
            else:
                self._node.get_logger().info(progress.message)
        self._progress = progress
        message = EpisodeStatus(
            robot=self._robot,
            phase=int(progress.phase),
            mode=int(progress.mode),
            actor=int(progress.actor),
            episode_id=progress.episode_id,
            instruction=progress.instruction if progress.episode_id else "",
            step=progress.step,
            episodes_done=progress.episodes_done,
            episodes_wanted=progress.episodes_wanted,
            successes=progress.successes,
            spool_episodes=self._spool[0],
            spool_bytes=self._spool[1],
            spool_quota=self._shelf.spool.quota_bytes,
            message=progress.message,
        )
        message.header.stamp = self._since
        self._status.publish(message)

    def look(self, progress: Progress) -> None:
        """Counts what lies in the spool, unless that was slow a moment ago, and publishes."""
        began = time.monotonic()
        if began >= self._count_after:
            self._spool = (len(self._shelf.spool.pending()), self._shelf.spool.usage())
            self._count_after = began + COUNT_SHARE * (time.monotonic() - began)
        self.tell(progress)

    def publish(self, summary: Summary) -> EpisodeSummary:
        """Publishes what came out of an episode, and gives the message."""
        message = EpisodeSummary(
            episode_id=summary.episode_id,
            robot=summary.robot,
            instruction=summary.instruction,
            mode=int(summary.mode),
            outcome=int(summary.outcome),
            end_reason=int(summary.end_reason),
            actor=int(summary.actor),
            seed=summary.seed,
            steps=summary.steps,
            policy_bundle_id=summary.policy_bundle_id,
            policy_version=summary.policy_version,
            reward_bundle_id=summary.reward_bundle_id,
            steps_to_go_first=summary.steps_to_go_first,
            steps_to_go_last=summary.steps_to_go_last,
            embodiment_digest=summary.embodiment_digest,
            message=summary.message,
            start=ns_to_stamp(summary.start_ns),
        )
        message.header.stamp = ns_to_stamp(summary.stamp_ns)
        self._summary.publish(message)
        return message

    def close(self) -> None:
        """Closes the topics."""
        self._node.destroy_publisher(self._status)
        self._node.destroy_publisher(self._summary)
