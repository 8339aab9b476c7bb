"""A board with blocks to push about, in the manner of LanguageTable, in MuJoCo.

A round effector moves over the board in two dimensions at 10 Hz; one camera looks down. The task is a
sentence: a block to another block (centres nearer than 0.05 m) or to a place on the board. The scene is in
`table_scene.py`, the sentences in `table_language.py`, the scripted pusher in `table_expert.py`.

Left out on purpose: the third dimension (blocks cannot topple) and the arm that would carry the effector.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from efm_sim.expert import ExpertStyle, FaultSchedule, StyledExpert
from efm_sim.mujoco_camera import MujocoCamera
from efm_sim.table_expert import PushSkill
from efm_sim.table_language import FAMILIES, PLACES, Task, table_tasks
from efm_sim.table_scene import (
    BANANA,
    BLOCKS,
    BOARD_HALF,
    CAMERA,
    EFFECTOR_HALF,
    PHYSICS_DT,
    scene_xml,
)
from efm_sim.world import Observation, Truth, WorldSpec

import mujoco  # isort: skip, after the rendering back end is chosen

CONTROL_RATE_HZ = 10.0
PHYSICS_STEPS = round(1.0 / (CONTROL_RATE_HZ * PHYSICS_DT))
MAX_DELTA = 0.03  # m per control step
MAX_STEPS = 200
SUCCESS_DISTANCE = 0.05  # m, between centres
MIN_START_DISTANCE = 0.06  # m, between the centres of any two bodies, and of a body and its goal
START_HALF = 0.165  # m, bodies start within this square
BANANA_START_HALF = 0.11  # m, the same for the banana
EFFECTOR_CLEARANCE = 0.045  # m, from the effector's start to every body's centre
BANANA_CLEARANCE = 0.095  # m, from the banana's centre to every block's
MAX_PLACEMENTS = 10_000
UNSTABLE = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


class TableWorld:
    """One board; see `World` for the call order and the threads.

    Args:
        blocks: How many of `BLOCKS` (the first 2, 4 or 8 are as distinct as can be), or their names.
        family: One or several of `FAMILIES`. The banana, which no block family ever mentions or shows, is on
            the board only when `banana_to_place` is named.
        image_size: Height and width of the picture in pixels.
    """

    def __init__(
        self,
        blocks: int | Sequence[str] = 8,
        family: str | Sequence[str] = "block_to_block",
        image_size: int | Sequence[int] = 96,
    ) -> None:
        self.blocks = _block_names(blocks)
        families = (family,) if isinstance(family, str) else tuple(family)
        self._tasks = table_tasks(families, self.blocks)
        self.bodies = self.blocks + ((BANANA,) if "banana_to_place" in families else ())
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if not (16 <= height <= 1024 and 16 <= width <= 1024):
            raise ValueError(f"table: image_size must lie in 16..1024 pixels, got {image_size}")
        self.spec = WorldSpec(
            name="table",
            cameras={CAMERA: (height, width)},
            state_names=("effector_x", "effector_y"),
            action_names=("effector_dx", "effector_dy"),
            action_low=(-MAX_DELTA, -MAX_DELTA),
            action_high=(MAX_DELTA, MAX_DELTA),
            control_rate_hz=CONTROL_RATE_HZ,
            instructions=tuple(self._tasks),
            max_steps=MAX_STEPS,
        )
        self.instruction = ""
        self._task: Task | None = None
        self._steps = 0
        self._model = mujoco.MjModel.from_xml_string(scene_xml(self.bodies, height, width))
        self._data = mujoco.MjData(self._model)
        option = mujoco.MjvOption()
        option.geomgroup[3] = 0
        self._camera = MujocoCamera(self._model, height, width, CAMERA, option)

    def reset(self, seed: int, instruction: str | None = None) -> Observation:
        """Places bodies and effector at random; see `World.reset`."""
        rng = np.random.default_rng(seed)
        self.instruction = self.spec.checked_instruction(instruction, rng)
        self._task = self._tasks[self.instruction]
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:] = self._placement(self._task, rng)
        mujoco.mj_forward(self._model, self._data)
        self._steps = 0
        return self._observation()

    def step(self, action: np.ndarray) -> Observation:
        """Moves the effector by a delta in metres; see `World.step`."""
        if self._task is None:
            raise RuntimeError("table: step before the first reset")
        delta = self.spec.checked_action(action)
        before = self._data.qpos.copy()
        delta = np.clip(before[:2] + delta, -EFFECTOR_HALF, EFFECTOR_HALF) - before[:2]
        self._data.ctrl[:] = delta * CONTROL_RATE_HZ
        mujoco.mj_step(self._model, self._data, nstep=PHYSICS_STEPS)
        if any(self._data.warning[kind].number for kind in UNSTABLE):
            self._undo(before)
        self._steps += 1
        return self._observation()

    def truth(self) -> Truth:
        """Returns the distance in metres between body and goal; see `World.truth`."""
        distance = self.distance(self.task)
        return Truth(distance < SUCCESS_DISTANCE, distance)

    def expert(self, style: ExpertStyle, seed: int) -> StyledExpert:
        """Returns a scripted pusher; see `World.expert`."""
        rng = np.random.default_rng([seed, 1])
        faults = FaultSchedule.draw(style, self.spec, rng)
        return StyledExpert(self, PushSkill(self, style.wander, faults.fails, rng), faults)

    def close(self) -> None:
        """Frees the rendering context."""
        self._camera.close()

    @property
    def task(self) -> Task:
        """The running episode's task."""
        if self._task is None:
            raise RuntimeError("table: there is no task before the first reset")
        return self._task

    def effector(self) -> np.ndarray:
        """Returns the effector's centre, [2] in metres; privileged state for experts."""
        return self._data.qpos[:2].copy()

    def position(self, name: str) -> np.ndarray:
        """Returns the centre of a body or a place, [2] in metres; privileged state for experts."""
        if name in PLACES:
            return np.array(PLACES[name])
        start = 2 + 3 * self.bodies.index(name)
        return self._data.qpos[start : start + 2].copy()

    def distance(self, task: Task) -> float:
        """Returns the distance between a task's body and its goal in metres."""
        return float(np.linalg.norm(self.position(task.body) - self.position(task.goal)))

    def _undo(self, before: np.ndarray) -> None:
        """Takes back a step that diverged: MuJoCo lays all bodies on one heap then, a false success."""
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:] = before
        mujoco.mj_forward(self._model, self._data)

    def _placement(self, task: Task, rng: np.random.Generator) -> np.ndarray:
        """Draws qpos: effector x, y, then x, y, turn of every body."""
        for _ in range(MAX_PLACEMENTS):
            bodies = rng.uniform(-START_HALF, START_HALF, (len(self.bodies), 2))
            if BANANA in self.bodies:
                bodies[-1] *= BANANA_START_HALF / START_HALF
            gaps = np.linalg.norm(bodies[:, None] - bodies[None], axis=2)
            gaps[np.diag_indices(len(bodies))] = np.inf
            if BANANA in self.bodies and gaps[-1].min() < BANANA_CLEARANCE:
                continue
            if task.goal in PLACES:
                to_goal = np.linalg.norm(bodies[self.bodies.index(task.body)] - PLACES[task.goal])
                if to_goal < MIN_START_DISTANCE:
                    continue
            if gaps.min() < MIN_START_DISTANCE:
                continue
            effector = rng.uniform(-BOARD_HALF, BOARD_HALF, 2)
            clearance = np.linalg.norm(bodies - effector, axis=1)
            if BANANA in self.bodies:
                clearance[-1] -= BANANA_CLEARANCE - EFFECTOR_CLEARANCE
            if clearance.min() < EFFECTOR_CLEARANCE:
                continue
            turns = rng.uniform(-np.pi, np.pi, len(bodies))
            return np.concatenate([effector, np.concatenate([bodies, turns[:, None]], axis=1).ravel()])
        raise RuntimeError(f"table: found no free placement of {len(self.bodies)} bodies")

    def _observation(self) -> Observation:
        state = self._data.qpos[:2].astype(np.float32)
        return Observation({CAMERA: self._camera.render(self._data)}, state, self._steps)


def _block_names(blocks: int | Sequence[str]) -> tuple[str, ...]:
    if isinstance(blocks, int):
        if not 1 <= blocks <= len(BLOCKS):
            raise ValueError(f"table: blocks must be 1..{len(BLOCKS)} or names, got {blocks}")
        return BLOCKS[:blocks]
    for name in blocks:
        if name not in BLOCKS:
            near = difflib.get_close_matches(name, BLOCKS, n=1, cutoff=0.0)[0]
            choices = ", ".join(BLOCKS)
            raise ValueError(f"table: unknown block {name!r} (did you mean {near!r}?); choices: {choices}")
    if len(set(blocks)) != len(blocks):
        raise ValueError(f"table: a block is named twice: {tuple(blocks)}")
    return tuple(blocks)


def make(
    task: str,
    blocks: int | Sequence[str] = 8,
    family: str | Sequence[str] = "block_to_block",
    image_size: int | Sequence[int] = 96,
) -> TableWorld:
    """Factory for `make_world("table", ...)`; the options are those of `TableWorld`."""
    if task:
        choices = ", ".join(FAMILIES)
        raise ValueError(f"table takes no task after a colon, got {task!r}; use family=, one of {choices}")
    return TableWorld(blocks, family, image_size)
