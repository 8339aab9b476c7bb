"""The learner behind ROS: takes episodes, practises in a thread of its own, announces bundles.

Callbacks only move bytes; episodes wait as folders on disk until the practice thread takes them, and whatever a
crash leaves there is taken at the next start. What is learned is decided in `practice_run.py`.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from pathlib import Path
from typing import Any

import torch
from rclpy.clock import Clock
from rclpy.clock_type import ClockType

from efm_core.bundle import load_bundle
from efm_core.errors import EfmError, EpisodeDuplicate
from efm_learner.guard import GuardSettings
from efm_learner.practice import PracticeSettings
from efm_learner.practice_run import PracticeRun, RunSettings, Step
from efm_msgs.msg import LearnerStatus
from efm_ros.lifecycle import OK, WARN, EfmLifecycleNode, NodeParameters
from efm_ros.parameters import param
from efm_ros.qos import LATCHED
from efm_ros.transfer_server import BundleServer, EpisodeReceiver

STATUS_PERIOD_S = 1.0
# Fresh decisions, in iterations, at which robots are asked to pause: learning cannot keep up.
FULL_ITERATIONS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerParameters(NodeParameters):
    """Parameters of the learner; the settings of practice are those of `PracticeSettings` and `GuardSettings`."""

    run: str = param(description="Folder of the practice run; resumed where it exists.")
    policy: str = param(description="Folder of the Stage-1 policy bundle.")
    reward: str = param(description="Folder of the frozen reward bundle.")
    verifier: str = param(
        "", description="Folder of a reward bundle trained apart, for the guard. Empty: none."
    )
    iterations: int = param(0, description="Iterations after which the run ends. 0: no limit.", low=0)
    episodes: int = param(0, description="Episodes after which the run ends. 0: no limit.", low=0)
    threads: int = param(1, description="CPU threads of torch.", low=1, high=256)
    gamma: float = param(0.9, description="Discount per decision.", low=0.0, high=1.0)
    c: float = param(0.05, description="Factor of the loss.", low=0.0)
    updates: int = param(16, description="Gradient steps per iteration.", low=1)
    batch: int = param(64, description="Decisions per gradient step.", low=1)
    learning_rate: float = param(3e-4, description="Of AdamW.", low=0.0)
    freeze_encoder: bool = param(True, description="Keep the image encoder as Stage 1 left it.")
    normalise_advantages: bool = param(False, description="Shift and scale returns to mean 0, deviation 1.")
    epochs: int = param(
        1, description="Times that each decision is used; above 1 with a clipped ratio.", low=1
    )
    kl_anchor: float = param(0.0, description="Weight of the KL divergence from the Stage-1 policy.", low=0.0)
    entropy_bonus: float = param(0.0, description="Weight of the policy's entropy.", low=0.0)
    max_staleness: int = param(1, description="Versions that an episode's policy may be old.", low=0)
    seed: int = param(0, description="Of the minibatch order.", low=0)
    guard: bool = param(
        True, description="Stop and go back to the best bundle when practice passes its peak."
    )

    def run_settings(self) -> RunSettings:
        """Returns the settings of the run."""
        names = {field.name for field in dataclasses.fields(PracticeSettings)}
        practice = {name: value for name, value in dataclasses.asdict(self).items() if name in names}
        guard = GuardSettings(enabled=self.guard)
        return RunSettings(PracticeSettings(**practice), guard, self.iterations, self.episodes)


class LearnerNode(EfmLifecycleNode):
    """Serves `submit_episode` and `get_bundle`, publishes `models` and `learner_status`."""

    Parameters = LearnerParameters
    parameters: LearnerParameters

    def __init__(self, **options: Any) -> None:
        super().__init__("learner", **options)
        self._run: PracticeRun | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._arrived: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._phase = LearnerStatus.PHASE_WAITING
        self._last: Step | None = None
        self._began = self._idle = 0.0
        self._status_lock = threading.Lock()

    def acquire(self) -> None:
        chosen = self.parameters
        torch.set_num_threads(chosen.threads)
        verifier = load_bundle(chosen.verifier) if chosen.verifier else None
        self._run = PracticeRun(
            chosen.run,
            load_bundle(chosen.policy),
            load_bundle(chosen.reward),
            verifier,
            chosen.run_settings(),
        )
        self._status = self.create_publisher(LearnerStatus, "learner_status", LATCHED)
        self._bundles = BundleServer(self, self._run.folder / "bundles")
        self._receiver = EpisodeReceiver(
            self, self._run.folder / "episodes", self._arrive, accepting=self._accepting
        )
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(STATUS_PERIOD_S, self._publish, clock=steady)
        for path in self._run.unseen():
            self._arrived.put(path)

    def start(self) -> None:
        assert self._run is not None
        self._stopping.clear()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._practise, name="practice", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Lets the running iteration come to its end; everything else waits on disk."""
        self._stopping.set()
        self._arrived.put(None)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def release(self) -> None:
        self._run = None

    def update_diagnostics(self) -> None:
        run = self._run
        if run is None:
            return
        level = WARN if run.message else OK
        self.diagnose(
            "practice",
            level,
            run.message or "practising",
            iteration=run.trainer.iteration,
            bundle=run.bundle.id,
            episodes=run.episodes_taken,
            refused=run.episodes_refused,
            buffered=run.buffered,
            idle_share=self._idle_share(),
        )

    # -- callbacks --------------------------------------------------------------------------------------------

    def _arrive(self, folder: Path, robot: str) -> None:
        self.get_logger().debug(f"{robot or 'the robot'} handed over {folder.name}")
        self._arrived.put(folder)

    def _accepting(self) -> bool:
        run = self._run
        return (
            run is not None
            and not run.stopped
            and run.buffered < FULL_ITERATIONS * run.settings.practice.decisions
        )

    # -- practice thread --------------------------------------------------------------------------------------

    def _practise(self) -> None:
        run = self._run
        assert run is not None
        try:
            self._bundles.announce(run.bundle)
            while not self._stopping.is_set():
                waited = time.monotonic()
                path = self._arrived.get()
                self._idle += time.monotonic() - waited
                if path is not None:
                    self._ingest(run, path)
                if run.ready and not self._stopping.is_set():
                    self._iterate(run)
        except Exception as error:  # noqa: BLE001 - the node must end in order and say why
            self._phase = LearnerStatus.PHASE_FAULT
            self.fail(error)

    def _ingest(self, run: PracticeRun, path: Path) -> None:
        try:
            run.ingest(path)
        except EpisodeDuplicate:
            pass
        except EfmError as error:
            self.get_logger().warning(f"refused: {error}")
        self._publish()

    def _iterate(self, run: PracticeRun) -> None:
        self._set_phase(LearnerStatus.PHASE_UPDATING)
        began = time.monotonic()
        self._last = step = run.advance()
        self._set_phase(LearnerStatus.PHASE_EXPORTING)
        self._bundles.announce(step.bundle)
        report = step.report
        self.get_logger().info(
            f"iteration {report.iteration}: {report.episodes} episodes of {report.mean_steps:.1f} steps, detected "
            f"{report.detected:.2f}, verified {report.verified:.2f}, return {report.mean_return:.2f}, "
            f"KL {report.kl:.3f}, bundle {step.bundle.id} in {time.monotonic() - began:.2f} s"
        )
        if run.message:
            self.get_logger().warning(run.message)
        self._set_phase(LearnerStatus.PHASE_STOPPED if run.stopped else LearnerStatus.PHASE_WAITING)

    # -- status -----------------------------------------------------------------------------------------------

    def _set_phase(self, phase: int) -> None:
        self._phase = phase
        self._publish()

    def _idle_share(self) -> float:
        return self._idle / max(1e-9, time.monotonic() - self._began) if self._began else 0.0

    def _publish(self) -> None:
        run = self._run
        if run is None:
            return
        with self._status_lock:
            message = LearnerStatus(
                phase=LearnerStatus.PHASE_STOPPED if run.stopped else self._phase,
                accepting=self._accepting(),
                iteration=run.trainer.iteration,
                updates=run.trainer.updates,
                bundle_id=run.bundle.id,
                version=run.version,
                best_bundle_id=run.best.id,
                episodes=run.episodes_taken,
                steps=run.steps_taken,
                refused=run.episodes_refused,
                buffered_steps=run.buffered,
                wanted_steps=run.settings.practice.decisions,
                mean_return=float("nan"),
                kl=float("nan"),
                idle_share=self._idle_share(),
                guard=run.message,
                message=run.message,
            )
            if self._last is not None:
                report = self._last.report
                message.mean_return, message.kl = report.mean_return, report.kl
                message.detected_success, message.mean_steps = report.detected, report.mean_steps
            message.header.stamp = self.get_clock().now().to_msg()
            self._status.publish(message)
