"""rclpy's executors, without two of their faults (rclpy 7.1).

While one of them puts together what it waits for, an entity that another thread destroys at that moment makes
it raise InvalidHandle; the node would end for nothing, since the next look leaves the entity out. And a pool
of threads does not wait for callbacks that still run when it is shut down.
"""

from __future__ import annotations

import time
from typing import Any

import rclpy.executors
from rclpy._rclpy_pybind11 import InvalidHandle


class _Patient(rclpy.executors.Executor):
    """Looks again where an entity was destroyed under the look; what callbacks raise is not touched."""

    def wait_for_ready_callbacks(self, *arguments: Any, **options: Any) -> Any:
        """As rclpy's."""
        while True:
            try:
                return super().wait_for_ready_callbacks(*arguments, **options)
            except InvalidHandle:
                continue


class SingleThreadedExecutor(_Patient, rclpy.executors.SingleThreadedExecutor):
    """As rclpy's; entities may be destroyed in any thread."""


class ThreadPoolExecutor(_Patient, rclpy.executors.MultiThreadedExecutor):
    """As rclpy's MultiThreadedExecutor; entities may be destroyed in any thread, and after `shutdown` no
    callback runs any more.
    """

    def shutdown(self, timeout_sec: float | None = None) -> bool:
        """As rclpy's."""
        self._executor.shutdown(wait=False)
        deadline = None if timeout_sec is None else time.monotonic() + timeout_sec
        for thread in self._executor._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return super().shutdown(timeout_sec)
