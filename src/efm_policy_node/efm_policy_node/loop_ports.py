"""What a robot's loop is told, what it asks for and what it tells: plain values, and the seam to its node."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from efm_core.errors import EfmError, Reason
from efm_core.safety import Gate
from efm_core.summary import Actor
from efm_policy_node.cadence import CadenceReport
from efm_policy_node.onnx_policy import OnnxPolicy, Request

if TYPE_CHECKING:
    from efm_policy_node.robot_loop import RobotLoop


@dataclass(frozen=True)
class LoopSettings:
    """How a loop runs.

    Attributes:
        lockstep: The world waits for the answer to each observation; else `tick` sets the pace.
        stage: full; shadow: the policy decides and records, and sends nothing; blend: a share of it.
        blend: Share of the policy in stage blend; the rest is the person's command, or holding still.
        dry_run: Nothing is sent at all.
        infer_ahead: Control steps before a chunk's end at which the next inference begins; none in
            lockstep.
        stale_end_s: An act that waits so long for fresh input, or for an inference, ends [s].
        human_timeout_s: A person's command is good for so long [s].
        release_ramp_s: After a person lets go, the policy takes over gradually in so long [s].
        check_period_s: How often `check` is called [s].
        only_human: A person acts in every act (teleoperation); there is no policy.
    """

    lockstep: bool = False
    stage: Literal["full", "shadow", "blend"] = "full"
    blend: float = 1.0
    dry_run: bool = False
    infer_ahead: int = 0
    stale_end_s: float = 10.0
    human_timeout_s: float = 0.5
    release_ramp_s: float = 0.5
    check_period_s: float = 0.01
    only_human: bool = False


@dataclass(frozen=True)
class ActGoal:
    """What one act is to do; the goal of `Act.action` with the node's defaults filled in.

    Attributes:
        episode_id: Episode that the steps belong to; empty: none.
        instruction: What is to be done.
        start_ns: Observations older than this are ignored; 0: none is.
        temperature: Of the sampling; 0: greedy.
        seed: Of the sampling.
        max_steps: Greatest number of control steps; 0: no limit.
    """

    episode_id: str = ""
    instruction: str = ""
    start_ns: int = 0
    temperature: float = 1.0
    seed: int = 0
    max_steps: int = 0


@dataclass(frozen=True)
class Ending:
    """How an act ended; the robot holds still already."""

    goal: ActGoal
    reason: Reason
    message: str
    steps: int
    bundle_id: str = ""
    version: int = 0


class ActRefused(EfmError):
    """An act that cannot begin; `code` is the reason that its result carries."""

    def __init__(self, code: Reason, message: str) -> None:
        """Takes the code of this refusal; unlike other errors the class has none of its own."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, eq=False, kw_only=True)
class ControlStep:
    """One command that answered one observation; the content of `PolicyStep.msg`, field by field.

    What is not given is filled in on the way to the record.

    Attributes:
        stamp_ns: Of the observation that the tokens were inferred from; without tokens, of the one
            answered.
        actor: Who decided.
        action: float [D] before the safety gate.
        bundle_id: Empty where the actor is not a policy.
        chunk_index: Position in the chunk.
        tokens: int [D], None where the actor uses none.
        log_prob: NaN where the actor is not a policy.
        temperature: NaN where the actor is not a policy.
        command: float [D] after the safety gate.
        latency_s: From the arrival of the observation to the publication of the command.
    """

    stamp_ns: int
    actor: Actor
    action: np.ndarray
    bundle_id: str = ""
    chunk_index: int = 0
    tokens: np.ndarray | None = None
    log_prob: float = math.nan
    temperature: float = math.nan
    episode_id: str = ""
    step: int = 0
    gate: Gate = Gate.PASSED
    command: np.ndarray = field(default_factory=lambda: np.empty(0))
    latency_s: float = math.nan


@dataclass(frozen=True, eq=False)
class Job:
    """An inference that a loop asks for; its outcome goes to `loop.decided`."""

    loop: RobotLoop
    policy: OnnxPolicy
    request: Request
    ticket: int
    first_step: int


class RobotPorts(Protocol):
    """How a loop acts. Called with its lock held, from any thread; calls must be short and not wait."""

    def send(self, values: np.ndarray, stamp_ns: int) -> None:
        """Publishes a command, float [D], that answers the observation of that stamp."""

    def record(self, step: ControlStep) -> None:
        """Publishes what was done; always after `send`."""

    def request(self, job: Job) -> None:
        """Asks for an inference."""

    def ended(self, ending: Ending) -> None:
        """Tells that the act is over; the hold-still command has been sent."""

    def say(self, text: str) -> None:
        """Takes a warning for people."""


@dataclass(frozen=True)
class LoopStatus:
    """Where a loop stands, for diagnostics and feedback.

    Attributes:
        goal: Of the running act; of the last one while none runs.
        stamp_ns: Of the newest observation.
        stale: Why the input is stale; empty: it is fresh, or nobody needs it.
        missing: What is missing for an observation at this moment; empty: nothing.
        input_age_s: Since the last input of any kind [s].
    """

    acting: bool
    goal: ActGoal
    steps: int
    stamp_ns: int
    estop: bool
    takeover: bool
    stale: str
    missing: str
    input_age_s: float
    cadence: CadenceReport
