"""An action client that any thread may use, and destroy, while an executor spins in another.

rclpy 7.1 notes whom an answer belongs to only after it has sent the request. When the executor of another
thread takes the answer in between, it is dropped ("Ignoring unexpected goal response"), and the future never
ends. Here an answer waits until who asked has noted the question. And where rclpy's client is destroyed while
an executor begins to look at it, it fails with another error than topics and services do.
"""

from __future__ import annotations

import threading
from typing import Any

import rclpy.action
from rclpy._rclpy_pybind11 import InvalidHandle, RCLError


class ActionClient(rclpy.action.ActionClient):
    """As rclpy's; goals, cancellations and results may be asked for from any thread."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Takes what rclpy's takes."""
        self._asking = threading.Lock()
        super().__init__(*arguments, **options)

    def send_goal_async(self, *arguments: Any, **options: Any) -> Any:
        """As rclpy's."""
        with self._asking:
            return super().send_goal_async(*arguments, **options)

    def _cancel_goal_async(self, goal_handle: Any) -> Any:
        with self._asking:
            return super()._cancel_goal_async(goal_handle)

    def _get_result_async(self, goal_handle: Any) -> Any:
        with self._asking:
            return super()._get_result_async(goal_handle)

    def add_to_wait_set(self, wait_set: Any) -> None:
        """As rclpy's.

        Raises:
            InvalidHandle: The client was destroyed meanwhile; our executors leave it out then.
        """
        try:
            super().add_to_wait_set(wait_set)
        except RCLError as error:
            raise InvalidHandle(str(error)) from error

    async def execute(self, taken_data: Any) -> None:
        """Called by the executor with what has come."""
        with self._asking:
            pass
        await super().execute(taken_data)
