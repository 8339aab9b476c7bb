"""The point mass of the authors' notebook: a 2-D double integrator that must reach a goal.

State only, no camera, no MuJoCo: the correctness oracle of the learner. All physics live in
`PointMassBatch`, vectorised over robots; `PointMassWorld` is a batch of one behind the `World` protocol.

With these numbers full force straight towards the goal takes about 10 steps on average, and the wandering
demonstrators of the notebook (`NOTEBOOK_STYLE`) about 70: practice has something to gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efm_sim.expert import PAUSE, SLIP, ExpertEpisode, ExpertStyle, FaultSchedule
from efm_sim.world import Observation, Truth, WorldSpec

DT = 0.1  # s
MASS = 0.6  # kg
SUCCESS_RADIUS = 0.15  # m
MIN_START_DISTANCE = 0.3  # m, so that no episode begins at its goal
MAX_STEPS = 140
INSTRUCTION = "reach the goal"

# The demonstrators' habits: a damped spring that drives at a comfortable speed and turns at a waypoint
# before it stands on it.
STIFFNESS, DAMPING = 4.0, 2.4
WAYPOINT_RADIUS = 0.25  # m
NEAR_MISS = (0.22, 0.4)  # m from the goal, where a failure can end
FINAL_RADIUS = 0.05  # m, where an expert aims within the success radius
NOTEBOOK_STYLE = ExpertStyle(wander=5)

SPEC = WorldSpec(
    name="pointmass",
    cameras={},
    state_names=("x", "y", "velocity_x", "velocity_y", "goal_x", "goal_y"),
    action_names=("force_x", "force_y"),
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    control_rate_hz=1.0 / DT,
    instructions=(INSTRUCTION,),
    max_steps=MAX_STEPS,
)


class PointMassBatch:
    """N point masses that step together.

    Attributes:
        position, velocity, goal: float64 [N, 2].
    """

    def __init__(self, robots: int) -> None:
        if robots < 1:
            raise ValueError(f"robots must be 1 or more, got {robots}")
        self.robots = robots
        self.spec = SPEC
        self.position = np.zeros((robots, 2))
        self.velocity = np.zeros((robots, 2))
        self.goal = np.zeros((robots, 2))

    def reset(self, seeds: Sequence[int], robots: Sequence[int] | None = None) -> np.ndarray:
        """Begins an episode for all robots, or for those given by index.

        Args:
            seeds: One per robot that is reset; a robot's start depends on its seed alone.
            robots: Which robots; None means all.

        Returns:
            States of all robots, float32 [N, 6].
        """
        indices = range(self.robots) if robots is None else robots
        for index, seed in zip(indices, seeds, strict=True):
            rng = np.random.default_rng(seed)
            start, goal = rng.uniform(-1.0, 1.0, (2, 2))
            while np.hypot(*(goal - start)) < MIN_START_DISTANCE:
                start, goal = rng.uniform(-1.0, 1.0, (2, 2))
            self.position[index], self.velocity[index], self.goal[index] = start, 0.0, goal
        return self.states()

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Advances all robots by one control step.

        Args:
            actions: Forces [N, 2], clipped to [-1, 1].

        Returns:
            States, float32 [N, 6].
        """
        actions = np.asarray(actions, np.float64)
        if actions.shape != (self.robots, 2):
            raise ValueError(f"pointmass: expected actions of shape ({self.robots}, 2), got {actions.shape}")
        if not np.isfinite(actions).all():
            raise ValueError("pointmass: the actions are not finite")
        # Semi-implicit Euler; a wall stops the velocity into it.
        self.velocity += np.clip(actions, -1.0, 1.0) * (DT / MASS)
        moved = self.position + self.velocity * DT
        self.position = np.clip(moved, -1.0, 1.0)
        self.velocity[moved != self.position] = 0.0
        return self.states()

    def states(self) -> np.ndarray:
        """Returns position, velocity and goal, float32 [N, 6]."""
        return np.concatenate([self.position, self.velocity, self.goal], axis=1).astype(np.float32)

    def distances(self) -> np.ndarray:
        """Returns the distance to the goal in metres, float64 [N]."""
        return np.linalg.norm(self.position - self.goal, axis=1)

    def successes(self) -> np.ndarray:
        """Returns the ground truth, bool [N]."""
        return self.distances() < SUCCESS_RADIUS

    def experts(self, style: ExpertStyle, seeds: Sequence[int]) -> PointMassExperts:
        """Returns one expert per robot, from the current states on."""
        return PointMassExperts(self, style, seeds)


class PointMassExperts:
    """PD controllers that wander through random waypoints before the goal; vectorised over robots."""

    def __init__(self, batch: PointMassBatch, style: ExpertStyle, seeds: Sequence[int]) -> None:
        if len(seeds) != batch.robots:
            raise ValueError(f"pointmass: {batch.robots} robots need as many seeds, got {len(seeds)}")
        self._batch = batch
        rngs = [np.random.default_rng([seed, 1]) for seed in seeds]
        faults = [FaultSchedule.draw(style, SPEC, rng) for rng in rngs]
        self._mode = np.stack([f.mode for f in faults])
        self._noise = np.stack([f.noise for f in faults])
        self._slip_force = np.stack([rng.uniform(-1.0, 1.0, 2) for rng in rngs])
        self._rest_steps = np.array([f.rest_steps for f in faults])
        self.fails = np.array([f.fails for f in faults])
        # Waypoints, then the end: the goal, or for a deliberate failure a place near it or far from it.
        self._targets = np.stack([rng.uniform(-1.0, 1.0, (style.wander + 1, 2)) for rng in rngs])
        for robot, rng in enumerate(rngs):
            goal = batch.goal[robot]
            self._targets[robot, -1] = _wrong_place(goal, rng) if self.fails[robot] else goal
        self._next = np.zeros(batch.robots, int)
        self._rested = np.zeros(batch.robots, int)
        self._step = 0

    @property
    def finished(self) -> np.ndarray:
        """Which experts have rested long enough, bool [N]."""
        return (self._rested > 0) & (self._rested >= self._rest_steps)

    def act(self) -> np.ndarray:
        """Returns the forces for the current states, float64 [N, 2]."""
        batch, rows = self._batch, np.arange(self._batch.robots)
        last = self._targets.shape[1] - 1
        offset = self._targets[rows, self._next] - batch.position
        reached = np.linalg.norm(offset, axis=1) < np.where(self._next == last, FINAL_RADIUS, WAYPOINT_RADIUS)
        # True success ends an attempt only when the goal is what the expert is after, not in passing.
        arrived = (self._next == last) & (reached | (batch.successes() & ~self.fails))
        self._rested += (self._rested > 0) | arrived
        self._next = np.minimum(self._next + (reached & (self._next < last)), last)
        offset = self._targets[rows, self._next] - batch.position
        force = STIFFNESS * offset - DAMPING * batch.velocity

        index = self._step % self._mode.shape[1]
        self._step += 1
        mode = self._mode[:, index, None]
        force = np.where(mode == SLIP, self._slip_force, np.clip(force, -1.0, 1.0)) + self._noise[:, index]
        brake = np.clip(-batch.velocity * MASS / DT, -1.0, 1.0)
        force = np.where((mode == PAUSE) | (self._rested[:, None] > 0), brake, force)
        return np.clip(force, -1.0, 1.0)


def _wrong_place(goal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns where a deliberate failure ends: half of the time a near miss, else anywhere far away."""
    nearest, farthest = NEAR_MISS if rng.random() < 0.5 else (2.0 * MIN_START_DISTANCE, np.inf)
    while True:
        place = rng.uniform(-1.0, 1.0, 2)
        if nearest <= np.hypot(*(place - goal)) <= farthest:
            return place


@dataclass(frozen=True)
class PointMassExpert:
    """One expert of a batch of one, as the `Expert` protocol has it."""

    experts: PointMassExperts

    @property
    def intends_success(self) -> bool:
        """See `Expert.intends_success`."""
        return not bool(self.experts.fails[0])

    @property
    def finished(self) -> bool:
        """See `Expert.finished`."""
        return bool(self.experts.finished[0])

    def act(self) -> np.ndarray:
        """See `Expert.act`."""
        return self.experts.act()[0]


class PointMassWorld:
    """A batch of one behind the `World` protocol."""

    spec = SPEC

    def __init__(self) -> None:
        self._batch = PointMassBatch(1)
        self._steps = -1
        self.instruction = ""

    def reset(self, seed: int, instruction: str | None = None) -> Observation:
        """See `World.reset`."""
        self.instruction = SPEC.checked_instruction(instruction, np.random.default_rng(seed))
        self._steps = 0
        return Observation({}, self._batch.reset([seed])[0], 0)

    def step(self, action: np.ndarray) -> Observation:
        """See `World.step`."""
        if self._steps < 0:
            raise RuntimeError("pointmass: step before the first reset")
        state = self._batch.step(SPEC.checked_action(action)[None])[0]
        self._steps += 1
        return Observation({}, state, self._steps)

    def truth(self) -> Truth:
        """See `World.truth`."""
        return Truth(bool(self._batch.successes()[0]), float(self._batch.distances()[0]))

    def expert(self, style: ExpertStyle, seed: int) -> PointMassExpert:
        """See `World.expert`."""
        return PointMassExpert(self._batch.experts(style, [seed]))

    def close(self) -> None:
        """Nothing is held."""


def run_expert_episodes(style: ExpertStyle, seeds: Sequence[int]) -> list[ExpertEpisode]:
    """Runs one episode per seed, all at once; each is what `run_expert_episode` gives for that seed."""
    batch = PointMassBatch(len(seeds))
    states, success, distance, actions = [batch.reset(seeds)], [batch.successes()], [batch.distances()], []
    experts = batch.experts(style, seeds)
    lengths = np.full(len(seeds), MAX_STEPS)
    for step in range(MAX_STEPS):
        lengths[experts.finished & (lengths == MAX_STEPS)] = step
        actions.append(experts.act())
        states.append(batch.step(actions[-1]))
        success.append(batch.successes())
        distance.append(batch.distances())
    by_robot = [np.stack(arrays, axis=1) for arrays in (states, actions, success, distance)]
    return [
        ExpertEpisode(
            instruction=INSTRUCTION,
            images={},
            states=robot_states[: length + 1],
            actions=robot_actions[:length].astype(np.float32),
            success=robot_success[: length + 1],
            distance=robot_distance[: length + 1].astype(np.float32),
            intends_success=not fails,
        )
        for robot_states, robot_actions, robot_success, robot_distance, length, fails in zip(
            *by_robot, lengths, experts.fails, strict=True
        )
    ]


def make(task: str) -> PointMassWorld:
    """Factory for `make_world("pointmass")`; it takes no task and no options."""
    if task:
        raise ValueError(f"pointmass has no tasks, got {task!r}")
    return PointMassWorld()
