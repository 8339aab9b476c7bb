"""A robot that only remembers, and one control loop in it that tests drive step by step."""

from __future__ import annotations

import numpy as np

from efm_policy_node.loop_ports import ActGoal, ControlStep, Ending, Job, LoopSettings
from efm_policy_node.onnx_policy import Decision
from efm_policy_node.robot_loop import RobotLoop

PERIOD_S = 0.05


class FakeRobot:
    """Ports that remember what a loop did, and clocks that tests set."""

    def __init__(self) -> None:
        self.log: list[tuple[str, object]] = []
        self.jobs: list[Job] = []
        self.ros_ns = 10_000_000_000_000
        self.steady = 100.0

    def send(self, values: np.ndarray, stamp_ns: int) -> None:
        self.log.append(("send", (np.array(values), stamp_ns)))

    def record(self, step: ControlStep) -> None:
        self.log.append(("record", step))

    def request(self, job: Job) -> None:
        self.jobs.append(job)

    def ended(self, ending: Ending) -> None:
        self.log.append(("ended", ending))

    def say(self, text: str) -> None:
        self.log.append(("say", text))

    def of(self, kind: str) -> list:
        return [what for name, what in self.log if name == kind]

    @property
    def sent(self) -> list[tuple[np.ndarray, int]]:
        return self.of("send")

    @property
    def steps(self) -> list[ControlStep]:
        return self.of("record")

    @property
    def endings(self) -> list[Ending]:
        return self.of("ended")

    def wait(self, seconds: float, ros: bool = True) -> None:
        self.steady += seconds
        self.ros_ns += round(seconds * 1e9) if ros else 0


class FakePolicy:
    """Stands for a loaded bundle; the tests decide what it says."""

    id, version = "0123456789abcdef", 3


class Cell:
    """One loop in its fake robot, driven step by step."""

    def __init__(self, robot, embodiment, **settings):
        settings.setdefault("check_period_s", 0.0)
        self.robot, self.embodiment = robot, embodiment
        self.loop = RobotLoop(
            embodiment, LoopSettings(**settings), robot, lambda: robot.ros_ns, lambda: robot.steady
        )
        self.loop.enable()

    def begin(self, **goal):
        self.loop.begin(ActGoal(**{"episode_id": "e", **goal}), FakePolicy())

    def observe(self, stamp_ns=None, state=(0.0, 0.0)):
        """All inputs of one moment; by default of this one."""
        stamp_ns = self.robot.ros_ns if stamp_ns is None else stamp_ns
        image = np.zeros((6, 8, 3), np.uint8)
        if self.embodiment.cameras:
            self.loop.add_image("top", stamp_ns, image)
        self.loop.add_state(stamp_ns, np.array(state))
        return stamp_ns

    def decide(self, *actions, log_prob=-1.0):
        """Answers the newest inference with a chunk of actions."""
        job = self.robot.jobs.pop()
        chunk = np.array(actions, np.float64)
        tokens = np.arange(chunk.size).reshape(chunk.shape)
        self.loop.decided(job, Decision(tokens, np.full(len(chunk), log_prob), chunk, 1.0))
        return job

    def step(self, action=(0.1, 0.1), **seen):
        """A period passes: an observation, a tick, a decision."""
        self.robot.wait(PERIOD_S)
        self.observe(**seen)
        self.loop.tick()
        self.decide(action)
