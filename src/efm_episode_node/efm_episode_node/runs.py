"""The thread in which runs of episodes take place, one at a time, and how others start, await and end
them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import rclpy.task
from rclpy.executors import Executor

from efm_core.errors import EfmError, Reason
from efm_core.summary import Summary
from efm_episode_node.run_types import RunRequest, RunResult, Wake
from efm_episode_node.runner import EpisodeRunner


class Busy(EfmError):
    """Another run is on."""

    reason = Reason.BUSY


class NotActive(EfmError):
    """The node is not in the lifecycle state 'active'."""

    reason = Reason.NOT_ACTIVE


@dataclass(frozen=True)
class Run:
    """One run; `result` comes when it has ended."""

    request: RunRequest
    finished: Callable[[Summary], Any]
    result: Future[RunResult] = field(default_factory=Future)

    def awaited(self, executor: Executor | None) -> rclpy.task.Future:
        """Gives the result as a future that callbacks of the executor can await."""
        future = rclpy.task.Future(executor=executor)

        def tell(done: Future[RunResult]) -> None:
            future.set_result(done.result())
            if executor is not None:
                executor.wake()

        self.result.add_done_callback(tell)
        return future


class RunThread:
    """Runs from its construction until `close`; methods may be called from any thread."""

    def __init__(
        self,
        runner: EpisodeRunner,
        prepare: Callable[[RunRequest], None],
        fault: Callable[[BaseException], None],
    ) -> None:
        """Starts the thread; `prepare` is called before each run, `fault` when the thread ends with an
        error.
        """
        self._runner = runner
        self._prepare = prepare
        self._fault = fault
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()
        self._waiting: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        self.last: RunResult | None = None
        self._thread = threading.Thread(target=self._main, name="episodes", daemon=True)
        self._thread.start()

    def begin(self, request: RunRequest, finished: Callable[[Summary], Any]) -> Run:
        """Starts a run; `finished` is called after every episode, in the run's thread.

        Raises:
            Busy: Another run is on.
        """
        with self._lock:
            if not self._idle.is_set():
                raise Busy("another run of episodes is on; stop it with episodes/stop, or wait for its end")
            self._idle.clear()
            self._runner.controls.cancelled = False
            run = Run(request, finished)
            self._waiting.put(run)
            return run

    @property
    def is_idle(self) -> bool:
        """True when nothing runs."""
        return self._idle.is_set()

    def cancel(self) -> bool:
        """Ends the run at the next opportunity; False when nothing runs."""
        if self._idle.is_set():
            return False
        self._runner.controls.cancelled = True
        self._runner.events.put(Wake())
        return True

    def wait_idle(self, timeout_s: float) -> bool:
        """Waits for the end of the run (steady clock); False if it does not end."""
        return self._idle.wait(timeout_s)

    def close(self) -> None:
        """Ends the run and the thread."""
        self.cancel()
        self._waiting.put(None)
        self._thread.join(10.0)

    def _main(self) -> None:
        while (run := self._waiting.get()) is not None:
            try:
                self._prepare(run.request)
                self.last = self._runner.run(run.request, run.finished)
            except Exception as error:  # noqa: BLE001 handed to the node, which ends with it
                self.last = RunResult(Reason.INTERNAL, message=f"{type(error).__name__}: {error}")
                self._fault(error)
            self._idle.set()
            run.result.set_result(self.last)
