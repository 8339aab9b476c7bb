"""The learner behind ROS: takes episodes, practises in a thread of its own, announces bundles.

Callbacks only move bytes; episodes wait as folders on disk until the practice thread takes them, and whatever
a crash leaves there is taken at the next start. On a full disk the learner pauses the robots, and goes on
from its last checkpoint when there is space again. What is learned is decided in `practice_run.py`.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rclpy.clock import Clock
from rclpy.clock_type import ClockType

from efm_core.bundle import load_bundle
from efm_core.errors import EfmError, SpoolFull
from efm_learner.export import OnnxExporter
from efm_learner.learner_parameters import LearnerParameters
from efm_learner.practice import Cancelled
from efm_learner.practice_run import PracticeRun, Step
from efm_msgs.msg import LearnerStatus
from efm_ros.lifecycle import OK, WARN, EfmLifecycleNode
from efm_ros.qos import LATCHED
from efm_ros.transfer_server import BundleServer, EpisodeReceiver

STATUS_PERIOD_S = 1.0
RETRY_S = 5.0  # Between attempts to go on after the disk was full.
# Fresh decisions, in iterations, at which robots are asked to pause: learning cannot keep up.
FULL_ITERATIONS = 2.0
LITTLE_BYTES = 2 << 30  # On the run's disk; with less it is told of.


class LearnerNode(EfmLifecycleNode):
    """Serves `submit_episode` and `get_bundle`, publishes `models` and `learner_status`."""

    Parameters = LearnerParameters
    parameters: LearnerParameters

    def __init__(self, **options: Any) -> None:
        """Makes the node; `acquire` opens the run.

        Args:
            options: Of `EfmLifecycleNode`.
        """
        super().__init__("learner", **options)
        self.opening = False  # Whether the run is being opened or made ready.
        self._run: PracticeRun | None = None
        self._exporter = OnnxExporter("policy")  # Kept over every opening of the run: tracing takes seconds.
        self._opened: list[Callable[[], object]] = []  # What gives each opened thing back, oldest first.
        self._thread: threading.Thread | None = None
        self._stopping, self._wake = threading.Event(), threading.Event()
        # What the practice thread says and the callbacks pass on.
        self._lock = threading.Lock()
        self._told = LearnerStatus(phase=LearnerStatus.PHASE_WAITING, mean_return=math.nan, kl=math.nan)
        self._last: Step | None = None
        self._announced, self._alarm, self._resting = "", "", False
        # Episodes on disk that were not taken in yet, and how many decisions one of them has, roughly.
        self._arriving, self._decisions_each = 0, 1.0
        self._began = self._idle_s = self._iterated = 0.0
        self._idle_since: float | None = None
        self._spent = {"idle_s": 0.0, "ingest_s": 0.0}  # Since the last iteration.

    def acquire(self) -> None:
        """Opens the run, so that whatever is wrong with it refuses the start, and the services."""
        torch.set_num_threads(self.parameters.threads)
        with self._leaving_early():
            self._run = run = self._open()
        self._announced, self._arriving = "", len(run.unseen())
        self._decisions_each = float(run.embodiment.max_steps)
        self._status = self.create_publisher(LearnerStatus, "learner_status", LATCHED)
        self._opened.append(lambda: self.destroy_publisher(self._status))
        self._bundles = bundles = BundleServer(self, run.folder.bundles)
        self._opened.append(lambda: self.destroy_publisher(bundles.publisher))
        self._opened.append(lambda: self.destroy_service(bundles.service))
        receiver = EpisodeReceiver(self, run.folder.episodes, self._arrive, self._has_room)
        self._opened.append(lambda: self.destroy_service(receiver.service))
        timer = self.create_timer(
            STATUS_PERIOD_S, self._publish, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        self._opened.append(lambda: self.destroy_timer(timer))
        self._tell(LearnerStatus.PHASE_WAITING)
        self._warn_of(run)

    def start(self) -> None:
        """Begins to practise."""
        self._stopping.clear()
        self._began = self._iterated = time.monotonic()
        self._idle_s, self._idle_since = 0.0, None
        self._thread = threading.Thread(target=self._practise, name="practice", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Gives a running iteration up between two updates; a later start learns from its episodes."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def release(self) -> None:
        """Gives the run's folder and the services back."""
        self._close_run()
        while self._opened:
            self._opened.pop()()

    def update_diagnostics(self) -> None:
        """Tells how practice goes, and what room it has."""
        folder = Path(self.parameters.run)
        if folder.is_dir():
            free = shutil.disk_usage(folder).free
            words = f"{free / (1 << 30):.1f} GB free for the run"
            self.diagnose("disk", WARN if free < LITTLE_BYTES else OK, words, free_bytes=free)
        with self._lock:
            told = self._told
            self.diagnose(
                "practice",
                WARN if told.message or told.guard else OK,
                told.message or told.guard or "practising",
                iteration=told.iteration,
                bundle=told.bundle_id,
                episodes=told.episodes,
                refused=told.refused,
                buffered=told.buffered_steps,
                wanted=told.wanted_steps,
                mean_return=told.mean_return,
                detected_success=told.detected_success,
                kl=told.kl,
                idle_share=self._idle_share(),
            )

    # Callbacks

    def _arrive(self, folder: Path, robot: str) -> None:
        self.get_logger().debug(f"{robot or 'the robot'} handed over {folder.name}")
        with self._lock:
            self._arriving += 1
        self._wake.set()

    def _has_room(self) -> bool:
        """Whether another episode would not come in vain; a run that is over takes what robots still have."""
        told = self._told
        if told.phase == LearnerStatus.PHASE_STOPPED:
            return True
        waiting = told.buffered_steps + self._arriving * self._decisions_each
        return not self._resting and waiting < FULL_ITERATIONS * told.wanted_steps

    def _publish(self) -> None:
        with self._lock:
            stopped = self._told.phase in (LearnerStatus.PHASE_STOPPED, LearnerStatus.PHASE_FAULT)
            self._told.accepting = not stopped and self._has_room()
            self._told.header.stamp = self.get_clock().now().to_msg()
            self._told.idle_share = self._idle_share()
            self._status.publish(self._told)

    def _idle_share(self) -> float:
        if not self._began:
            return 0.0
        now = time.monotonic()
        waiting = 0.0 if self._idle_since is None else now - self._idle_since
        return (self._idle_s + waiting) / max(1e-9, now - self._began)

    # Practice thread

    @contextmanager
    def _leaving_early(self) -> Iterator[None]:
        """Around what nothing can interrupt: the process, told to stop, does not wait for it."""
        self.opening = True
        try:
            yield
        finally:
            self.opening = False

    def _open(self) -> PracticeRun:
        chosen = self.parameters
        device = "cuda" if chosen.device == "auto" and torch.cuda.is_available() else "cpu"
        return PracticeRun(
            chosen.run,
            load_bundle(chosen.policy),
            load_bundle(chosen.reward),
            load_bundle(chosen.verifier) if chosen.verifier else None,
            chosen.run_settings(),
            device,
            self._exporter,
        )

    def _practise(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self._run = self._run or self._open()
                    self._go_on(self._run)
                except SpoolFull as error:
                    self._rest(error)
        except Cancelled:
            self._close_run()  # What is in memory is between two versions; `start` opens the run anew.
        except Exception as error:  # noqa: BLE001 - the node must end in order and say why
            self._say(LearnerStatus.PHASE_FAULT, str(error))
            self.fail(error)

    def _go_on(self, run: PracticeRun) -> None:
        """Takes what arrives and learns from it, until the node stops."""
        self._announce(run)
        self._resting = True  # What robots do meanwhile would be old before it is learned from.
        self._say(LearnerStatus.PHASE_WAITING, "the learner gets ready")
        with self._leaving_early():
            run.prepare()
        self._resting = False
        self._tell(LearnerStatus.PHASE_WAITING)
        while not self._stopping.is_set():
            self._wake.clear()
            arrived = run.unseen()
            self._arriving = len(arrived)
            for path in arrived:
                if run.stopped or run.ready or self._stopping.is_set():
                    break
                self._ingest(run, path)
            if run.ready:
                self._iterate(run)
            elif not self._wake.is_set():
                self._tell(LearnerStatus.PHASE_WAITING)
                self._idle_since = time.monotonic()
                self._wake.wait()
                waited = time.monotonic() - self._idle_since
                self._idle_s, self._idle_since = self._idle_s + waited, None
                self._spent["idle_s"] += waited

    def _ingest(self, run: PracticeRun, path: Path) -> None:
        with self._lock:
            self._arriving = max(0, self._arriving - 1)
        began = time.monotonic()
        try:
            run.ingest(path)
        except SpoolFull:
            raise
        except EfmError as error:
            self.get_logger().warning(f"refused: {error}")
        self._spent["ingest_s"] += time.monotonic() - began
        self._announce(run)  # The guard may have stopped the run.
        self._tell(LearnerStatus.PHASE_WAITING)

    def _iterate(self, run: PracticeRun) -> None:
        self._tell(LearnerStatus.PHASE_UPDATING)
        began = time.monotonic()
        times = {**self._spent, "collect_s": began - self._iterated}
        self._last = step = run.advance(self._stopping.is_set, times)
        self._spent, self._iterated = dict.fromkeys(self._spent, 0.0), time.monotonic()
        self._tell(LearnerStatus.PHASE_EXPORTING)
        self._announce(run)
        report = step.report
        verified = "" if report.verified is None else f", verified {report.verified:.2f}"
        self.get_logger().info(
            f"iteration {report.iteration}: {report.episodes} episodes of {step.control_steps:.1f} steps, "
            f"detected {report.detected:.2f}{verified}, return {report.mean_return:.2f}, KL {report.kl:.3f}, "
            f"bundle {step.bundle.id} in {time.monotonic() - began:.2f} s"
        )
        self._warn_of(run)

    def _warn_of(self, run: PracticeRun) -> None:
        """Logs what the guard says, once."""
        if run.alarm != self._alarm:
            self._alarm = run.alarm
            self.get_logger().warning(run.alarm or "the guard has no doubt any more")

    def _announce(self, run: PracticeRun) -> None:
        if run.bundle.id != self._announced:
            self._bundles.announce(run.bundle)
            self._announced = run.bundle.id

    def _rest(self, error: SpoolFull) -> None:
        """Waits for space on the disk; the run goes on from its last checkpoint."""
        self.get_logger().error(f"{error}; practice rests and looks again every {RETRY_S:g} s")
        self._resting = True
        self._say(LearnerStatus.PHASE_WAITING, str(error))
        self._close_run()
        self._stopping.wait(RETRY_S)

    def _close_run(self) -> None:
        if self._run is not None:
            self._run.close()
            self._run = None

    # What is told

    def _say(self, phase: int, message: str) -> None:
        """Publishes that the learner cannot go on; the figures stay as they were."""
        with self._lock:
            self._told.phase, self._told.message = phase, message
        self._publish()

    def _tell(self, phase: int) -> None:
        """Publishes where the run stands."""
        run = self._run
        assert run is not None
        if run.episodes_taken:
            self._decisions_each = run.steps_taken / run.episodes_taken
        told = self._status_of(run)
        told.phase = LearnerStatus.PHASE_STOPPED if run.stopped else phase
        with self._lock:
            self._told = told
        self._publish()

    def _status_of(self, run: PracticeRun) -> LearnerStatus:
        told = LearnerStatus(
            iteration=run.trainer.iteration,
            updates=run.trainer.updates,
            bundle_id=run.bundle.id,
            version=run.version,
            best_bundle_id=run.best_id,
            episodes=run.episodes_taken,
            steps=run.steps_taken,
            refused=run.episodes_refused,
            buffered_steps=run.buffered,
            wanted_steps=run.settings.practice.decisions,
            mean_return=math.nan,
            kl=math.nan,
            guard=run.alarm,
            message=run.message,
        )
        if self._last is not None:
            report = self._last.report
            told.mean_return, told.kl = report.mean_return, report.kl
            told.detected_success, told.mean_steps = report.detected, self._last.control_steps
        return told
