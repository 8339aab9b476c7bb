"""A robot that hands episodes to a learner node over real services, and hears what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import practised
from rclpy.node import Node
from rclpy.parameter import Parameter

from efm_core.bundle import Bundle, load_bundle
from efm_core.spool import Spool
from efm_learner.learner_node import LearnerNode
from efm_msgs.msg import LearnerStatus, ModelInfo
from efm_ros.qos import LATCHED, MODELS
from efm_ros.testing import PATIENCE_S, Spinner
from efm_ros.transfer import BackOff, BundleFetcher, EpisodeSender

# Two iterations in four episodes of 12 decisions.
LEARNING = {"updates": 2, "batch": 12, "learning_rate": 0.01, "max_staleness": 1000}


class Robot:
    """Practises, spools, hands over; remembers statuses and announcements."""

    def __init__(self, spinner: Spinner, folder: Path) -> None:
        self.spinner, self.folder = spinner, folder
        self.node = Node("episodes", namespace="/robot_1")
        spinner.executor.add_node(self.node)
        self.statuses: list[LearnerStatus] = []
        self.announced: list[ModelInfo] = []
        self.told: list[tuple[Any, ...]] = []
        self.spool = Spool(folder / "spool", quota_bytes=1 << 30, reserve_bytes=0)
        self.listen()
        self.sender = EpisodeSender(
            self.node, self.spool, "/learner", "robot_1", lambda *words: self.told.append(words), quick()
        )
        self.sender.start()

    def listen(self) -> None:
        """Forgets what it heard and subscribes as somebody who just came."""
        for old in list(self.node.subscriptions):
            self.node.destroy_subscription(old)
        self.statuses.clear()
        self.announced.clear()
        subscribe = self.node.create_subscription
        subscribe(LearnerStatus, "/learner/learner_status", self.statuses.append, LATCHED)
        subscribe(ModelInfo, "/learner/models", self.announced.append, MODELS)

    def practise(self, policy: Bundle, number: int, **changes: Any) -> None:
        """Records an episode into the spool."""
        practised.record_episode(self.spool.path, policy, number, **changes)
        self.sender.notify()

    @property
    def status(self) -> LearnerStatus:
        """The newest status; an empty one before the first."""
        return self.statuses[-1] if self.statuses else LearnerStatus()

    def until(self, what: str, condition: Any, timeout_s: float = PATIENCE_S) -> None:
        """Spins until a condition on the newest status holds."""
        self.spinner.until(lambda: condition(self.status), f"{what}; last: {self.status}", timeout_s)

    def fetch(self, info: ModelInfo) -> Bundle:
        """Fetches an announced bundle as a robot does, and verifies it."""
        fetcher = BundleFetcher(self.node, self.folder / "fetched", "/learner", quick())
        found: list[Path] = []
        arguments = (info.bundle_id, info.archive_size, info.archive_sha256)
        thread = threading.Thread(target=lambda: found.append(fetcher.fetch(*arguments)), daemon=True)
        thread.start()
        self.spinner.until(lambda: not thread.is_alive(), f"bundle {info.bundle_id}")
        fetcher.destroy()
        return load_bundle(found[0])

    def close(self) -> None:
        """Ends the hand-over and the node."""
        self.sender.stop(timeout_s=10.0)
        self.spool.close()
        self.spinner.executor.remove_node(self.node)
        self.node.destroy_node()


def parameters(run: Path, bundles: dict[str, Bundle], **changes: Any) -> dict[str, Any]:
    folders = {name: str(bundle.path) for name, bundle in bundles.items()}
    return {"run": str(run), **folders, **LEARNING, **changes}


def node_of(values: dict[str, Any]) -> LearnerNode:
    """The node in this process."""
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    return LearnerNode(namespace="/learner", parameter_overrides=overrides)


class Process:
    """The node as users start it."""

    def __init__(self, values: dict[str, Any], spinner: Spinner) -> None:
        given = [part for name, value in values.items() for part in ("-p", f"{name}:={value}")]
        self.spinner = spinner
        self.process = subprocess.Popen(
            [sys.executable, "-m", "efm_learner.learner_main", "--ros-args", "-r", "__ns:=/learner", *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def end(self, number: int | None = signal.SIGKILL) -> tuple[int, str, float]:
        """Sends a signal and waits; gives exit code, output, and seconds from signal to end."""
        began = time.monotonic()
        if number is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)
        output, _ = self.process.communicate(timeout=250)
        return self.process.returncode, output, time.monotonic() - began


def quick() -> BackOff:
    return BackOff(first_s=0.05, longest_s=0.2)
