"""From a decision to the one command that answers an observation: blend, gate, send, record.

Who decides is the loop's business; here the policy's action or the person's wish becomes a command, and
what was done becomes a `ControlStep`. Left out: ending the act where no command is possible; that is
raised. Not thread-safe: the loop that owns it holds a lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from efm_core.errors import ActionNotFinite, LimitExceeded
from efm_core.observation import Observation
from efm_core.safety import Gate
from efm_core.summary import Actor
from efm_policy_node.action_plan import ActionPlan
from efm_policy_node.cadence import Cadence
from efm_policy_node.command_outlet import CommandOutlet
from efm_policy_node.loop_ports import ActGoal, ControlStep, LoopSettings, RobotPorts
from efm_policy_node.onnx_policy import OnnxPolicy
from efm_policy_node.person import Person


@dataclass(frozen=True, eq=False)
class Seen:
    """An observation that is to be answered; times on the steady clock."""

    observation: Observation
    arrival_s: float
    due_s: float


class Act:
    """The running act: its goal, its model, its own randomness, and the steps taken."""

    def __init__(self, goal: ActGoal, policy: OnnxPolicy | None) -> None:
        self.goal = goal
        self.policy = policy
        self.rng = np.random.default_rng(goal.seed)
        self.steps = 0

    @property
    def bundle_id(self) -> str:
        """The bundle that acts; empty without one."""
        return self.policy.id if self.policy is not None else ""

    @property
    def version(self) -> int:
        """Its version; 0 without one."""
        return self.policy.version if self.policy is not None else 0


class Answerer:
    """Answers observations of one robot.

    Attributes:
        outlet: Where commands go.
        person: Who may have taken over.
        cadence: How regularly answers leave.
        answered_s: When the last one left, steady clock.
    """

    def __init__(
        self,
        outlet: CommandOutlet,
        person: Person,
        cadence: Cadence,
        settings: LoopSettings,
        ports: RobotPorts,
        steady_s: Callable[[], float],
    ) -> None:
        self.outlet, self.person, self.cadence = outlet, person, cadence
        self.answered_s = -math.inf
        self._settings, self._ports, self._steady_s = settings, ports, steady_s

    def wish(self) -> np.ndarray | None:
        """Returns what the person wants now, float [D]; None where they have said nothing lately."""
        return self.person.wish(self._steady_s())

    def by_policy(self, act: Act, seen: Seen, plan: ActionPlan, index: int) -> None:
        """Answers with one action of the plan.

        Raises:
            LimitExceeded: A share of something unknown was asked for.
            ActionNotFinite: No number, and nothing is known that holds still.
        """
        action, decision = plan.decision.actions[index], plan.decision
        share = self.person.next_share_of_policy()
        if share < 1.0:
            action = _blended(share, action, self.outlet.newest())
        if self._settings.stage == "blend":
            wish = self.wish()
            action = _blended(self._settings.blend, action, self.outlet.still() if wish is None else wish)
        step = ControlStep(
            stamp_ns=plan.stamp_ns,
            bundle_id=act.bundle_id,
            chunk_index=index,
            actor=Actor.POLICY,
            tokens=decision.tokens[index],
            log_prob=float(decision.log_prob[index]),
            temperature=decision.temperature,
            action=action,
        )
        self._carry_out(act, seen, step, for_real=self._settings.stage != "shadow")

    def by_hand(self, act: Act | None, seen: Seen) -> None:
        """Answers with what the person wants, or holds still while they want nothing.

        Raises:
            ActionNotFinite: No number, and nothing is known that holds still.
        """
        stamp_ns, wanted = seen.observation.stamp_ns, self.wish()
        if wanted is not None:
            self._carry_out(act, seen, ControlStep(stamp_ns=stamp_ns, actor=Actor.HUMAN, action=wanted))
        elif (still := self.outlet.still()) is not None:
            self._carry_out(act, seen, ControlStep(stamp_ns=stamp_ns, actor=Actor.HOLD, action=still))

    def blindly(self, stamp_ns: int) -> bool:
        """Sends what the person wants without an observation to answer, unrecorded; True if it did."""
        wanted = self.wish()
        if wanted is None:
            return False
        command, gate = self._gated(ControlStep(stamp_ns=stamp_ns, actor=Actor.HUMAN, action=wanted))
        self.outlet.send(command, gate, stamp_ns)
        return True

    def _carry_out(self, act: Act | None, seen: Seen, step: ControlStep, for_real: bool = True) -> None:
        command, gate = self._gated(step)
        gate = self.outlet.send(command, gate, seen.observation.stamp_ns, for_real)
        done_s = self.answered_s = self._steady_s()
        episode_id, number = (act.goal.episode_id, act.steps) if act is not None else ("", 0)
        latency_s = done_s - seen.arrival_s
        self._ports.record(
            replace(step, episode_id=episode_id, step=number, gate=gate, command=command, latency_s=latency_s)
        )
        self.cadence.cycle(seen.due_s, done_s)
        if act is not None:
            act.steps += 1

    def _gated(self, step: ControlStep) -> tuple[np.ndarray, Gate]:
        """Returns the command and what the gate did; holding still for an action that it refuses."""
        if step.actor is Actor.HOLD:
            return step.action, Gate.HELD
        try:
            return self.outlet.gated(step.action)
        except ActionNotFinite as error:
            still = self.outlet.still()
            if still is None:
                raise
            self._ports.say(f"{error}; holding still")
            return still, Gate.HELD


def _blended(share: float, action: np.ndarray, other: np.ndarray | None) -> np.ndarray:
    if other is None:
        raise LimitExceeded(
            "nothing to blend with: expected a state that shows where the robot is, found none"
        )
    return share * action + (1.0 - share) * other
