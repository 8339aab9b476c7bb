"""The world contract: what a simulated or wrapped environment must offer, and how one is made by name.

A world is a small object without ROS, clocks or threads: `reset` and `step` return observations, `truth`
tells what really happened, `expert` shows how it is done. `efm_sim/test/test_world_contract.py` is the
contract as a test; a world that passes it can stand behind a robot's topics. Nothing here knows physics.

A world of your own is one short file: a class with these methods, and a factory `(task, **options) -> World`
that is registered under the entry point group `efm.worlds`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Protocol, runtime_checkable

import numpy as np

from efm_sim.expert import Expert, ExpertStyle

__all__ = [
    "Expert",
    "ExpertStyle",
    "Observation",
    "Truth",
    "World",
    "WorldSpec",
    "make_world",
    "world_names",
]

ENTRY_POINT_GROUP = "efm.worlds"

# Name before the colon -> "module:factory", and what may follow the colon.
BUILT_IN: Mapping[str, tuple[str, str]] = {
    "pointmass": ("efm_sim.pointmass:make", "pointmass"),
    "table": ("efm_sim.table:make", "table"),
    "metaworld": ("efm_sim.metaworld_world:make", "metaworld:<task>, for example metaworld:push-v3"),
    "aloha": ("efm_sim.aloha_world:make", "aloha:insertion"),
    "gym": ("efm_sim.gym_world:make", "gym:<Gymnasium id>"),
}


@dataclass(frozen=True)
class Observation:
    """What the robot's sensors show.

    Attributes:
        images: Camera name -> uint8 [H, W, 3], RGB. The arrays are the caller's to keep.
        state: float32 [S], in the order of `WorldSpec.state_names`.
        step: Control steps since reset; 0 right after it.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    step: int


@dataclass(frozen=True)
class Truth:
    """What the simulator knows. Evaluation may read it, training never does.

    Attributes:
        success: Whether the task is done in the current state.
        distance: What is left to the goal, in metres or the world's own unit; 0 or more. NaN where the
            world knows no distance.
    """

    success: bool
    distance: float


@dataclass(frozen=True)
class WorldSpec:
    """Names, shapes and bounds of a world; every world validates its inputs against it.

    Attributes:
        name: The name that `make_world` was given.
        cameras: Camera name -> (height, width) in pixels; empty for a world without images.
        state_names: One name per element of the state, [S].
        action_names: One name per dimension of the action, [A].
        action_low: Lower bounds of the action, [A].
        action_high: Upper bounds of the action, [A].
        control_rate_hz: Control steps per second of simulated time.
        instructions: The instructions that a caller may sample; reset takes these and no others.
        max_steps: Greatest number of control steps of an episode; the caller stops, the world does not.
    """

    name: str
    cameras: Mapping[str, tuple[int, int]]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    control_rate_hz: float
    instructions: tuple[str, ...]
    max_steps: int

    def __post_init__(self) -> None:
        sizes = {len(self.action_names), len(self.action_low), len(self.action_high)}
        if len(sizes) != 1:
            raise ValueError(f"{self.name}: action names, low and high differ in length: {sorted(sizes)}")
        for name, low, high in zip(self.action_names, self.action_low, self.action_high, strict=True):
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise ValueError(f"{self.name}: action {name!r} needs finite low < high, got {low}, {high}")
        if not self.instructions:
            raise ValueError(f"{self.name}: a world needs at least one instruction")
        if self.control_rate_hz <= 0 or self.max_steps < 1:
            raise ValueError(f"{self.name}: control_rate_hz and max_steps must be positive")

    def checked_action(self, action: np.ndarray) -> np.ndarray:
        """Returns the action as float64 [A] within bounds; refuses a wrong shape and non-finite values."""
        array = np.asarray(action, np.float64)
        if array.shape != (len(self.action_names),):
            raise ValueError(
                f"{self.name}: expected an action of shape ({len(self.action_names)},) "
                f"{self.action_names}, got shape {array.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{self.name}: the action is not finite: {array.tolist()}")
        return np.clip(array, self.action_low, self.action_high)

    def checked_instruction(self, instruction: str | None, rng: np.random.Generator) -> str:
        """Returns the instruction, sampled when None; an unknown one suggests the nearest known."""
        if instruction is None:
            return self.instructions[int(rng.integers(len(self.instructions)))]
        if instruction not in self.instructions:
            near = difflib.get_close_matches(instruction, self.instructions, n=1, cutoff=0.0)
            raise ValueError(
                f"{self.name}: unknown instruction {instruction!r}; the nearest of "
                f"{len(self.instructions)} known is {near[0]!r}"
            )
        return instruction


@runtime_checkable
class World(Protocol):
    """One robot in one scene.

    Call order: `reset`, then any number of `step`, `truth` and `expert`; `close` once at the end (more often
    does no harm). All calls come from one thread, the one of the first `reset`: rendering contexts do not
    travel between threads. Two worlds given the same calls give the same observations, bit for bit.
    """

    @property
    def spec(self) -> WorldSpec:
        """Names, shapes and bounds; the same object for the whole life of the world."""

    @property
    def instruction(self) -> str:
        """The instruction of the running episode; empty before the first reset."""

    def reset(self, seed: int, instruction: str | None = None) -> Observation:
        """Begins an episode.

        Args:
            seed: Decides the start, and the instruction where none is given.
            instruction: One of `spec.instructions`, or None for one that the seed decides.

        Raises:
            ValueError: The instruction is unknown; the message suggests the nearest.
        """

    def step(self, action: np.ndarray) -> Observation:
        """Advances by one control period.

        Args:
            action: Float [A]; clipped to the bounds.

        Raises:
            ValueError: Wrong shape or values that are not finite; the world has then not moved.
            RuntimeError: There was no reset before.
        """

    def truth(self) -> Truth:
        """Returns what really holds in the current state."""

    def expert(self, style: ExpertStyle, seed: int) -> Expert:
        """Returns an expert for the running episode, from its current state on.

        Raises:
            NotImplementedError: The world has no scripted expert.
        """

    def close(self) -> None:
        """Frees rendering contexts and wrapped environments."""


WorldFactory = Callable[..., World]


def world_names() -> dict[str, str]:
    """Returns family name -> how it is written, for the built-in worlds and those of other packages."""
    names = {family: usage for family, (_, usage) in BUILT_IN.items()}
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        names.setdefault(entry.name, f"{entry.name} (from {entry.value})")
    return names


def make_world(name: str, **options: object) -> World:
    """Makes a world by name, for example `make_world("table", blocks=4)`.

    Args:
        name: `pointmass`, `table`, `metaworld:<task>`, `aloha:<task>`, `gym:<id>`, or `<family>[:<task>]`
            of a package that registers its factory under the entry point group `efm.worlds`.
        **options: Handed to the world's factory, which documents them and checks their values.

    Raises:
        ValueError: The name or an option is unknown; the message lists the choices.
        ImportError: The world needs a package that is not installed; the message says which.
    """
    family, _, task = name.partition(":")
    require_family(name)
    factory = _factory(family)
    parameters = inspect.signature(factory).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [option for option in options if option not in parameters]
    if unknown and not open_ended:
        choices = ", ".join(list(parameters)[1:]) or "none"
        raise ValueError(f"world {name!r} has no option {unknown[0]!r}; choices: {choices}")
    return factory(task, **options)


def require_family(name: str) -> None:
    """Checks what stands before the colon of a world's name, without making the world.

    Raises:
        ValueError: It is unknown; the message lists the choices.
    """
    family, known = name.partition(":")[0], world_names()
    if family not in known:
        near = difflib.get_close_matches(family, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown world {name!r}{hint}; choices: {'; '.join(known.values())}")


def _factory(family: str) -> WorldFactory:
    if family in BUILT_IN:
        module, _, attribute = BUILT_IN[family][0].partition(":")
        return getattr(importlib.import_module(module), attribute)
    return next(
        entry for entry in metadata.entry_points(group=ENTRY_POINT_GROUP) if entry.name == family
    ).load()
