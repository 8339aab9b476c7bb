"""Any Gymnasium environment with a continuous action as a `World`.

`make_world("gym:<id>")` takes an environment as it is: flat observations become the state, uint8 pictures and
`render()` become cameras, `info["is_success"]` or `info["success"]` becomes the truth. An environment that
needs more (own pictures, an expert, sentences) is one small file that fills a `GymRecipe`, as
`metaworld_world.py` and `aloha_world.py` do. Rewards are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from efm_sim import headless_gl  # noqa: F401, chooses a back end before anything imports MuJoCo
from efm_sim.expert import Expert, ExpertStyle
from efm_sim.world import Observation, Truth, WorldSpec

try:
    import gymnasium
except ImportError as error:
    raise ImportError("this world needs Gymnasium: pip install gymnasium") from error

RENDER_CAMERA = "render"
DEFAULT_MAX_STEPS = 200
DEFAULT_RATE_HZ = 10.0


@dataclass(frozen=True)
class GymRecipe:
    """What the adapter needs to know about one environment.

    Attributes:
        spec: The world's spec; rate and length count after action repeat.
        action_repeat: Environment steps per control step.
        state: Environment observation -> float [S].
        cameras: Camera name -> function of the environment observation that returns uint8 [H, W, 3].
        success: `info` of the newest step (empty right after reset) -> whether the task is done.
        distance: `info` -> what is left to the goal; NaN where the environment does not tell.
        start: Called with the seed right before the environment's reset; most need nothing.
        info_at_reset: Returns the `info` that a step would have given for the state after reset.
        expert: Makes the expert of a running episode, None where there is none.
        close: Frees what the cameras hold.
        runs_on: Whether stepping on after the environment's own end is sound; if not, it then stands still.
    """

    spec: WorldSpec
    action_repeat: int
    state: Callable[[Any], np.ndarray]
    cameras: Mapping[str, Callable[[Any], np.ndarray]]
    success: Callable[[Mapping[str, Any]], bool]
    distance: Callable[[Mapping[str, Any]], float]
    start: Callable[[int], None] = lambda seed: None
    info_at_reset: Callable[[Any], Mapping[str, Any]] = lambda observation: {}
    expert: Callable[[GymWorld, ExpertStyle, int], Expert] | None = None
    close: Callable[[], None] = lambda: None
    runs_on: bool = False


class GymWorld:
    """One Gymnasium environment behind the `World` protocol.

    The caller ends episodes. An environment that ends its own before that stands still until the next reset,
    unless its recipe says that it can run on.

    Attributes:
        environment: The wrapped environment.
        observation: Its newest observation, as it gave it; privileged, for experts.
    """

    def __init__(self, environment: gymnasium.Env, recipe: GymRecipe) -> None:
        self.spec = recipe.spec
        self.environment = environment
        self.observation: Any = None
        self.instruction = ""
        self._recipe = recipe
        self._info: Mapping[str, Any] = {}
        self._steps = -1
        self._ended = False
        self._closed = False

    def reset(self, seed: int, instruction: str | None = None) -> Observation:
        """See `World.reset`."""
        self.instruction = self.spec.checked_instruction(instruction, np.random.default_rng(seed))
        self._recipe.start(seed)
        self.observation, _ = self.environment.reset(seed=seed)
        self._info = self._recipe.info_at_reset(self.observation)
        self._steps = 0
        self._ended = False
        return self._observation()

    def step(self, action: np.ndarray) -> Observation:
        """Repeats the action for the whole control step; see `World.step`."""
        if self._steps < 0:
            raise RuntimeError(f"{self.spec.name}: step before the first reset")
        command = self.spec.checked_action(action).astype(self.environment.action_space.dtype)
        for _ in range(self._recipe.action_repeat):
            if self._ended and not self._recipe.runs_on:
                break
            self.observation, _, terminated, truncated, self._info = self.environment.step(command)
            self._ended = terminated or truncated
        self._steps += 1
        return self._observation()

    def truth(self) -> Truth:
        """See `World.truth`."""
        return Truth(bool(self._recipe.success(self._info)), float(self._recipe.distance(self._info)))

    def expert(self, style: ExpertStyle, seed: int) -> Expert:
        """See `World.expert`."""
        if self._recipe.expert is None:
            raise NotImplementedError(f"{self.spec.name} has no scripted expert; demonstrate by hand")
        return self._recipe.expert(self, style, seed)

    def close(self) -> None:
        """Closes the environment and the cameras."""
        if not self._closed:
            self._closed = True
            self._recipe.close()
            self.environment.close()

    def _observation(self) -> Observation:
        images = {name: camera(self.observation) for name, camera in self._recipe.cameras.items()}
        state = np.asarray(self._recipe.state(self.observation), np.float32)
        return Observation(images, state, self._steps)


def make(
    task: str,
    image_size: int = 96,
    render: bool = False,
    action_repeat: int = 1,
    rate_hz: float = 0.0,
    max_steps: int = 0,
    instruction: str = "",
    options: Mapping[str, Any] | None = None,
) -> GymWorld:
    """Factory for `make_world("gym:<id>")`.

    Args:
        task: A Gymnasium id, for example `Pendulum-v1`; `<module>:<id>` imports the module first.
        image_size: Height and width of every camera in pixels.
        render: Whether the environment's `render()` becomes a camera.
        action_repeat: Environment steps per control step.
        rate_hz: Environment steps per second; 0 means the environment's `render_fps`, or 10 without one.
        max_steps: Longest episode in control steps; 0 means the registered length, or 200 without one.
        instruction: The sentence for the task; empty makes one from the id.
        options: Arguments for the environment's constructor.
    """
    if not task:
        raise ValueError("gym needs an id after the colon, for example gym:Pendulum-v1")
    arguments = dict(options or {})
    if render:
        arguments["render_mode"] = "rgb_array"
    # -1 takes the time limit away: the caller ends episodes.
    try:
        environment = gymnasium.make(task, max_episode_steps=-1, **arguments)
    except gymnasium.error.Error as error:  # An id that is unknown or too old, or a package that is missing.
        raise ValueError(f"gym:{task}: {error}") from error
    registered = gymnasium.spec(task).max_episode_steps or DEFAULT_MAX_STEPS * action_repeat
    rate_hz = rate_hz or float(environment.metadata.get("render_fps") or DEFAULT_RATE_HZ)
    low, high = action_bounds(environment.action_space, task)
    leaves = _leaves(environment.observation_space, task)
    pictures = [(name, path) for name, path, space in leaves if _is_picture(space)]
    flat = [(name, path, space) for name, path, space in leaves if not _is_picture(space)]
    cameras = {name: _picture(path, image_size) for name, path in pictures}
    if render:
        cameras[RENDER_CAMERA] = lambda observation: resized(environment.render(), image_size)
    spec = WorldSpec(
        name=f"gym:{task}",
        cameras={name: (image_size, image_size) for name in cameras},
        state_names=tuple(f"{name}_{i}" for name, _, space in flat for i in range(int(np.prod(space.shape)))),
        action_names=tuple(f"action_{i}" for i in range(len(low))),
        action_low=low,
        action_high=high,
        control_rate_hz=rate_hz / action_repeat,
        instructions=(instruction or f"solve {task}",),
        max_steps=max_steps or -(-registered // action_repeat),
    )
    recipe = GymRecipe(
        spec=spec,
        action_repeat=action_repeat,
        state=lambda observation: _flat(observation, [path for _, path, _ in flat]),
        cameras=cameras,
        success=lambda info: bool(info.get("is_success", info.get("success", False))),
        distance=lambda info: float("nan"),
    )
    return GymWorld(environment, recipe)


def action_bounds(space: gymnasium.Space, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the bounds of a flat, bounded, continuous action; refuses any other kind."""
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"{name}: a robot needs a flat continuous action (Box [A]), found {space}")
    if not space.is_bounded():
        raise ValueError(f"{name}: the action has no bounds: {space}; wrap it in RescaleAction first")
    return tuple(float(v) for v in space.low), tuple(float(v) for v in space.high)


def resized(picture: Any, size: int) -> np.ndarray:
    """Returns a new picture, uint8 [size, size, 3]."""
    return cv2.resize(np.ascontiguousarray(picture), (size, size), interpolation=cv2.INTER_AREA)


def _leaves(
    space: gymnasium.Space, name: str, path: tuple[str, ...] = ()
) -> list[tuple[str, tuple[str, ...], gymnasium.spaces.Box]]:
    """Returns name, path and space of every array in an observation."""
    if isinstance(space, gymnasium.spaces.Dict):
        return [leaf for key, sub in space.items() for leaf in _leaves(sub, name, (*path, key))]
    if not isinstance(space, gymnasium.spaces.Box):
        raise ValueError(f"{name}: an observation must be made of arrays (Box), found {space} at {path}")
    return [("_".join(path) or "observation", path, space)]


def _picture(path: Sequence[str], size: int) -> Callable[[Any], np.ndarray]:
    return lambda observation: resized(_at(observation, path), size)


def _is_picture(space: gymnasium.spaces.Box) -> bool:
    return space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[2] == 3


def _at(observation: Any, path: Sequence[str]) -> np.ndarray:
    for key in path:
        observation = observation[key]
    return observation


def _flat(observation: Any, paths: Sequence[Sequence[str]]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(np.ravel(_at(observation, path)) for path in paths)])
