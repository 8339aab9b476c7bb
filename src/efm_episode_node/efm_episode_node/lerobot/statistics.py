"""The statistics that a LeRobot data set carries, of each episode and of all together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
MOST_IMAGES = 100  # Of an episode; more tell nothing new.

Statistics = dict[str, Any]


class RunningStatistics:
    """Statistics of a data set out of those of its episodes, weighted by their length; keeps none of them."""

    def __init__(self) -> None:
        """Begins without episodes."""
        self._total: dict[str, dict[str, np.ndarray]] = {}

    def add(self, found: Mapping[str, Statistics]) -> None:
        """Takes those of one episode; quantiles of all are means over the episodes, as in LeRobot."""
        for name, one in found.items():
            new = {key: np.asarray(value, np.float64) for key, value in one.items()}
            old = self._total.get(name)
            self._total[name] = new if old is None else _merged(old, new)

    def total(self) -> dict[str, Statistics]:
        """Returns those of all, as JSON takes them."""
        return {
            name: {key: [int(value[0])] if key == "count" else value.tolist() for key, value in total.items()}
            for name, total in self._total.items()
        }


def _merged(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    count = old["count"] + new["count"]
    share = float(new["count"][0] / count[0])
    mean = (1 - share) * old["mean"] + share * new["mean"]
    spread = (1 - share) * (old["std"] ** 2 + (old["mean"] - mean) ** 2)
    spread = spread + share * (new["std"] ** 2 + (new["mean"] - mean) ** 2)
    quantiles = {key: (1 - share) * old[key] + share * new[key] for key in QUANTILES}
    return {
        "min": np.minimum(old["min"], new["min"]),
        "max": np.maximum(old["max"], new["max"]),
        "mean": mean,
        "std": np.sqrt(spread),
        "count": count,
        **quantiles,
    }


def vector_statistics(values: np.ndarray) -> Statistics:
    """Returns those of every number of the rows [N] or [N, D]."""
    numbers = np.asarray(values, np.float64).reshape(len(values), -1)
    return {
        "min": numbers.min(axis=0).tolist(),
        "max": numbers.max(axis=0).tolist(),
        "mean": numbers.mean(axis=0).tolist(),
        "std": numbers.std(axis=0).tolist(),
        "count": [len(numbers)],
        **{key: np.quantile(numbers, share, axis=0).tolist() for key, share in QUANTILES.items()},
    }


class ImageStatistics:
    """Statistics of each colour, 0 to 1, in LeRobot's shape [3, 1, 1], of some images of an episode."""

    def __init__(self, length: int) -> None:
        """Begins; the episode has `length` images."""
        self._picked = set(np.linspace(0, length - 1, min(length, MOST_IMAGES)).astype(int).tolist())
        self._histogram = np.zeros((3, 256), np.int64)

    def add(self, index: int, image: np.ndarray) -> None:
        """Takes an image uint8 [H, W, 3]."""
        if index in self._picked:
            for colour in range(3):
                self._histogram[colour] += np.bincount(image[..., colour].reshape(-1), minlength=256)

    def total(self) -> Statistics:
        """Returns those of all."""
        values = np.arange(256) / 255.0
        share = self._histogram / self._histogram.sum(axis=1, keepdims=True)
        mean = share @ values
        seen = self._histogram > 0
        below = np.cumsum(share, axis=1)
        found = {
            "min": values[seen.argmax(axis=1)],
            "max": values[255 - seen[:, ::-1].argmax(axis=1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(share @ values**2 - mean**2, 0)),
        }
        found |= {key: values[(below >= q - 1e-12).argmax(axis=1)] for key, q in QUANTILES.items()}
        shaped: Statistics = {key: value.reshape(3, 1, 1).tolist() for key, value in found.items()}
        return {**shaped, "count": [len(self._picked)]}
