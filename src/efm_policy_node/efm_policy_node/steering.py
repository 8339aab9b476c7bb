"""From a gamepad's axes and buttons to what a person wants: actions of a robot, and switches. No ROS in it.

Each action dimension is steered by one control, written as a few words:
    axis 1            a stick; axis 1 reversed turns it round; axis 1 half takes half of the speed
    buttons 4 5       down while the first is pressed, up while the second is
    toggle 6          from low to high and back at every press: a gripper
    still             not steered
Where holding still means zero (speeds, steps) the deflection is the command; else (places) it moves the
command away from where the robot is, and letting go stays there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from efm_core.embodiment import Action
from efm_core.errors import BadRequest, nearest

KINDS = ("axis", "buttons", "toggle", "still")
MODIFIERS: Mapping[str, float] = {"reversed": -1.0, "half": 0.5}
# A place without a limit on its change crosses its range in so long at full deflection [s].
CROSSING_S = 2.0


@dataclass(frozen=True)
class Control:
    """How one dimension is steered.

    Attributes:
        kind: See the description of the file.
        numbers: Of the axis or buttons.
        factor: Of the deflection.
    """

    kind: Literal["axis", "buttons", "toggle", "still"]
    numbers: tuple[int, ...] = ()
    factor: float = 1.0


@dataclass(frozen=True)
class Pad:
    """What a gamepad says: axes in [-1, 1], buttons 0 or 1. Missing ones count as 0."""

    axes: Sequence[float] = ()
    buttons: Sequence[int] = ()

    def axis(self, index: int) -> float:
        """Returns an axis."""
        return float(self.axes[index]) if index < len(self.axes) else 0.0

    def button(self, index: int) -> bool:
        """Whether a button is pressed; one below 0 does not exist."""
        return 0 <= index < len(self.buttons) and bool(self.buttons[index])


def read_control(text: str) -> Control:
    """Reads the words of one control.

    Raises:
        BadRequest: Unknown words, or numbers missing.
    """
    words = text.split()
    kind = words[0] if words else ""
    if kind not in KINDS:
        raise BadRequest(
            f"steering '{text}': expected one of {', '.join(KINDS)}, found '{kind}'{nearest(kind, KINDS)}"
        )
    numbers = tuple(int(word) for word in words[1:] if word.isdigit())
    factor = 1.0
    for word in words[1:]:
        if not word.isdigit():
            if word not in MODIFIERS:
                raise BadRequest(
                    f"steering '{text}': expected numbers or {', '.join(MODIFIERS)}, found "
                    f"'{word}'{nearest(word, MODIFIERS)}"
                )
            factor *= MODIFIERS[word]
    wanted = {"axis": 1, "buttons": 2, "toggle": 1, "still": 0}[kind]
    if len(numbers) != wanted:
        raise BadRequest(
            f"steering '{text}': expected {wanted} number(s) after '{kind}', found {len(numbers)}"
        )
    return Control(kind, numbers, factor)  # type: ignore[arg-type]


class Steering:
    """Turns a gamepad into actions. Call order: `begin`, then `step` once per control period."""

    def __init__(
        self, action: Action, controls: Sequence[str], speed: float, deadzone: float, period_s: float
    ) -> None:
        """Reads the controls.

        Args:
            action: Of the robot.
            controls: One for each dimension; empty: axis 0 for the first, axis 1 for the second, and so on.
            speed: Share of a dimension's greatest speed or range at full deflection.
            deadzone: Deflections of an axis below this are none.
            period_s: Control period.

        Raises:
            BadRequest: Not one control for each dimension, or words that mean nothing.
        """
        names = [dimension.name for dimension in action.dimensions]
        texts = list(controls) or [f"axis {index}" for index in range(len(names))]
        if len(texts) != len(names):
            raise BadRequest(
                f"steering: expected one control for each of {len(names)} dimensions ({', '.join(names)}), "
                f"found {len(texts)}"
            )
        self._controls = [read_control(text) for text in texts]
        self._low = np.array([dimension.low for dimension in action.dimensions])
        self._high = np.array([dimension.high for dimension in action.dimensions])
        self._goes = action.hold_still != "zero"
        rates = np.array([dimension.max_rate for dimension in action.dimensions])
        crossing = (self._high - self._low) / CROSSING_S
        self._stride = speed * period_s * np.where(np.isfinite(rates), rates, crossing)
        self._speed, self._deadzone = speed, deadzone
        self._target = np.clip(np.zeros(len(names)), self._low, self._high)
        self._pressed = [False] * len(names)

    def begin(self, where: np.ndarray | None) -> bool:
        """Begins to steer from where the robot is, float [D].

        Returns:
            Whether that can be done: False where places are commanded and nobody knows the present one.
        """
        if where is not None:
            self._target = np.clip(np.asarray(where, np.float64), self._low, self._high)
        self._pressed = [True] * len(self._controls)  # A button that is held from before is no press.
        return where is not None or not self._goes

    def step(self, pad: Pad) -> np.ndarray:
        """Returns what the person wants now, float [D]."""
        for index, control in enumerate(self._controls):
            deflection = self._deflection(control, pad)
            if control.kind == "toggle":
                pressed = pad.button(control.numbers[0])
                if pressed and not self._pressed[index]:
                    middle = (self._low[index] + self._high[index]) / 2
                    self._target[index] = (
                        self._low[index] if self._target[index] > middle else self._high[index]
                    )
                self._pressed[index] = pressed
            elif self._goes:
                moved = self._target[index] + deflection * self._stride[index]
                self._target[index] = min(max(moved, self._low[index]), self._high[index])
            else:
                reach = self._high[index] if deflection > 0 else -self._low[index]
                self._target[index] = deflection * self._speed * reach
        return self._target.copy()

    def _deflection(self, control: Control, pad: Pad) -> float:
        if control.kind == "axis":
            value = pad.axis(control.numbers[0])
            return 0.0 if abs(value) < self._deadzone else value * control.factor
        if control.kind == "buttons":
            down, up = (pad.button(number) for number in control.numbers)
            return (float(up) - float(down)) * control.factor
        return 0.0


@dataclass
class Switches:
    """Finds presses of the buttons that mean something: name -> button number, negative for none."""

    buttons: Mapping[str, int]
    _before: set[str] = field(default_factory=set)

    def pressed(self, pad: Pad) -> list[str]:
        """Returns the names whose button has just gone down."""
        now = {name for name, number in self.buttons.items() if pad.button(number)}
        fresh = [name for name in self.buttons if name in now - self._before]
        self._before = now
        return fresh
