"""Steps to go: how many control steps are left until the goal, as bins, a distribution and one number d.

Bin k holds the steps k * width .. (k + 1) * width - 1 and stands for their mean; the last bin also holds
everything above. The learner makes targets with `bin_of`, everybody reads predictions with `combine`. Losses
live in the learner.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]


class StepsToGoBins:
    """Bins over the number of steps that are left.

    Args:
        bins: number of bins K, at least 2.
        width: control steps in a bin, at least 1.
    """

    def __init__(self, bins: int, width: int) -> None:
        if bins < 2 or width < 1:
            raise ValueError(
                f"steps-to-go bins: expected bins >= 2 and width >= 1, found bins {bins}, width {width}"
            )
        self.bins = int(bins)
        self.width = int(width)
        # The mean of whole numbers, so that width 1 gives 0, 1, 2, ... exactly.
        self.centers: npt.NDArray[np.float32] = (
            np.arange(self.bins, dtype=np.float32) * self.width + (self.width - 1) / 2
        ).astype(np.float32)
        self.centers.flags.writeable = False

    def bin_of(self, steps: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Returns the bin of every number of steps (any shape, >= 0); more than fit go to the last bin.

        Raises:
            ValueError: where a number is negative or not finite.
        """
        values = np.asarray(steps)
        if values.size and not (np.isfinite(values).all() and values.min() >= 0):
            raise ValueError(
                f"steps to go: expected finite numbers >= 0, found {values.min()} .. {values.max()}"
            )
        top = self.bins * self.width - 1
        return np.asarray(np.minimum(values, top) // self.width, dtype=np.int64)

    def expectation(self, probabilities: FloatArray) -> FloatArray:
        """Returns d = E[steps to go] [...] under the probabilities [..., K]."""
        self._check(probabilities)
        return np.asarray(probabilities @ self.centers)

    def spread(self, probabilities: FloatArray) -> FloatArray:
        """Returns the standard deviation [...] in steps of the distributions [..., K]."""
        self._check(probabilities)
        mean = np.asarray(probabilities @ self.centers)
        offsets = self.centers - mean[..., None]
        return np.asarray(np.sqrt(np.maximum((probabilities * offsets * offsets).sum(axis=-1), 0.0)))

    def _check(self, probabilities: FloatArray) -> None:
        if np.ndim(probabilities) < 1 or np.shape(probabilities)[-1] != self.bins:
            raise ValueError(
                f"steps-to-go distribution: expected {self.bins} bins on the last axis, "
                f"found the shape {np.shape(probabilities)}"
            )


def combine(
    logits: FloatArray, how: str, bins: StepsToGoBins
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Makes one prediction out of the heads of an ensemble.

    Args:
        logits: [B, E, K], E heads for each of B observations.
        how: "mean" averages the distributions of the heads; "max" takes, for each observation, the head that
            sees the most steps to go (pessimistic: no single optimist can announce success).
        bins: what the K bins stand for.

    Returns:
        d [B] in steps; spread [B], standard deviation in steps of the combined distribution; disagreement
        [B], largest difference in steps between the heads' own d (0 with one head); probabilities [B, K].

    Raises:
        ValueError: wrong shape, no heads, or an unknown way to combine.
    """
    if np.ndim(logits) != 3 or np.shape(logits)[1] == 0:
        raise ValueError(f"steps-to-go logits: expected the shape [B, E, K], found {np.shape(logits)}")
    each = softmax(logits)
    of_heads = bins.expectation(each)
    if how == "mean":
        probabilities = each.mean(axis=1)
    elif how == "max":
        probabilities = each[np.arange(len(each)), of_heads.argmax(axis=1)]
    else:
        raise ValueError(f"combination of heads: expected 'mean' or 'max', found '{how}'")
    disagreement = np.ptp(of_heads, axis=1)
    return bins.expectation(probabilities), bins.spread(probabilities), disagreement, probabilities


def softmax(logits: FloatArray) -> FloatArray:
    """Returns probabilities along the last axis, in the dtype of `logits`; any finite logits will do."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))
