"""The embodiment: what one kind of robot sees, how it is commanded, and how often; one validated value.

`config/embodiments/<name>.yaml` is read once, by `load_embodiment`, into frozen dataclasses; the same value
is stored as JSON in every episode and bundle. A fault is reported with file and key, all faults at once.
Nothing here knows ROS: topics are names, and the nodes give them meaning.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

from efm_core.embodiment_parts import (
    TWIST_AXES,
    Action,
    ActionDimension,
    Camera,
    Reset,
    State,
    StateEntry,
    StepsToGo,
    repeated,
    word,
)
from efm_core.errors import EmbodimentInvalid, nearest
from efm_core.strict_record import Fault, read_values, read_yaml, setting, to_plain

__all__ = [
    "TWIST_AXES",
    "Action",
    "ActionDimension",
    "Camera",
    "Embodiment",
    "Reset",
    "State",
    "StateEntry",
    "StepsToGo",
    "embodiment_folders",
    "load_embodiment",
]

FAULTS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Embodiment:
    """One kind of robot. Made by `load_embodiment` or `from_dict`; one made in Python is checked as strictly.

    Attributes:
        name: of the embodiment; does not have to be the file's.
        control_rate_hz: control steps per second.
        cameras: may be empty where there is a state.
        state: may be None where there is a camera.
        action: what the robot takes.
        steps_to_go: bins of the prediction of the steps that are left.
        reset: how the scene is made ready for an episode.
        max_steps: greatest number of control steps of an episode.
        watchdog_periods: control periods without a new observation after which the robot is held still.
        dry_run: nothing is sent to the robot until a person says otherwise.
        source: where the values come from, for errors; not kept.
    """

    name: str = word()
    control_rate_hz: float = setting(above=0, high=1000)
    cameras: tuple[Camera, ...] = setting(())
    state: State | None = setting(None)
    action: Action = setting()
    steps_to_go: StepsToGo = setting()
    reset: Reset = setting()
    max_steps: int = setting(low=1, high=1_000_000)
    watchdog_periods: float = setting(2.0, above=0, high=1000)
    dry_run: bool = setting(True)
    source: InitVar = ""  # type: ignore[type-arg]  # Python 3.10 finds no hints beside InitVar[str].

    def __post_init__(self, source: str) -> None:
        faults: list[Fault] = []
        values = read_values(Embodiment, to_plain(self), "", faults)
        if not faults:
            for name, value in values.items():  # With whole numbers made floats, and lists tuples.
                object.__setattr__(self, name, value)
            faults += self.contradictions()
        _raise_if_any(faults, source or f"embodiment '{self.name}'")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "embodiment") -> Embodiment:
        """Makes an embodiment from what `to_dict` returned or YAML holds; `where` names the source in errors.

        Raises:
            EmbodimentInvalid: with all faults, each with its key.
        """
        faults: list[Fault] = []
        values = read_values(cls, data, "", faults)
        _raise_if_any(faults, where)
        return cls(**values, source=where)

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as plain values for JSON; `from_dict` gives back an equal embodiment."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    def model_part(self) -> dict[str, Any]:
        """Returns as plain values what a model depends on: no topics, no safety limits, no reset."""
        entries = () if self.state is None else self.state.entries
        dimensions = self.action.dimensions
        return {
            "control_rate_hz": self.control_rate_hz,
            "cameras": [_only(camera, "name", "width", "height", "frames") for camera in self.cameras],
            "state": [_only(entry, "name", "unit", "low", "high", "field") for entry in entries],
            "action": [_only(item, "name", "unit", "low", "high", "bins", "gripper") for item in dimensions],
            "chunk": self.action.chunk,
            "steps_to_go": to_plain(self.steps_to_go),
        }

    @functools.cached_property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 over `model_part` as canonical JSON."""
        text = json.dumps(self.model_part(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def state_size(self) -> int:
        """S, the length of the state vector; 0 without a state."""
        return 0 if self.state is None else len(self.state.entries)

    @property
    def action_size(self) -> int:
        """D, the length of the action vector."""
        return len(self.action.dimensions)

    def camera(self, name: str) -> Camera:
        """Returns the camera of that name.

        Raises:
            EmbodimentInvalid: there is none; names the choices.
        """
        for camera in self.cameras:
            if camera.name == name:
                return camera
        names = [camera.name for camera in self.cameras]
        raise EmbodimentInvalid(
            f"embodiment '{self.name}': no camera '{name}'{nearest(name, names)}; its cameras are {names}"
        )

    def measured_indices(self) -> tuple[int | None, ...]:
        """Returns for every action dimension the index of its position in the state vector, or None."""
        entries = () if self.state is None else self.state.entries
        found = {entry.name: index for index, entry in enumerate(entries) if entry.field == "position"}
        found |= {entry.joint_name: index for index, entry in enumerate(entries) if entry.field == "position"}
        return tuple(found.get(dimension.name) for dimension in self.action.dimensions)

    def contradictions(self) -> Iterator[Fault]:
        """Yields the faults of values that do not go together."""
        if not self.cameras and self.state is None:
            yield Fault("cameras", "expected a camera or a state, found neither: the model would see nothing")
        yield from repeated("cameras", "name", (camera.name for camera in self.cameras))
        topics = [(f"cameras[{index}].topic", camera.topic) for index, camera in enumerate(self.cameras)]
        topics += [("state.topic", self.state.topic)] if self.state is not None else []
        topics += [("action.topic", self.action.topic)]
        first: dict[str, str] = {}
        for key, topic in topics:
            owner = first.setdefault(topic.lstrip("~/"), key)
            if owner != key:
                yield Fault(key, f"expected a topic of its own, found that of {owner}: {topic}")
        if self.action.hold_still == "measured":
            for dimension, index in zip(self.action.dimensions, self.measured_indices(), strict=True):
                if index is None and not dimension.gripper:
                    text = f"measured needs the position of '{dimension.name}' among the entries of `state`"
                    yield Fault("action.hold_still", text)
        yield from self._reset_faults()

    def _reset_faults(self) -> Iterator[Fault]:
        if (self.reset.method == "trajectory") != bool(self.reset.points):
            expected = "at least one point" if self.reset.method == "trajectory" else "none"
            text = f"expected {expected} for method {self.reset.method}, found {len(self.reset.points)}"
            yield Fault("reset.points", text)
        for index, point in enumerate(self.reset.points):
            key = f"reset.points[{index}]"
            if len(point) != self.action_size:
                text = f"expected {self.action_size} numbers, one per action dimension, found {len(point)}"
                yield Fault(key, text)
                continue
            for value, dimension in zip(point, self.action.dimensions, strict=True):
                if not dimension.low <= value <= dimension.high:
                    bounds = f"{dimension.low:g} .. {dimension.high:g}"
                    yield Fault(key, f"expected '{dimension.name}' within {bounds}, found {value:g}")


def load_embodiment(path_or_name: str | Path) -> Embodiment:
    """Reads one embodiment file.

    Args:
        path_or_name: a path (anything with a / or a suffix), or the bare name of a file in
            `config/embodiments` of the installed efm_bringup or of the source tree.

    Raises:
        EmbodimentInvalid: no such file, no YAML, or faults in it: all of them, each with file and key.
    """
    path = Path(path_or_name)
    if path.suffix == "" and len(path.parts) <= 1 and not str(path_or_name).endswith("/"):
        path = _find(path.name)
    try:
        data = read_yaml(path)
    except ValueError as error:
        raise EmbodimentInvalid(str(error)) from error
    return Embodiment.from_dict(data, where=str(path))


def embodiment_folders() -> list[Path]:
    """Returns the folders that bare names are looked for in, the installed before the source tree."""
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)), sys.prefix]
    candidates = [Path(prefix) / "share/efm_bringup/config/embodiments" for prefix in prefixes]
    candidates += [parent / "config/embodiments" for parent in Path(__file__).resolve().parents]
    return [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]


def _find(name: str) -> Path:
    folders = embodiment_folders()
    files = {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob("*.yaml"))}
    if name not in files:
        places = ", ".join(map(str, folders)) or "no folder config/embodiments: is efm_bringup installed?"
        raise EmbodimentInvalid(
            f"no embodiment '{name}'{nearest(name, files)}; there are {sorted(files)} (looked in {places})"
        )
    return files[name]


def _only(record: Any, *names: str) -> dict[str, Any]:
    return {name: to_plain(getattr(record, name)) for name in names}


def _raise_if_any(faults: list[Fault], where: str) -> None:
    if not faults:
        return
    lines = [":".join(filter(None, (where, fault.key))) + f": {fault.text}" for fault in faults]
    heading = [] if len(lines) == 1 else [f"{where}: {len(lines)} faults"]
    ending = [f"and {len(lines) - FAULTS_SHOWN} more"] if len(lines) > FAULTS_SHOWN else []
    raise EmbodimentInvalid("\n  ".join(heading + lines[:FAULTS_SHOWN] + ending))
