"""Which numbers of a LeRobot data set are which of the embodiment's, and in what unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from efm_core.embodiment import ActionDimension, Embodiment, StateEntry
from efm_core.errors import BadRequest, nearest
from efm_episode_node.lerobot.format import ACTION, IMAGES, STATE


class Columns:
    """Picks states, actions and cameras out of a data set."""

    def __init__(
        self, features: dict[str, Any], embodiment: Embodiment, by_order: bool, angles: str, where: str
    ) -> None:
        """Matches the features of a data set with an embodiment.

        Args:
            features: As in info.json.
            embodiment: What is wanted.
            by_order: Match numbers by their place.
            angles: radians or degrees, where units are not recorded. Empty: not said.
            where: Names the data set in errors.

        Raises:
            BadRequest: Something is missing or not said.
        """
        self._where, self._features = where, features
        entries = () if embodiment.state is None else embodiment.state.entries
        self._state = self._match(STATE, entries, by_order, angles) if entries else None
        self._action = self._match(ACTION, embodiment.action.dimensions, by_order, angles)
        self.cameras = [camera.name for camera in embodiment.cameras]
        there = [name.removeprefix(IMAGES) for name in features if name.startswith(IMAGES)]
        for camera in self.cameras:
            if camera not in there:
                raise BadRequest(
                    f"{where}: expected camera '{camera}', found {', '.join(there) or 'none'}"
                    f"{nearest(camera, there)}"
                )
            kind = features[f"{IMAGES}{camera}"]["dtype"]
            if kind != "video":
                raise BadRequest(f"{where}: camera '{camera}': expected a video, found '{kind}'")

    def state(self, table: pa.Table) -> np.ndarray | None:
        """Returns the states float32 [N, S]; None where the embodiment has none."""
        return None if self._state is None else self._picked(STATE, table, *self._state)

    def action(self, table: pa.Table) -> np.ndarray:
        """Returns the actions float32 [N, D]."""
        return self._picked(ACTION, table, *self._action)

    def _match(
        self, key: str, wanted: Sequence[StateEntry | ActionDimension], by_order: bool, angles: str
    ) -> tuple[list[int], np.ndarray]:
        """Returns the places of the wanted numbers, and what to multiply them with."""
        feature = self._features.get(key)
        if feature is None:
            raise BadRequest(f"{self._where}: expected '{key}', found {', '.join(self._features)}")
        names, size = _names(feature), int(feature["shape"][0])
        if by_order or not names:
            if size != len(wanted):
                raise BadRequest(f"{self._where}: {key}: expected {len(wanted)} numbers, found {size}")
            places = list(range(size))
        else:
            for item in wanted:
                if item.name not in names:
                    raise BadRequest(
                        f"{self._where}: {key}: expected '{item.name}', found {', '.join(names)}"
                        f"{nearest(item.name, names)}; rename the embodiment's, or take them as they stand "
                        "with --by-order"
                    )
            places = [names.index(item.name) for item in wanted]
        units = (feature.get("info") or {}).get("units")
        if units is not None:
            for item, place in zip(wanted, places, strict=True):
                if units[place] != item.unit:
                    raise BadRequest(
                        f"{self._where}: {key}: expected '{item.name}' in {item.unit}, found {units[place]}"
                    )
            return places, np.ones(len(places), np.float32)
        turning = np.array([item.unit.startswith("rad") for item in wanted])
        if turning.any() and not angles:
            raise BadRequest(
                f"{self._where}: {key}: does not say in what unit its angles are; say it with --angles "
                "radians or --angles degrees"
            )
        degree = np.pi / 180 if angles == "degrees" else 1.0
        return places, np.where(turning, degree, 1.0).astype(np.float32)

    def _picked(self, key: str, table: pa.Table, places: list[int], scale: np.ndarray) -> np.ndarray:
        rows = table.column(key).to_pylist()
        values = np.array(rows, np.float32).reshape(len(rows), -1)
        if values.shape[1] <= max(places):
            raise BadRequest(f"{self._where}: {key}: expected {max(places) + 1} numbers in every frame")
        picked = values[:, places]
        if not np.isfinite(picked).all():
            raise BadRequest(f"{self._where}: {key}: expected finite numbers, found NaN or infinity")
        return picked if (scale == 1).all() else picked * scale


def _names(feature: dict[str, Any]) -> list[str]:
    """Returns the names of a feature's numbers; LeRobot writes a list, or one under a key such as motors."""
    names = feature.get("names") or []
    if isinstance(names, dict):
        names = next(iter(names.values()), [])
    return [str(name) for name in names]
