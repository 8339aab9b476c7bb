"""Rewards, returns and success, all made of d, the predicted number of steps to go.

The reward is how far d fell in one step: r_t = d_t - d_t+1; success is that d stays at or below a threshold.
There is no other reward and no value network: REINFORCE uses the discounted returns as they are.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

FloatVector = npt.NDArray[np.float64]


def rewards(d: npt.ArrayLike) -> FloatVector:
    """Returns the reward of every step.

    Args:
        d: [T + 1] steps to go at every observation of an episode, the terminal one included.

    Returns:
        float64 [T].

    Raises:
        ValueError: empty, not a vector, or not finite (an observation that was not labelled).
    """
    values = _vector(d, "steps to go")
    if not len(values):
        raise ValueError("steps to go: expected at least the terminal observation, found none")
    return values[:-1] - values[1:]


def discounted_returns(r: npt.ArrayLike, gamma: float) -> FloatVector:
    """Returns R_t = sum over i >= t of gamma^(i - t) * r_i, without bootstrap.

    Args:
        r: [T] rewards.
        gamma: 0 (one-step improvement) .. 1.

    Returns:
        float64 [T].

    Raises:
        ValueError: gamma out of range; rewards not a finite vector.
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma: expected 0 .. 1, found {gamma}")
    returns = _vector(r, "rewards").copy()
    for index in range(len(returns) - 2, -1, -1):
        returns[index] += gamma * returns[index + 1]
    return returns


class SuccessDetector:
    """Sees success when d was at or below a threshold at `hold` observations in a row; then stays at it.

    Args:
        threshold: s, in steps.
        hold: observations in a row, at least 1; more than 1 makes a single lucky prediction harmless.

    Attributes:
        held: how many observations in a row, up to the newest, were at or below the threshold.
        succeeded: whether success was seen since the last `reset`.
    """

    def __init__(self, threshold: float, hold: int) -> None:
        if not (math.isfinite(threshold) and threshold >= 0) or hold < 1:
            raise ValueError(
                f"success: expected a threshold >= 0 and hold >= 1, found threshold {threshold}, hold {hold}"
            )
        self.threshold = threshold
        self.hold = hold
        self.held = 0
        self.succeeded = False

    def update(self, d: float) -> bool:
        """Takes the steps to go of one observation and returns whether success was seen; NaN is none."""
        self.held = self.held + 1 if d <= self.threshold else 0
        self.succeeded = self.succeeded or self.held >= self.hold
        return self.succeeded

    def reset(self) -> None:
        """Begins a new episode."""
        self.held = 0
        self.succeeded = False


def first_success(d: npt.ArrayLike, threshold: float, hold: int) -> int:
    """Returns the index in d [N] at which a `SuccessDetector` first sees success; -1 where it never does."""
    detector = SuccessDetector(threshold, hold)
    for index, value in enumerate(np.asarray(d, dtype=np.float64)):
        if detector.update(float(value)):
            return index
    return -1


def _vector(values: npt.ArrayLike, what: str) -> FloatVector:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"{what}: expected a vector, found the shape {list(vector.shape)}")
    if not np.isfinite(vector).all():
        index = int(np.argmin(np.isfinite(vector)))
        raise ValueError(f"{what}: expected finite numbers, found {vector[index]} at index {index}")
    return vector
