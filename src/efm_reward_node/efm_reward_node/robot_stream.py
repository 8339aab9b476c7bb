"""What one robot shows, turned into observations to judge; and judgements, turned into reward and success.

No ROS and no threads in here: whoever feeds it holds a lock. An episode begins with an `Instruction` that
names the stamp of its first observation. That observation, and some after it, may have come before the
instruction did, so the newest inputs are kept and replayed when an episode begins. In lockstep every
observation becomes a task; live, one per control period does, and a newer one replaces one that still waits.
Left out: inference.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from efm_core.embodiment import Embodiment
from efm_core.image import prepare_image
from efm_core.observation import Observation, ObservationAssembler
from efm_core.reward import SuccessDetector
from efm_reward_node.reward_model import Judgement, RewardModel

SECOND_NS = 1_000_000_000
# Of every input, how many are kept for an instruction that comes late. A world in lockstep that does 300
# steps a second fills them in 0.2 s.
KEPT_INPUTS = 64
# Live, an observation is due when this share of a control period has passed: stamps jitter.
DUE_SHARE = 0.8


@dataclass(eq=False)
class Course:
    """One episode of one robot as far as it is judged.

    Attributes:
        episode_id: Its id.
        instruction: To judge by.
        model: Judges the whole episode; a new bundle waits for the next.
        detector: Sees success.
        last: d of the newest judged observation; NaN before the first.
        judged: Observations judged.
    """

    episode_id: str
    instruction: str
    model: RewardModel
    detector: SuccessDetector
    last: float = math.nan
    judged: int = 0

    def take(self, judgement: Judgement) -> float:
        """Takes the next observation's judgement; gives the reward, NaN for the first."""
        reward = self.last - judgement.expectation
        self.last = judgement.expectation
        self.judged += 1
        self.detector.update(judgement.expectation)
        return reward


@dataclass(frozen=True, eq=False)
class Task:
    """An observation to be judged.

    Attributes:
        course: Episode that it belongs to.
        arrived_s: When its last input arrived, steady clock [s].
    """

    course: Course
    observation: Observation
    arrived_s: float


@dataclass(frozen=True, eq=False)
class _Input:
    """An image of a camera, or a state (camera None)."""

    camera: str | None
    stamp_ns: int
    value: np.ndarray


class RobotStream:
    """The inputs, the episode and the waiting tasks of one robot."""

    def __init__(
        self,
        embodiment: Embodiment,
        lockstep: bool,
        queue: int,
        ros_now_ns: Callable[[], int],
        steady_s: Callable[[], float],
    ) -> None:
        """Begins without an episode.

        Args:
            embodiment: Of the robot.
            lockstep: Every observation counts; else the newest does.
            queue: Observations that may wait in lockstep; the oldest goes when one more comes.
            ros_now_ns: The robot's clock [ns].
            steady_s: A clock that neither jumps nor stands still [s].
        """
        self._embodiment = embodiment
        self._lockstep = lockstep
        self._period_ns = SECOND_NS / embodiment.control_rate_hz
        self._ros_now_ns, self._steady_s = ros_now_ns, steady_s
        self._assembler = ObservationAssembler(embodiment)
        self._kept: dict[str | None, deque[_Input]] = {}
        self._waiting: deque[Task] = deque(maxlen=queue if lockstep else 1)
        self._last_ns: int | None = None  # Stamp of the newest observation that became a task.
        self._newest_ns = 0  # Stamp of the newest image; of the newest state where there are no cameras.
        self.course: Course | None = None
        self.missed = 0  # Observations that went unjudged, since the start.

    def begin(self, course: Course, start_ns: int) -> None:
        """Begins an episode with the observation of the stamp `start_ns`; what came since is replayed."""
        self.course = course
        self._last_ns = None
        self._assembler = ObservationAssembler(self._embodiment)
        self._assembler.start(start_ns)
        kept = [item for items in self._kept.values() for item in items if item.stamp_ns >= start_ns]
        for item in sorted(kept, key=lambda item: item.stamp_ns):
            self._add(item)

    def end(self) -> None:
        """Ends the episode; its observations that wait are still judged."""
        self.course = None

    def add_image(self, camera: str, stamp_ns: int, image: np.ndarray) -> None:
        """Takes an image uint8 [H, W, 3] RGB; raises ObservationInvalid."""
        wanted = self._embodiment.camera(camera)
        self._take(_Input(camera, stamp_ns, prepare_image(image, wanted.height, wanted.width)))

    def add_state(self, stamp_ns: int, values: np.ndarray) -> None:
        """Takes a state [S]; raises ObservationInvalid."""
        self._take(_Input(None, stamp_ns, values))

    def pop(self) -> Task | None:
        """Gives the oldest waiting task."""
        return self._waiting.popleft() if self._waiting else None

    @property
    def waiting(self) -> int:
        """Tasks that wait."""
        return len(self._waiting)

    @property
    def newest_ns(self) -> int | None:
        """Stamp of the newest observation of this episode; None before the first."""
        return self._last_ns

    def why_nothing_new(self) -> str:
        """Says which input is missing or too old for another observation; empty: none is."""
        return self._assembler.why_not_ready(self._ros_now_ns(), self._lockstep)

    def _take(self, taken: _Input) -> None:
        kept = self._kept.setdefault(taken.camera, deque(maxlen=KEPT_INPUTS))
        if kept and taken.stamp_ns <= kept[-1].stamp_ns - SECOND_NS:
            # The clock was set back: nothing that is here belongs to any later episode, nor does the running
            # one to what comes.
            for items in self._kept.values():
                items.clear()
            self.end()
        kept.append(taken)
        if self.course is not None:
            self._add(taken)

    def _add(self, taken: _Input) -> None:
        if taken.camera is None:
            is_new = self._assembler.add_state(taken.stamp_ns, taken.value)
        else:
            is_new = self._assembler.add_image(taken.camera, taken.stamp_ns, taken.value)
        if not is_new:
            return
        if taken.camera is not None or not self._embodiment.cameras:
            self._newest_ns = taken.stamp_ns
        if not self._is_due():
            return
        observation = self._assembler.ready(self._ros_now_ns(), synchronous=self._lockstep)
        if observation is None:
            return
        self._last_ns = observation.stamp_ns
        if len(self._waiting) == self._waiting.maxlen:
            self.missed += 1
        self._waiting.append(Task(self.course, observation, self._steady_s()))

    def _is_due(self) -> bool:
        """Live, the frame history has the pace of control, however fast cameras and inference are."""
        if self._lockstep or self._last_ns is None:
            return True
        since_ns = self._newest_ns - self._last_ns
        return since_ns >= DUE_SHARE * self._period_ns or since_ns < 0
