"""Farama's Meta-World as a `World`: 50 tasks that nobody here wrote, with their experts and success flags.

Each action is repeated 4 times (80 Hz become 20 Hz), which the scripted experts survive. The goal is drawn in
the scene where the task has a marker for it; the state holds proprioception only, unless `state="full"`. The
sentences are ours, the wandering, slips and failures too.

In some tasks (handle-press, sweep-into) the expert passes through success and cannot rest in it; in others
(bin-picking, hammer) it needs `action_repeat=1`.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from efm_sim.expert import ExpertStyle, FaultSchedule, StyledExpert
from efm_sim.gym_world import GymRecipe, GymWorld
from efm_sim.mujoco_camera import MujocoCamera
from efm_sim.world import WorldSpec

import mujoco  # isort: skip, after the rendering back end is chosen

try:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
    from metaworld.policies import ENV_POLICY_MAP
except ImportError as error:
    raise ImportError(
        "metaworld:<task> needs Meta-World 3.1.1 (it pins mujoco 3.3.0): pip install metaworld==3.1.1"
    ) from error

ACTION_REPEAT = 4
PHYSICS_RATE_HZ = 80.0
MAX_PHYSICS_STEPS = 400
CAMERA = "front"
MANY_FACES = 5_000  # of a visual mesh that costs more time than it shows
FULL_STATE = 39  # hand, gripper, objects; the same one step earlier; goal

SENTENCES: Mapping[str, str] = {
    "assembly-v3": "put the ring onto the peg",
    "basketball-v3": "put the ball into the basket",
    "bin-picking-v3": "move the cube from one bin to the other",
    "box-close-v3": "put the lid onto the box",
    "button-press-topdown-v3": "press the button from above",
    "button-press-topdown-wall-v3": "press the button behind the wall from above",
    "button-press-v3": "press the button",
    "button-press-wall-v3": "press the button behind the wall",
    "coffee-button-v3": "press the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial",
    "disassemble-v3": "take the ring off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "close the faucet",
    "faucet-open-v3": "open the faucet",
    "hammer-v3": "hammer the nail into the wall",
    "hand-insert-v3": "put the gripper into the hole",
    "handle-press-side-v3": "press the handle on the side down",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle on the side up",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "peg-insert-side-v3": "put the peg into the hole in the side",
    "peg-unplug-side-v3": "pull the peg out of the hole in the side",
    "pick-out-of-hole-v3": "take the puck out of the hole",
    "pick-place-v3": "lift the puck to the goal",
    "pick-place-wall-v3": "lift the puck over the wall to the goal",
    "plate-slide-back-side-v3": "slide the plate out of the goal sideways",
    "plate-slide-back-v3": "slide the plate back out of the goal",
    "plate-slide-side-v3": "slide the plate into the goal sideways",
    "plate-slide-v3": "slide the plate into the goal",
    "push-back-v3": "push the puck back to the goal",
    "push-v3": "push the puck to the goal",
    "push-wall-v3": "push the puck round the wall to the goal",
    "reach-v3": "reach the goal",
    "reach-wall-v3": "reach the goal behind the wall",
    "shelf-place-v3": "put the puck onto the shelf",
    "soccer-v3": "push the ball into the goal",
    "stick-pull-v3": "pull the bottle with the stick",
    "stick-push-v3": "push the bottle with the stick",
    "sweep-into-v3": "sweep the puck into the hole",
    "sweep-v3": "sweep the puck off the table",
    "window-close-v3": "close the window",
    "window-open-v3": "open the window",
}

# Where an expert wanders, relative to the hand, and how it fails and slips.
WANDER = np.array([0.12, 0.10, 0.08])  # m
WAYPOINT_REACHED, WAYPOINT_PATIENCE = 0.03, 15  # m, steps
GAIN = 10.0  # of the experts' own proportional control, action per metre
LOSES_AT, LETS_GO_STEPS = (0, 12), 4  # control steps until it loses the object, and that it jerks away then
IN_THE_GRIPPER = np.array([0.0, 0.0, -0.03])  # m, where an object that is held lies, from the hand
WRONG_GOAL_BY = (0.12, 0.2)  # m, beside the goal
FAILURE_STEPS = (20, 40)  # control steps before a deliberate failure gives up
HAND = slice(0, 3)
OBJECT, GOAL = slice(4, 7), slice(36, 39)  # within the full state


class ScriptedSkill:
    """The task's own expert, made to wander, slip and fail.

    It fails by losing the object and carrying on as if it held it, by going to a wrong place, or by stopping
    short: the first is what teaches steps-to-go that a hand at the goal is not yet success.
    """

    def __init__(
        self, world: GymWorld, policy: Any, wander: int, fails: bool, rng: np.random.Generator
    ) -> None:
        self._world = world
        self._policy = policy
        self._rng = rng
        hand = world.observation[:3]
        self._waypoints = list(hand + rng.uniform(-WANDER, WANDER, (wander, 3)))
        self._waypoint_steps = 0
        self._gripper = -1.0
        self._slip_action = np.zeros(4)
        self._steps = 0
        self._fails_at = int(rng.integers(*FAILURE_STEPS)) if fails else -1
        self._goal_error = np.zeros(3)
        self._loses_at: float = np.inf  # Never.
        self._lets_go = np.zeros(4)
        if fails:
            # An error in what the expert does not look at would change nothing.
            looks_at = " ".join(policy._parse_obs(world.observation))
            kinds = ["stops short"] + ["wrong goal"] * ("goal" in looks_at)
            kinds += ["loses it"] * (not world.spec.name.startswith("metaworld:reach"))
            kind = rng.choice(kinds)
            if kind == "stops short":
                self._fails_at //= 4
            elif kind == "loses it":
                loses_at = int(rng.integers(*LOSES_AT))
                self._fails_at += loses_at
                self._loses_at, self._lets_go = loses_at, _away(rng)
            else:
                self._goal_error = _aside(WRONG_GOAL_BY, rng)

    @property
    def given_up(self) -> bool:
        """True when a deliberate failure has gone on for long enough."""
        return 0 <= self._fails_at <= self._steps

    def hold(self) -> np.ndarray:
        """Stands still and keeps the gripper as it is."""
        return np.array([0.0, 0.0, 0.0, self._gripper])

    def slip(self) -> np.ndarray:
        """Lets go and jerks away, upwards and to a side; one direction for the length of a slip."""
        if not self._slip_action.any():
            self._slip_action = _away(self._rng)
            self._gripper = -1.0
        return self._slip_action

    def act(self) -> np.ndarray:
        """Visits the waypoints that are left, then does as the task's expert says."""
        self._slip_action = np.zeros(4)
        seen = self._world.observation.copy()
        while self._waypoints:
            offset = self._waypoints[0] - seen[HAND]
            if np.linalg.norm(offset) > WAYPOINT_REACHED and self._waypoint_steps < WAYPOINT_PATIENCE:
                self._waypoint_steps += 1
                return np.array([*(GAIN * offset), self._gripper])
            self._waypoints.pop(0)
            self._waypoint_steps = 0
        self._steps += 1
        if self._steps > self._loses_at:
            if self._steps <= self._loses_at + LETS_GO_STEPS:
                return self._lets_go
            seen[OBJECT] = seen[HAND] + IN_THE_GRIPPER
        seen[GOAL] += self._goal_error
        with warnings.catch_warnings():
            # The experts' own gains exceed the action's range on purpose; it is clipped.
            warnings.simplefilter("ignore")
            action = np.asarray(self._policy.get_action(seen), np.float64)
        self._gripper = float(action[3])
        return action


def _away(rng: np.random.Generator) -> np.ndarray:
    """Returns an action that lets go and jerks up and to a side."""
    return np.array([*rng.uniform(-1.0, 1.0, 2), 0.5, -1.0])


def _aside(distance: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(-np.pi, np.pi)
    return rng.uniform(*distance) * np.array([np.cos(angle), np.sin(angle), 0.0])


def make(
    task: str,
    image_size: int = 96,
    images: bool = True,
    state: str = "proprioception",
    action_repeat: int = ACTION_REPEAT,
) -> GymWorld:
    """Factory for `make_world("metaworld:<task>")`.

    Args:
        task: One of `SENTENCES`, for example `push-v3`.
        image_size: Height and width of the picture in pixels.
        images: Whether there is a camera at all.
        state: `proprioception` (hand x, y, z and gripper), or `full` (objects and goal as well).
        action_repeat: Environment steps of 1/80 s per control step, 1..8.
    """
    if task not in SENTENCES:
        near = difflib.get_close_matches(task, SENTENCES, n=1, cutoff=0.0)[0]
        choices = ", ".join(SENTENCES)
        raise ValueError(f"metaworld: unknown task {task!r} (did you mean {near!r}?); choices: {choices}")
    if state not in ("proprioception", "full"):
        raise ValueError(f"metaworld: state must be 'proprioception' or 'full', got {state!r}")
    if not 1 <= action_repeat <= 8:
        raise ValueError(f"metaworld: action_repeat must lie in 1..8, got {action_repeat}")
    if not images and state != "full":
        raise ValueError("metaworld: images=False leaves proprioception only; use state='full' with it")
    environment_class: Any = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-goal-observable"]
    environment = environment_class(seed=0)
    # Its classes repeat the start that they were made with, unless told to draw from the seed.
    environment._freeze_rand_vec = False
    environment.seeded_rand_vec = True
    proprioception = ("hand_x", "hand_y", "hand_z", "gripper")
    length = 4 if state == "proprioception" else FULL_STATE
    camera = _camera(environment.model, image_size)
    spec = WorldSpec(
        name=f"metaworld:{task}",
        cameras={CAMERA: (image_size, image_size)} if images else {},
        state_names=proprioception + tuple(f"full_{i}" for i in range(4, length)),
        action_names=("hand_dx", "hand_dy", "hand_dz", "gripper_effort"),
        action_low=(-1.0,) * 4,
        action_high=(1.0,) * 4,
        control_rate_hz=PHYSICS_RATE_HZ / action_repeat,
        instructions=(SENTENCES[task],),
        max_steps=MAX_PHYSICS_STEPS // action_repeat,
    )

    def expert(world: GymWorld, style: ExpertStyle, seed: int) -> StyledExpert:
        rng = np.random.default_rng([seed, 1])
        faults = FaultSchedule.draw(style, spec, rng)
        policy_class: Any = ENV_POLICY_MAP[task]
        skill = ScriptedSkill(world, policy_class(), style.wander, faults.fails, rng)
        return StyledExpert(world, skill, faults)

    def info_at_reset(observation: np.ndarray) -> Mapping[str, Any]:
        info = environment.evaluate_state(observation, np.zeros(4, np.float32))[1]
        # The environment moves the goal's marker in a step only: the first picture would show an old goal.
        for name, position in environment._target_site_config:
            environment._set_pos_site(name, position)
        return info

    recipe = GymRecipe(
        spec=spec,
        action_repeat=action_repeat,
        state=lambda observation: observation[:length],
        cameras={CAMERA: lambda observation: camera.render(environment.data)} if images else {},
        success=lambda info: info["success"] > 0.0,
        distance=_distance,
        start=environment.seed,
        info_at_reset=info_at_reset,
        expert=expert,
        close=camera.close,
    )
    return GymWorld(environment, recipe)


def _distance(info: Mapping[str, Any]) -> float:
    """Returns the environment's own distance; some tasks leave it at 0 and know none."""
    distance = float(info["obj_to_target"])
    return distance if distance > 0.0 or info["success"] > 0.0 else float("nan")


def _camera(model: mujoco.MjModel, image_size: int) -> MujocoCamera:
    """Returns a view of the table top from the front, without what is slow to draw."""
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 0
    for geom in range(model.ngeom):
        mesh = model.geom_dataid[geom]
        if (
            model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH
            and mesh >= 0
            and model.mesh_facenum[mesh] > MANY_FACES
        ):
            model.geom_group[geom] = mujoco.mjNGROUP - 1
    option = mujoco.MjvOption()
    option.geomgroup[mujoco.mjNGROUP - 1] = 0
    view = mujoco.MjvCamera()
    view.lookat[:] = (0.0, 0.70, 0.04)
    view.distance, view.azimuth, view.elevation = 0.72, 270.0, -50.0
    return MujocoCamera(model, image_size, image_size, view, option)
