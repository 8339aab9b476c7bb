"""A scripted pusher for the table: get behind the body, push it to its goal, go round what is in the way.

It looks at the state in every step and keeps no plan, so it recovers from slips, noise and pauses by itself.
A deliberate failure pushes the wrong body, pushes towards the wrong goal, or stops short.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from efm_sim.table_language import PLACES, Task
from efm_sim.table_scene import BANANA, BLOCK_RADIUS, BOARD_HALF, EFFECTOR_RADIUS

if TYPE_CHECKING:
    from efm_sim.table import TableWorld

SPEED = 0.03  # m per step
PUSH_SPEED = 0.02  # m per step
CONTACT = {True: 0.062, False: BLOCK_RADIUS + EFFECTOR_RADIUS}  # m, by "is the banana"
STAND_OFF = 0.008  # m, between effector and body before the push
ALIGNED = 0.010  # m, greatest sideways error at which pushing goes on
BODY_CLEARANCE = 2.0 * BLOCK_RADIUS + 0.006  # m, between centres of pushed block and obstacle
PUSH_IN = 0.046  # m, the push goes on until the centres are this near: well inside the success set
WAYPOINT_REACHED = 0.015  # m
WAYPOINT_PATIENCE = 20  # steps
STOPS_SHORT_AT = 0.5  # fraction of the initial distance
FAILURE_PATIENCE = 120  # steps


def steer(start: np.ndarray, goal: np.ndarray, obstacles: np.ndarray, clearance: np.ndarray) -> np.ndarray:
    """Returns the unit direction from start to goal, or along a tangent of the first obstacle in the way.

    Args:
        start: [2].
        goal: [2].
        obstacles: Centres, [K, 2].
        clearance: Distance to keep from each centre, [K]. An obstacle that holds the goal is not avoided.
    """
    way = goal - start
    distance = float(np.linalg.norm(way))
    if distance < 1e-9:
        return np.zeros(2)
    forward = way / distance
    first, first_along = -1, np.inf
    for index, centre in enumerate(obstacles):
        offset = centre - start
        along, aside = float(offset @ forward), _cross(forward, offset)
        ahead = 0.0 < along < min(distance + clearance[index], first_along)
        if ahead and abs(aside) < clearance[index] and np.linalg.norm(goal - centre) >= clearance[index]:
            first, first_along = index, along
    if first < 0:
        return forward
    offset = obstacles[first] - start
    gap = float(np.linalg.norm(offset))
    side = -1.0 if _cross(forward, offset) > 0.0 else 1.0
    # On or within the circle the tangent leads straight past the centre, and a little outwards.
    angle = np.arcsin(clearance[first] / gap) if gap > clearance[first] else 0.5 * np.pi + 0.4
    cos, sin = np.cos(side * angle), np.sin(side * angle)
    return np.array([cos * offset[0] - sin * offset[1], sin * offset[0] + cos * offset[1]]) / gap


def _cross(a: np.ndarray, b: np.ndarray) -> float:
    return float(a[0] * b[1] - a[1] * b[0])


class PushSkill:
    """The `Skill` of one episode.

    Args:
        world: A world that has been reset.
        wander: Random waypoints before the push.
        fails: Whether to fail deliberately.
        rng: Source of waypoints, of the kind of failure and of slips.
    """

    def __init__(self, world: TableWorld, wander: int, fails: bool, rng: np.random.Generator) -> None:
        self._world = world
        self._rng = rng
        self._waypoints = list(rng.uniform(-BOARD_HALF, BOARD_HALF, (wander, 2)))
        self._waypoint_steps = 0
        self._slip_action = np.zeros(2)
        self._fails = fails
        self._steps = 0
        self._task = world.task
        self._stop_at = PUSH_IN
        if fails:
            self._task, self._stop_at = self._failure()

    def _failure(self) -> tuple[Task, float]:
        """Draws the task of a deliberate failure and the distance at which it stops."""
        world, task = self._world, self._world.task
        kind = self._rng.choice(("wrong body", "wrong goal", "stop short"))
        bodies = [name for name in world.blocks if name not in (task.body, task.goal)]
        if kind == "wrong body" and bodies:
            return Task(str(self._rng.choice(bodies)), task.goal), PUSH_IN
        goals = [name for name in PLACES if name != task.goal] if task.goal in PLACES else bodies
        if kind == "wrong goal" and goals:
            return Task(task.body, str(self._rng.choice(goals))), PUSH_IN
        return task, max(STOPS_SHORT_AT * world.distance(task), 1.3 * PUSH_IN)

    @property
    def given_up(self) -> bool:
        """True when the wrong thing is done, or has taken too long."""
        return self._fails and (
            self._world.distance(self._task) < self._stop_at or self._steps > FAILURE_PATIENCE
        )

    def hold(self) -> np.ndarray:
        """Stands still."""
        return np.zeros(2)

    def slip(self) -> np.ndarray:
        """Drives on past the body's side; one direction for the length of a slip."""
        if self._slip_action @ self._slip_action == 0.0:
            angle = self._rng.uniform(-np.pi, np.pi)
            self._slip_action = SPEED * np.array([np.cos(angle), np.sin(angle)])
        return self._slip_action

    def act(self) -> np.ndarray:
        """Visits the waypoints that are left, then pushes."""
        self._steps += 1
        self._slip_action = np.zeros(2)
        effector = self._world.effector()
        while self._waypoints:
            near = np.linalg.norm(self._waypoints[0] - effector) < WAYPOINT_REACHED
            if not near and self._waypoint_steps < WAYPOINT_PATIENCE:
                self._waypoint_steps += 1
                return self._travel(effector, self._waypoints[0])
            self._waypoints.pop(0)
            self._waypoint_steps = 0
        return self._push(effector)

    def _push(self, effector: np.ndarray) -> np.ndarray:
        world, task = self._world, self._task
        body, goal = world.position(task.body), world.position(task.goal)
        others = [name for name in world.bodies if name not in (task.body, task.goal)]
        direction = steer(body, goal, *self._circles(others, BODY_CLEARANCE))
        contact = CONTACT[task.body == BANANA]
        offset = body - effector
        ahead, aside = float(offset @ direction), _cross(direction, offset)
        if ahead > 0.5 * contact and abs(aside) < ALIGNED and ahead < contact + 3.0 * STAND_OFF:
            # Steer the point of contact back onto the line through the centre while pushing.
            normal = np.array([-direction[1], direction[0]])
            speed = PUSH_SPEED * (1.0 - 0.5 * abs(aside) / ALIGNED)
            return _limited(speed * direction + 0.8 * aside * normal, SPEED)
        return self._travel(effector, body - (contact + STAND_OFF) * direction)

    def _travel(self, effector: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Moves the effector towards a point without touching what lies in between."""
        circles = self._circles(self._world.bodies, BLOCK_RADIUS + EFFECTOR_RADIUS + 0.004)
        direction = steer(effector, goal, *circles)
        return direction * min(SPEED, float(np.linalg.norm(goal - effector)))

    def _circles(self, names: tuple[str, ...] | list[str], clearance: float) -> tuple[np.ndarray, np.ndarray]:
        centres = np.array([self._world.position(name) for name in names]).reshape(-1, 2)
        banana = np.array([name == BANANA for name in names], bool)
        return centres, np.where(banana, clearance + CONTACT[True] - CONTACT[False], clearance)


def _limited(vector: np.ndarray, length: float) -> np.ndarray:
    norm = float(np.linalg.norm(vector))
    return vector if norm <= length else vector * (length / norm)
