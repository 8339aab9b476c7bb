"""The thread that does the work: takes the newest observations of all robots, infers them in one batch,
answers.

It waits for the observation topics alone (`efm_ros.intake`), and everything that has come when it wakes up
is answered together, so that robots that are ready together share an inference. For models slower than the
control period a second thread infers, so that commands of a running chunk are not kept waiting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from efm_core.errors import BundleUnusable, EfmError
from efm_policy_node.loop_ports import Job
from efm_policy_node.onnx_policy import OnnxPolicy
from efm_policy_node.robot_loop import RobotLoop
from efm_ros.intake import Intake

LONGEST_WAIT_S = 0.2


class BatchInference:
    """Collects the robots' jobs and runs them together, one batch for each model."""

    def __init__(self, unusable: Callable[[OnnxPolicy, EfmError], None]) -> None:
        """Begins without jobs; `unusable` is told of a model that fails."""
        self._unusable = unusable
        self._lock = threading.Condition()
        self._jobs: list[Job] = []
        self.batches = self.observations = 0

    def add(self, job: Job) -> None:
        """Takes a job, from any thread."""
        with self._lock:
            self._jobs.append(job)
            self._lock.notify_all()

    def wait(self, timeout_s: float) -> None:
        """Waits until there is a job."""
        with self._lock:
            if not self._jobs:
                self._lock.wait(timeout_s)

    @property
    def is_idle(self) -> bool:
        """True when there is no job."""
        return not self._jobs

    def run(self) -> None:
        """Runs what is there now, and tells the loops."""
        with self._lock:
            jobs, self._jobs = self._jobs, []
        by_model: dict[int, list[Job]] = {}
        for job in jobs:
            by_model.setdefault(id(job.policy), []).append(job)
        for group in by_model.values():
            outcomes = group[0].policy.decide([job.request for job in group])
            self.batches += 1
            self.observations += len(group)
            for job, outcome in zip(group, outcomes, strict=True):
                if isinstance(outcome, BundleUnusable):
                    self._unusable(job.policy, outcome)
                job.loop.decided(job, outcome)


class Checks:
    """Calls every loop's `check`, in a thread that neither inference nor the executor can hold up."""

    def __init__(
        self, loops: Sequence[RobotLoop], period_s: float, fail: Callable[[BaseException], None]
    ) -> None:
        """Makes a thread that rests; `fail` is told of an exception in it."""
        self._loops, self._period_s, self._fail = loops, period_s, fail
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def open(self) -> None:
        """Starts."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closing.wait(self._period_s):
                for loop in self._loops:
                    loop.check()
        except Exception as error:  # noqa: BLE001  As in Pilot: the node ends, and holds the robots still.
            self._fail(error)


class Pilot:
    """Runs the loops of all robots. `open` starts its threads, `close` ends them."""

    def __init__(
        self,
        intake: Intake,
        loops: Sequence[RobotLoop],
        inference: BatchInference,
        fail: Callable[[BaseException], None],
        period_s: float | None,
        apart: bool = False,
    ) -> None:
        """Makes a pilot that rests.

        Args:
            intake: The observation topics.
            loops: Of the robots.
            inference: Where their jobs are.
            fail: Told of an exception in a thread, which then ends.
            period_s: Control period on the steady clock [s]; None: others tick, or the world is in
                lockstep.
            apart: Infer in a thread of its own.
        """
        self._intake, self._loops, self._inference = intake, loops, inference
        self._fail, self._period_s, self._apart = fail, period_s, apart
        self._closing = False
        self._threads: list[threading.Thread] = []

    def open(self) -> None:
        """Starts."""
        for work in (self._fly, self._infer) if self._apart else (self._fly,):
            thread = threading.Thread(
                target=self._guarded, args=(work,), name=work.__name__.strip("_"), daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def close(self, timeout_s: float = 2.0) -> None:
        """Ends the threads, after the inference that runs."""
        self._closing = True
        self._intake.wake()
        for thread in self._threads:
            thread.join(timeout_s)
        self._threads.clear()

    def wake(self) -> None:
        """Lets it look for jobs that another thread has added."""
        if threading.current_thread() not in self._threads:
            self._intake.wake()

    def _guarded(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  Whatever it is: the node ends, and holds the robots still.
            self._fail(error)

    def _fly(self) -> None:
        due_s = time.monotonic()
        while not self._closing:
            wait_s = LONGEST_WAIT_S
            if self._period_s is not None:
                wait_s = min(wait_s, max(0.0, due_s - time.monotonic()))
            if not self._apart and not self._inference.is_idle:
                wait_s = 0.0
            self._intake.take(wait_s)
            if self._period_s is not None and (now_s := time.monotonic()) >= due_s:
                # Ticks that are over are not made up for: the loops count them.
                due_s += self._period_s * (int((now_s - due_s) / self._period_s) + 1)
                for loop in self._loops:
                    loop.tick()
            if not self._apart and not self._inference.is_idle:
                self._inference.run()

    def _infer(self) -> None:
        while not self._closing:
            self._inference.wait(LONGEST_WAIT_S)
            self._inference.run()
