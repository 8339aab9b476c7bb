"""What tests of nodes share: waiting for a condition instead of for a time.

Left out: fakes of nodes, which are built from the specs beside the tests that need them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rclpy.executors import Executor
from rclpy.node import Node

from efm_ros.executors import SingleThreadedExecutor

PATIENCE_S = 180.0  # A loaded machine with two cores; a test that passes never waits that long.


class Spinner:
    """Spins nodes of this process until a condition holds."""

    def __init__(self, *nodes: Node, executor: Executor | None = None) -> None:
        """Takes nodes in; without an executor a single-threaded one."""
        self.executor = executor or SingleThreadedExecutor()
        for node in nodes:
            self.executor.add_node(node)

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Spins until `condition` is true.

        Args:
            condition: Looked at after every callback and at least every 50 ms.
            what: What is waited for, for the error.
            timeout_s: Longest wait.

        Raises:
            AssertionError: It did not become true in time.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
            self.executor.spin_once(timeout_sec=0.05)

    def call(self, client, request, timeout_s: float = PATIENCE_S):
        """Calls a service and gives its answer."""
        self.until(client.service_is_ready, f"the service {client.srv_name}", timeout_s)
        future = client.call_async(request)
        self.until(future.done, f"an answer of {client.srv_name}", timeout_s)
        return future.result()

    def close(self) -> None:
        """Ends the executor; the nodes stay."""
        self.executor.shutdown()
