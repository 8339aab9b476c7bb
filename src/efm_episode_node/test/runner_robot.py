"""A fake robot for the state machine of episodes, and the stories that it acts: no ROS, no files."""

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from efm_core.errors import Reason, SpoolFull
from efm_core.summary import Mode, Outcome
from efm_episode_node.episode_watch import WatchLimits
from efm_episode_node.ports import RunnerSettings
from efm_episode_node.run_types import (
    ActEnded,
    Judged,
    RunRequest,
    Scene,
    Stepped,
)
from efm_episode_node.runner import EpisodeRunner

PERIOD_NS = 100_000_000
# For tests in which nobody is silent, however slow the machine; IMPATIENT for those about silence.
PATIENT = RunnerSettings(fault_pause_s=0.01, watch=WatchLimits(stall_s=60.0, settle_s=60.0))
IMPATIENT = RunnerSettings(
    ready_s=0.6, cancel_s=0.3, fault_pause_s=0.01, watch=WatchLimits(stall_s=0.6, settle_s=0.6)
)


@dataclass
class FakeRobot:
    """Station, recording and shelf in one: a robot that answers `steps` observations and is then done.

    `script` says what happens in the episode of each attempt, as a function of this fake and the episode's
    id.
    """

    script: list = field(default_factory=list)
    default: object = None
    now_ns: int = 1_000_000_000
    newest: int = 0
    acts: list = field(default_factory=list)
    scenes: list = field(default_factory=list)
    announced: list = field(default_factory=list)
    cancelled: list = field(default_factory=list)
    kept: list = field(default_factory=list)
    aborted: int = 0
    recording: str = ""
    absent: str = ""
    full: str = ""
    reset_error: list = field(default_factory=list)
    finish_error: list = field(default_factory=list)
    quiet_cancel: bool = False
    disk: list | None = None

    # Station
    def missing(self, request):
        return self.absent

    def reset(self, seed, instruction):
        if self.reset_error:
            raise self.reset_error.pop(0)
        self.now_ns += PERIOD_NS
        self.newest = self.now_ns
        self.scenes.append((seed, instruction))
        return Scene(self.now_ns, seed or 77, instruction or "reach the goal")

    def announce(self, episode_id, instruction, start_ns):
        self.announced.append(episode_id)

    def act(self, request):
        self.acts.append(request)
        ticket = len(self.acts)
        story = self.script.pop(0) if self.script else self.default
        story(self, request, ticket)
        return ticket

    def cancel_act(self, ticket):
        self.cancelled.append(ticket)
        if not self.quiet_cancel:
            self.runner.events.put(ActEnded(ticket, Reason.CANCELLED, bundle_id="b1", version=4))

    # Recording
    def begin(self, episode_id, start_ns, mode):
        self.recording = episode_id

    def newest_ns(self):
        return self.newest

    def finish(self, summary):
        self.recording = ""
        closing = Future()
        if self.finish_error:
            closing.set_exception(self.finish_error.pop(0))
        elif self.disk is None:
            closing.set_result(Path(summary.episode_id))
        else:
            self.disk.append(closing)
        return closing

    def abort(self):
        self.aborted += bool(self.recording)
        self.recording = ""

    # Shelf
    def require_space(self, mode):
        if self.full:
            raise SpoolFull(self.full)

    def keep(self, summary, folder):
        self.kept.append(summary)

    # What stories are made of
    def step(self, request, judged=None, held=0, success=False, answer=True):
        self.runner.events.put(Stepped(self.now_ns, request.episode_id, "b1"))
        if judged is not None:
            self.judge(request, judged, held, success)
        self.now_ns += PERIOD_NS
        if answer:
            self.newest = self.now_ns

    def judge(self, request, judged, held=0, success=False):
        self.runner.events.put(Judged(self.now_ns, request.episode_id, "r1", judged, held, success))


def done(steps, outcome=Outcome.SUCCESS):
    """The actor takes some steps and claims an outcome."""

    def story(robot, request, ticket):
        for _ in range(steps):
            robot.step(request)
        robot.runner.events.put(ActEnded(ticket, Reason.OK, outcome, steps))

    return story


def detected(after, judged=1.0, held=1, overrun=3):
    """The detector fires at observation `after`; the actor runs on until it is cancelled."""

    def story(robot, request, ticket):
        for index in range(after):
            robot.step(request, judged=20.0 - index)
        robot.step(request, judged=judged, held=held, success=True)
        for _ in range(overrun):
            robot.step(request, judged=judged, held=held, success=True)

    return story


def ends(reason, message=""):
    return lambda robot, request, ticket: robot.runner.events.put(ActEnded(ticket, reason, message=message))


def says(*events):
    """Three steps, then the given events."""

    def story(robot, request, ticket):
        for _ in range(3):
            robot.step(request)
        for event in events:
            robot.runner.events.put(event)

    return story


def silent(robot, request, ticket):
    """Nothing ever happens."""


def make(settings=PATIENT, **options):
    """Returns a robot with a runner."""
    robot = FakeRobot(**options)
    told = []
    robot.runner = EpisodeRunner(
        robot, robot, robot, settings, told.append, "robot_1", np.random.default_rng(1)
    )
    robot.told = told
    robot.finished = []
    return robot


def run(robot, mode=Mode.COLLECT, actor=None, episodes=1, max_steps=10, **options):
    actor = actor or ("expert" if mode is Mode.COLLECT else "policy")
    request = RunRequest(mode=mode, actor=actor, episodes=episodes, max_steps=max_steps, **options)
    return robot.runner.run(request, robot.finished.append)


def in_background(robot, **options):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(robot, **options)), daemon=True)
    thread.start()

    def result():
        thread.join(30)
        assert not thread.is_alive(), "the run did not end"
        return results[0]

    return result


def until(condition, what):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)
