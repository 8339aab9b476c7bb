"""The learner behind ROS: takes episodes, practises in a thread of its own, announces bundles.

Callbacks only move bytes; episodes wait as folders on disk until the practice thread takes them, and whatever
a crash leaves there is taken at the next start. On a full disk the learner pauses the robots, and goes on
from its last checkpoint when there is space again. What is learned is decided in `practice_run.py`.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rclpy.clock import Clock
from rclpy.clock_type import ClockType

from efm_core.bundle import load_bundle
from efm_core.errors import EfmError, SpoolFull
from efm_learner.export import OnnxExporter
from efm_learner.guard import GuardSettings
from efm_learner.practice import Cancelled, PracticeSettings
from efm_learner.practice_run import PracticeRun, RunSettings, Step
from efm_msgs.msg import LearnerStatus
from efm_ros.lifecycle import OK, WARN, EfmLifecycleNode, NodeParameters
from efm_ros.parameters import param
from efm_ros.qos import LATCHED
from efm_ros.transfer_server import BundleServer, EpisodeReceiver

STATUS_PERIOD_S = 1.0
RETRY_S = 5.0  # Between attempts to go on after the disk was full.
# Fresh decisions, in iterations, at which robots are asked to pause: learning cannot keep up.
FULL_ITERATIONS = 2.0

_PRACTICE, _GUARD = PracticeSettings(), GuardSettings()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerParameters(NodeParameters):
    """Those of `PracticeSettings` have its names, those of `GuardSettings` begin with `guard_`."""

    run: str = param(description="Folder of the practice run; resumed where it exists.")
    policy: str = param(description="Folder of the Stage-1 policy bundle.")
    reward: str = param(description="Folder of the frozen reward bundle.")
    verifier: str = param(
        "", description="Folder of a reward bundle trained apart, for the guard. Empty: none."
    )
    iterations: int = param(0, description="Iterations after which the run ends. 0: no limit.", low=0)
    episodes: int = param(0, description="Episodes after which the run ends. 0: no limit.", low=0)
    threads: int = param(1, description="CPU threads of torch.", low=1, high=256)
    device: str = param(
        "cpu", description="Where torch learns; auto: on a GPU where there is one.", choices=("cpu", "auto")
    )

    gamma: float = param(_PRACTICE.gamma, description="Discount per decision.", low=0.0, high=1.0)
    c: float = param(_PRACTICE.c, description="Factor of the loss.", low=0.0)
    updates: int = param(_PRACTICE.updates, description="Gradient steps per iteration.", low=1)
    batch: int = param(_PRACTICE.batch, description="Decisions per gradient step.", low=1)
    learning_rate: float = param(_PRACTICE.learning_rate, description="Of AdamW.", low=0.0)
    weight_decay: float = param(_PRACTICE.weight_decay, description="Of AdamW.", low=0.0)
    gradient_norm: float = param(
        _PRACTICE.gradient_norm, description="Greatest norm of a gradient; 0: no limit.", low=0.0
    )
    freeze_encoder: bool = param(
        _PRACTICE.freeze_encoder, description="Keep the image encoder as Stage 1 left it."
    )
    normalise_advantages: bool = param(
        _PRACTICE.normalise_advantages, description="Shift and scale returns to mean 0, deviation 1."
    )
    epochs: int = param(
        _PRACTICE.epochs, description="Times that each decision is used; above 1 with a clipped ratio.", low=1
    )
    clip: float = param(_PRACTICE.clip, description="Clip range of that ratio.", low=0.0, high=1.0)
    kl_anchor: float = param(
        _PRACTICE.kl_anchor, description="Weight of the KL divergence from the Stage-1 policy.", low=0.0
    )
    entropy_bonus: float = param(
        _PRACTICE.entropy_bonus, description="Weight of the policy's entropy.", low=0.0
    )
    max_staleness: int = param(
        _PRACTICE.max_staleness, description="Versions that an episode's policy may be old.", low=0
    )
    seed: int = param(_PRACTICE.seed, description="Of the minibatch order.", low=0)

    guard: bool = param(
        _GUARD.enabled, description="Stop and go back to the best bundle when practice passes its peak."
    )
    guard_window: int = param(_GUARD.window, description="Episodes judged together, at least.", low=1)
    guard_significance: float = param(
        _GUARD.significance, description="Fall of good episodes that stops, in standard deviations.", low=0.0
    )
    guard_instant_steps: int = param(
        _GUARD.instant_steps,
        description="Success so soon after the reset, beyond the detector's hold, is not believed.",
        unit="control steps",
        low=0,
    )
    guard_instant_window: int = param(
        _GUARD.instant_window, description="Newest episodes looked at for such successes.", low=1
    )
    guard_instant_share: float = param(
        _GUARD.instant_share, description="Share of them that stops at once.", low=0.0, high=1.0
    )
    guard_slack: float = param(
        _GUARD.slack,
        description="Above its own threshold, the verifier still agrees.",
        unit="control steps",
        low=0.0,
    )
    guard_kl_limit: float = param(
        _GUARD.kl_limit, description="KL from Stage 1 that stops; 0: no limit.", unit="nats", low=0.0
    )

    def __post_init__(self) -> None:
        self.run_settings()

    def run_settings(self) -> RunSettings:
        """Returns the settings of the run.

        Raises:
            BadRequest: One of them is out of range.
        """
        values = dataclasses.asdict(self)
        practice = {field.name: values[field.name] for field in dataclasses.fields(PracticeSettings)}
        guard = {
            field.name: values[f"guard_{field.name}"]
            for field in dataclasses.fields(GuardSettings)
            if field.name != "enabled"
        }
        return RunSettings(
            PracticeSettings(**practice),
            GuardSettings(enabled=self.guard, **guard),
            self.iterations,
            self.episodes,
        )


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
        self._run: PracticeRun | None = None
        self._exporter = OnnxExporter("policy")  # Kept over every opening of the run: tracing takes seconds.
        self._opened: list[Callable[[], object]] = []  # What gives each opened thing back, oldest first.
        self._thread: threading.Thread | None = None
        self._stopping, self._wake = threading.Event(), threading.Event()
        # What the practice thread says and the callbacks pass on.
        self._lock = threading.Lock()
        self._told = LearnerStatus(phase=LearnerStatus.PHASE_WAITING, mean_return=math.nan, kl=math.nan)
        self._last: Step | None = None
        self._announced, self._resting = "", False
        # Episodes on disk that were not taken in yet, and how many decisions one of them has, roughly.
        self._arriving, self._decisions_each = 0, 1.0
        self._began = self._idle_s = 0.0
        self._idle_since: float | None = None

    def acquire(self) -> None:
        """Opens the run, so that whatever is wrong with it refuses the start, and the services."""
        torch.set_num_threads(self.parameters.threads)
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
        if run.message:
            self.get_logger().warning(run.message)

    def start(self) -> None:
        """Begins to practise."""
        self._stopping.clear()
        self._began, self._idle_s, self._idle_since = time.monotonic(), 0.0, None
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
        """Tells how practice goes."""
        with self._lock:
            told = self._told
            self.diagnose(
                "practice",
                WARN if told.message else OK,
                told.message or "practising",
                iteration=told.iteration,
                bundle=told.bundle_id,
                episodes=told.episodes,
                refused=told.refused,
                buffered=told.buffered_steps,
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
        self._resting = False
        run.prepare()
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
                self._idle_s += time.monotonic() - self._idle_since
                self._idle_since = None

    def _ingest(self, run: PracticeRun, path: Path) -> None:
        with self._lock:
            self._arriving = max(0, self._arriving - 1)
        try:
            run.ingest(path)
        except SpoolFull:
            raise
        except EfmError as error:
            self.get_logger().warning(f"refused: {error}")
        self._announce(run)  # The guard may have stopped the run.
        self._tell(LearnerStatus.PHASE_WAITING)

    def _iterate(self, run: PracticeRun) -> None:
        self._tell(LearnerStatus.PHASE_UPDATING)
        began = time.monotonic()
        self._last = step = run.advance(self._stopping.is_set)
        self._tell(LearnerStatus.PHASE_EXPORTING)
        self._announce(run)
        report = step.report
        verified = "" if report.verified is None else f", verified {report.verified:.2f}"
        self.get_logger().info(
            f"iteration {report.iteration}: {report.episodes} episodes of {step.control_steps:.1f} steps, "
            f"detected {report.detected:.2f}{verified}, return {report.mean_return:.2f}, KL {report.kl:.3f}, "
            f"bundle {step.bundle.id} in {time.monotonic() - began:.2f} s"
        )
        if run.alarm:
            self.get_logger().warning(run.alarm)

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
