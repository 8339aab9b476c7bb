"""The two bimanual tasks of gym-aloha as a `World`: insert a peg, hand over a cube. 14 joints, no expert.

The package draws three pictures of 480x640 in every step; this file takes its own, small ones instead. Its
scripted policies do not work on MuJoCo 3, so there is no expert: demonstrate by hand, or import data.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from efm_sim.gym_world import GymRecipe, GymWorld
from efm_sim.mujoco_camera import MujocoCamera
from efm_sim.world import WorldSpec

import mujoco  # isort: skip, after the rendering back end is chosen

try:
    import gym_aloha  # noqa: F401, registers the environments
    import gymnasium
    from gym_aloha.constants import JOINTS
except ImportError as error:
    raise ImportError(
        "aloha:<task> needs gym-aloha, which cannot share an environment with Meta-World (dm-control brings "
        "a newer mujoco than the 3.3.0 that Meta-World pins): in a virtual environment of its own, "
        "pip install gym-aloha==0.1.5 'mujoco<3.9'"
    ) from error

RATE_HZ = 50.0
MAX_STEPS = 500
CAMERAS = ("top", "angle", "front_close", "left_pillar", "right_pillar")

# Task -> environment, sentence, and the two bodies whose distance tells how far it is.
TASKS: Mapping[str, tuple[str, str, tuple[str, str]]] = {
    "insertion": ("gym_aloha/AlohaInsertion-v0", "insert the peg into the socket", ("peg", "socket")),
    "transfer": (
        "gym_aloha/AlohaTransferCube-v0",
        "hand the cube from the right arm to the left arm",
        ("box", "vx300s_left/gripper_link"),
    ),
}


def make(task: str, image_size: int = 96, cameras: Sequence[str] = ("top",)) -> GymWorld:
    """Factory for `make_world("aloha:<task>")`.

    Args:
        task: One of `TASKS`.
        image_size: Height and width of every picture in pixels.
        cameras: Which of `CAMERAS` to show; empty for none.
    """
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"aloha: unknown task {task!r} (did you mean {near!r}?); choices: {', '.join(TASKS)}"
        )
    unknown = [name for name in cameras if name not in CAMERAS]
    if unknown:
        raise ValueError(f"aloha: unknown camera {unknown[0]!r}; choices: {', '.join(CAMERAS)}")
    identifier, sentence, bodies = TASKS[task]
    environment = gymnasium.make(
        identifier, obs_type="pixels_agent_pos", max_episode_steps=-1, disable_env_checker=True
    )
    inner: Any = environment.unwrapped
    physics = inner._env.physics
    model, data = physics.model.ptr, physics.data.ptr
    inner._env.task.get_observation = _joints_only(inner._env.task)
    low, high = _joint_limits(model)
    views = {name: _camera(model, image_size, name) for name in cameras}
    spec = WorldSpec(
        name=f"aloha:{task}",
        cameras={name: (image_size, image_size) for name in cameras},
        state_names=tuple(JOINTS),
        action_names=tuple(JOINTS),
        action_low=low,
        action_high=high,
        control_rate_hz=RATE_HZ,
        instructions=(sentence,),
        max_steps=MAX_STEPS,
    )

    def distance(info: Mapping[str, Any]) -> float:
        first, second = (data.body(name).xpos for name in bodies)
        return float(np.linalg.norm(first - second))

    def close() -> None:
        for view in views.values():
            view.close()

    recipe = GymRecipe(
        spec=spec,
        action_repeat=1,
        state=lambda observation: observation["agent_pos"],
        cameras={name: _picture_of(view, data) for name, view in views.items()},
        success=lambda info: bool(info.get("is_success", False)),
        distance=distance,
        close=close,
        runs_on=True,
    )
    return GymWorld(environment, recipe)


def _picture_of(view: MujocoCamera, data: mujoco.MjData) -> Callable[[Any], np.ndarray]:
    return lambda observation: view.render(data)


def _joints_only(task: Any) -> Any:
    """Returns a replacement of the task's `get_observation` that draws nothing."""
    nothing = {"top": np.empty(0, np.uint8)}
    return lambda physics: {"qpos": task.get_qpos(physics), "images": nothing}


def _joint_limits(model: mujoco.MjModel) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the bounds of 14 joint targets in radians, the two grippers as 0 (closed) to 1 (open).

    The environment declares -1 to 1 for all of them, which its own joint targets exceed.
    """
    low, high = [], []
    for arm in (0, 8):
        limits = model.actuator_ctrlrange[arm : arm + 6]
        low += [*(float(v) for v in limits[:, 0]), 0.0]
        high += [*(float(v) for v in limits[:, 1]), 1.0]
    return tuple(low), tuple(high)


def _camera(model: mujoco.MjModel, image_size: int, name: str) -> MujocoCamera:
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 0
    option = mujoco.MjvOption()
    # The arms' meshes are detailed; their hulls look the same at this size and draw five times faster.
    option.flags[mujoco.mjtVisFlag.mjVIS_CONVEXHULL] = 1
    return MujocoCamera(model, image_size, image_size, name, option)
