"""Scripted experts that are imperfect on purpose, and one episode of them.

Steps-to-go is only as good as the states that demonstrations visit, and a perfect expert never visits a
mistake. An `ExpertStyle` says how an expert errs; `FaultSchedule` draws the errors of one episode ahead of
time, so that an episode is a function of its seed. What an expert does when it does not err is the business
of each world, as a `Skill`. Nothing here knows ROS or a file format.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from efm_sim.world import Truth, World, WorldSpec

# What a fault schedule asks for in one step.
ACT, PAUSE, SLIP = 0, 1, 2


@dataclass(frozen=True)
class ExpertStyle:
    """How an expert errs. All zero, as in `STYLES["perfect"]`, means that it does not.

    Probabilities are per control step unless marked; lengths are in control steps.

    Attributes:
        wander: Random waypoints that are visited before the task is begun.
        noise: Standard deviation of the noise on every action, as a fraction of the action's range.
        noise_burst: Probability that a burst of stronger noise begins.
        noise_burst_length: Length of a burst.
        noise_burst_scale: Standard deviation within a burst, as a fraction of the action's range.
        pause: Probability that a pause begins, in which the expert holds still.
        pause_length: Length of a pause.
        slip: Probability that a forced slip begins: a movement that undoes or spoils the grip or the push.
            The expert recovers afterwards, since it looks at the state and not at the clock.
        slip_length: Length of a slip.
        fail: Probability, per episode, that the attempt is a deliberate failure: the wrong object, the
            wrong place, or stopping short.
        rest_steps: Least and greatest number of steps that an episode runs on at rest after true success
            (or after a deliberate failure has come to its end).
    """

    wander: int = 0
    noise: float = 0.0
    noise_burst: float = 0.0
    noise_burst_length: int = 6
    noise_burst_scale: float = 0.3
    pause: float = 0.0
    pause_length: int = 6
    slip: float = 0.0
    slip_length: int = 5
    fail: float = 0.0
    rest_steps: tuple[int, int] = (5, 8)

    def __post_init__(self) -> None:
        for name in ("noise_burst", "pause", "slip", "fail"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"ExpertStyle.{name} must be a probability in [0, 1], got {value}")
        for name in ("noise", "noise_burst_scale"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0.0):
                raise ValueError(f"ExpertStyle.{name} must be a fraction, 0 or more, got {value}")
        if self.wander < 0 or int(self.wander) != self.wander:
            raise ValueError(f"ExpertStyle.wander must be a whole number, 0 or more, got {self.wander}")
        for name in ("noise_burst_length", "pause_length", "slip_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"ExpertStyle.{name} must be 1 step or more, got {getattr(self, name)}")
        least, greatest = self.rest_steps
        if not 0 <= least <= greatest:
            raise ValueError(f"ExpertStyle.rest_steps must be (least, greatest), got {self.rest_steps}")

    @staticmethod
    def named(name: str, **changes: Any) -> ExpertStyle:
        """Returns a preset of `STYLES` with the given fields changed; an unknown name lists the choices."""
        if name not in STYLES:
            near = difflib.get_close_matches(name, STYLES, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"unknown expert style {name!r}{hint}; choices: {', '.join(sorted(STYLES))}")
        unknown = set(changes) - {field.name for field in fields(ExpertStyle)}
        if unknown:
            choices = ", ".join(field.name for field in fields(ExpertStyle))
            raise ValueError(f"unknown ExpertStyle field {min(unknown)!r}; choices: {choices}")
        return replace(STYLES[name], **changes)


STYLES: Mapping[str, ExpertStyle] = {
    "perfect": ExpertStyle(),
    "imperfect": ExpertStyle(wander=1, noise=0.05, noise_burst=0.02, pause=0.01, slip=0.02, fail=0.1),
    "sloppy": ExpertStyle(
        wander=2, noise=0.12, noise_burst=0.05, pause=0.03, slip=0.04, slip_length=8, fail=0.25
    ),
}


class Expert(Protocol):
    """Acts in one episode of one world, from the world's privileged state.

    Call `act` once before each `World.step`. Between two calls the world must have been stepped once.
    """

    @property
    def intends_success(self) -> bool:
        """False when this attempt is a deliberate failure."""

    @property
    def finished(self) -> bool:
        """True when the expert has rested long enough after success, or after the end of its failure."""

    def act(self) -> np.ndarray:
        """Returns the action for the world's current state, float64 [A], within the spec's bounds."""


class Skill(Protocol):
    """What a world must provide so that `StyledExpert` can act in it; one object per episode."""

    def act(self) -> np.ndarray:
        """Returns the action that furthers the task, or the deliberate failure, from here, [A]."""

    def hold(self) -> np.ndarray:
        """Returns the action that keeps the robot at rest, [A]."""

    def slip(self) -> np.ndarray:
        """Returns one step of a forced slip, [A]."""

    @property
    def given_up(self) -> bool:
        """True when a deliberate failure has come to its end; always False in an honest attempt."""


@dataclass(frozen=True)
class FaultSchedule:
    """The errors of one episode, drawn ahead of time.

    Attributes:
        mode: int8 [T], one of ACT, PAUSE, SLIP.
        noise: float64 [T, A], noise to add to the action, in the action's units.
        fails: Whether the attempt is a deliberate failure.
        rest_steps: Steps at rest after the end.
    """

    mode: np.ndarray
    noise: np.ndarray
    fails: bool
    rest_steps: int

    @staticmethod
    def draw(style: ExpertStyle, spec: WorldSpec, rng: np.random.Generator) -> FaultSchedule:
        """Draws a schedule as long as the world's longest episode."""
        steps = spec.max_steps
        span = np.asarray(spec.action_high) - np.asarray(spec.action_low)
        fails = bool(rng.random() < style.fail)
        rest_steps = int(rng.integers(style.rest_steps[0], style.rest_steps[1] + 1))
        scale = np.where(
            _spells(rng, steps, style.noise_burst, style.noise_burst_length),
            max(style.noise_burst_scale, style.noise),
            style.noise,
        )
        noise = rng.standard_normal((steps, span.size)) * scale[:, None] * span
        mode = np.full(steps, ACT, np.int8)
        mode[_spells(rng, steps, style.pause, style.pause_length)] = PAUSE
        mode[_spells(rng, steps, style.slip, style.slip_length)] = SLIP
        return FaultSchedule(mode, noise, fails, rest_steps)


def _spells(rng: np.random.Generator, steps: int, probability: float, length: int) -> np.ndarray:
    """Returns bool [steps]: True within spells of `length` that begin with `probability` in each step."""
    if probability == 0.0:
        return np.zeros(steps, bool)
    begins = rng.random(steps) < probability
    return np.convolve(begins, np.ones(length))[:steps] > 0


class StyledExpert:
    """An `Expert` made of a world's `Skill` and a `FaultSchedule`."""

    def __init__(self, world: World, skill: Skill, faults: FaultSchedule) -> None:
        self._world = world
        self._skill = skill
        self._faults = faults
        self._low = np.asarray(world.spec.action_low)
        self._high = np.asarray(world.spec.action_high)
        self._step = 0
        self._rested = 0
        self._hold_undoes = False

    @property
    def intends_success(self) -> bool:
        """See `Expert.intends_success`."""
        return not self._faults.fails

    @property
    def finished(self) -> bool:
        """See `Expert.finished`."""
        if self._rested < max(1, self._faults.rest_steps):
            return False
        return self._world.truth().success or self._skill.given_up

    def act(self) -> np.ndarray:
        """See `Expert.act`."""
        index = self._step % len(self._faults.mode)
        self._step += 1
        # What follows success must look like success: no noise, no slips. Where holding still undoes success,
        # since a handle is sprung or a robot coasts, the expert comes back and then stays by keeping at it.
        if self._world.truth().success or self._skill.given_up:
            self._rested += 1
            action = self._skill.act() if self._hold_undoes else self._skill.hold()
            return np.clip(action, self._low, self._high)
        if self._rested:
            self._rested = 0
            self._hold_undoes = True
            return np.clip(self._skill.act(), self._low, self._high)
        mode = self._faults.mode[index]
        if mode == PAUSE:
            return np.clip(self._skill.hold(), self._low, self._high)
        action = self._skill.slip() if mode == SLIP else self._skill.act()
        return np.clip(action + self._faults.noise[index], self._low, self._high)


@dataclass(frozen=True)
class ExpertEpisode:
    """One episode of an expert; T actions lie between T + 1 observations.

    Attributes:
        instruction: What the world was asked to do.
        images: Camera name -> uint8 [T + 1, H, W, 3].
        states: float32 [T + 1, S].
        actions: float32 [T, A], action t leads from observation t to t + 1.
        success: bool [T + 1], the world's ground truth.
        distance: float32 [T + 1], the world's ground truth.
        intends_success: False for a deliberate failure.
    """

    instruction: str
    images: Mapping[str, np.ndarray]
    states: np.ndarray
    actions: np.ndarray
    success: np.ndarray
    distance: np.ndarray
    intends_success: bool

    @property
    def succeeded(self) -> bool:
        """True when the episode ends inside the success set."""
        return bool(self.success[-1])


def run_expert_episode(
    world: World,
    style: ExpertStyle,
    seed: int,
    max_steps: int | None = None,
    instruction: str | None = None,
) -> ExpertEpisode:
    """Runs one episode to the expert's end (`rest_steps` past the first true success) or to `max_steps`.

    Args:
        world: Any world that has an expert.
        style: How the expert errs.
        seed: Decides the start, the sampled instruction and every error.
        max_steps: Greatest number of actions; None means the world's own.
        instruction: What to do; None lets the world sample it.
    """
    limit = world.spec.max_steps if max_steps is None else max_steps
    observation = world.reset(seed, instruction)
    expert = world.expert(style, seed)
    observations, truths = [observation], [world.truth()]
    actions: list[np.ndarray] = []
    while len(actions) < limit and not expert.finished:
        action = expert.act()
        observations.append(world.step(action))
        truths.append(world.truth())
        actions.append(action)
    return _episode(world, observations, truths, actions, expert.intends_success)


def _episode(
    world: World, observations: list, truths: list[Truth], actions: list[np.ndarray], intends_success: bool
) -> ExpertEpisode:
    return ExpertEpisode(
        instruction=world.instruction,
        images={name: np.stack([o.images[name] for o in observations]) for name in world.spec.cameras},
        states=np.stack([o.state for o in observations]),
        actions=np.asarray(actions, np.float32).reshape(len(actions), len(world.spec.action_low)),
        success=np.asarray([t.success for t in truths], bool),
        distance=np.asarray([t.distance for t in truths], np.float32),
        intends_success=intends_success,
    )
