"""Actions as tokens: every dimension of an action becomes the index of one of its bins, and back.

Bin k of a dimension stands for low + (high - low) * k / (bins - 1): low, high and, with an odd number of
bins, the middle are exact values; a gripper's two bins are exactly closed and open. Sampling is in `policy`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from efm_core.embodiment import Action
from efm_core.errors import ActionNotFinite


class ActionTokenizer:
    """Turns actions into tokens and tokens into bin centres; decode then encode gives the same tokens.

    Attributes:
        bins: int64 [D], number of bins of every dimension.
        max_bins: the greatest of them: the size of the last axis of a model's action logits.
    """

    def __init__(self, action: Action) -> None:
        dimensions = action.dimensions
        self.bins: npt.NDArray[np.int64] = np.array([item.bins for item in dimensions], dtype=np.int64)
        self.max_bins = int(self.bins.max())
        self._low = np.array([item.low for item in dimensions], dtype=np.float64)
        self._high = np.array([item.high for item in dimensions], dtype=np.float64)
        # [D, max_bins]: a table, so that the centres are the same everywhere. NaN: no bin of the dimension.
        self._centers = np.full((len(dimensions), self.max_bins), np.nan)
        for row, item in zip(self._centers, dimensions, strict=True):
            row[: item.bins] = np.linspace(item.low, item.high, item.bins)
            if item.bins % 2 == 1:
                row[item.bins // 2] = (item.low + item.high) / 2
        self._rows = np.arange(len(dimensions))

    def encode(self, actions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Returns the nearest bin of every number; numbers beyond the bounds get the first or last bin.

        Args:
            actions: [..., D] in the units of the embodiment.

        Returns:
            int64 [..., D].

        Raises:
            ActionNotFinite: a number is NaN or infinite.
            ValueError: the last axis is not D long.
        """
        values = np.asarray(actions, dtype=np.float64)
        self._check_shape(values.shape, "actions")
        if not np.isfinite(values).all():
            raise ActionNotFinite(f"actions to encode: expected finite numbers, found {_first_bad(values)}")
        fraction = (np.clip(values, self._low, self._high) - self._low) / (self._high - self._low)
        return np.rint(fraction * (self.bins - 1)).astype(np.int64)

    def decode(self, tokens: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Returns the bin centres.

        Args:
            tokens: whole numbers [..., D], each at least 0 and below the bins of its dimension.

        Returns:
            float64 [..., D] in the units of the embodiment.

        Raises:
            ValueError: a token is no bin, tokens are not whole numbers, or the last axis is not D long.
        """
        indices = np.asarray(tokens)
        self._check_shape(indices.shape, "tokens")
        if indices.dtype.kind not in "iu":
            raise ValueError(f"tokens to decode: expected whole numbers, found the dtype {indices.dtype}")
        if indices.size and (indices.min() < 0 or (indices >= self.bins).any()):
            raise ValueError(
                f"tokens to decode: expected 0 .. bins - 1 with bins {self.bins.tolist()}, "
                f"found {indices.min()} .. {indices.max()}"
            )
        return np.asarray(self._centers[self._rows, indices])

    def _check_shape(self, shape: tuple[int, ...], what: str) -> None:
        if len(shape) < 1 or shape[-1] != len(self.bins):
            raise ValueError(
                f"{what}: expected {len(self.bins)} dimensions on the last axis, found the shape {shape}"
            )


def _first_bad(values: npt.NDArray[np.float64]) -> str:
    """Returns the first number that is not finite and where it is."""
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
    return f"{values[index]} at {list(index)}"
