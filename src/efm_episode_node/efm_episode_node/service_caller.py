"""Calls services from a thread that is not the executor's, with a deadline on every wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node

from efm_core.errors import WaitTimeout

POLL_S = 0.1


class ServiceCaller:
    """A client of one service; `call` blocks the calling thread while the node's executor takes the
    answer.
    """

    def __init__(self, node: Node, service_type: type, name: str, stopped: Callable[[], bool]) -> None:
        """Makes the client; a wait ends early once `stopped`."""
        self._node = node
        self._stopped = stopped
        self.name = node.resolve_service_name(name)
        self._client = node.create_client(service_type, name, callback_group=ReentrantCallbackGroup())

    def is_there(self) -> bool:
        """True when the service is in the graph."""
        return self._client.service_is_ready()

    def call(self, request: Any, timeout_s: float) -> Any:
        """Calls and gives the answer.

        Raises:
            WaitTimeout: The service is not there, or does not answer in time (steady clock).
        """
        if not self.is_there():
            raise WaitTimeout(f"expected the service '{self.name}', found none")
        answered = threading.Event()
        future = self._client.call_async(request)
        future.add_done_callback(lambda _: answered.set())
        deadline = time.monotonic() + timeout_s
        while not answered.wait(POLL_S):
            if self._stopped() or time.monotonic() > deadline:
                self._client.remove_pending_request(future)
                raise WaitTimeout(f"waited {timeout_s:g} s for an answer of the service '{self.name}'")
        return future.result()

    def destroy(self) -> None:
        """Gives the client back."""
        self._node.destroy_client(self._client)
