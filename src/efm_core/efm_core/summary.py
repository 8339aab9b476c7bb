"""What came out of an episode: `efm_msgs/msg/EpisodeSummary` as a frozen value, with its constants as enums.

The fields are those of the message; `header` and `start` are given as nanoseconds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from efm_core.errors import EpisodeInvalid, nearest
from efm_core.schemas import make_header, make_time, message_class, stamp_to_ns

SUMMARY_TYPE = "efm_msgs/msg/EpisodeSummary"


class Mode(IntEnum):
    """MODE constants of EpisodeSummary."""

    UNSET = 0
    COLLECT = 1
    PRACTICE = 2
    EVALUATE = 3


class Outcome(IntEnum):
    """OUTCOME constants of EpisodeSummary."""

    UNSET = 0
    SUCCESS = 1
    FAILURE = 2
    DISCARDED = 3


class EndReason(IntEnum):
    """END constants of EpisodeSummary."""

    UNSET = 0
    SUCCESS_DETECTED = 1
    MAX_STEPS = 2
    ACTOR_DONE = 3
    PERSON = 4
    SAFETY = 5
    CANCELLED = 6
    FAULT = 7
    TRUTH = 8


class Actor(IntEnum):
    """ACTOR constants of PolicyStep."""

    UNSET = 0
    POLICY = 1
    EXPERT = 2
    HUMAN = 3
    EXTERNAL = 4
    HOLD = 5


@dataclass(frozen=True)
class Summary:
    """One EpisodeSummary.

    Attributes:
        stamp_ns: header.stamp, of the last observation that counts [ns].
        start_ns: of the first observation that counts [ns].
        frame_id: header.frame_id.
        Others: as in the message.
    """

    episode_id: str
    start_ns: int
    stamp_ns: int
    robot: str = ""
    instruction: str = ""
    mode: Mode = Mode.UNSET
    outcome: Outcome = Outcome.UNSET
    end_reason: EndReason = EndReason.UNSET
    actor: Actor = Actor.UNSET
    seed: int = 0
    steps: int = 0
    policy_bundle_id: str = ""
    policy_version: int = 0
    reward_bundle_id: str = ""
    steps_to_go_first: float = math.nan
    steps_to_go_last: float = math.nan
    embodiment_digest: str = ""
    message: str = ""
    frame_id: str = ""

    @classmethod
    def of(cls, source: Summary | Mapping[str, Any] | Any) -> Summary:
        """Makes a summary from another one, a mapping of its fields, or an EpisodeSummary message.

        Raises:
            EpisodeInvalid: an unknown or missing field, or a value that no constant has.
        """
        if isinstance(source, Summary):
            return source
        if isinstance(source, Mapping):
            values = dict(source)
        else:
            values = {name: getattr(source, name) for name in _PLAIN if hasattr(source, name)}
            values |= {"stamp_ns": stamp_to_ns(source.header.stamp), "start_ns": stamp_to_ns(source.start)}
            values["frame_id"] = source.header.frame_id
        if unknown := [name for name in values if name not in _NAMES]:
            name = unknown[0]
            raise EpisodeInvalid(f"summary: unknown field '{name}'{nearest(name, _NAMES)}")
        if missing := [name for name in ("episode_id", "start_ns", "stamp_ns") if name not in values]:
            raise EpisodeInvalid(f"summary: expected the field '{missing[0]}', found nothing")
        for name, kind in _ENUMS.items():
            try:
                values[name] = kind(values.get(name, 0))
            except ValueError as error:
                expected = ", ".join(f"{item.value} {item.name}" for item in kind)
                raise EpisodeInvalid(f"summary.{name}: expected {expected}, found {values[name]}") from error
        return cls(**values)

    def to_message(self) -> Any:
        """Returns the message, as `schemas.serialize` takes it."""
        values = {name: getattr(self, name) for name in _PLAIN}
        values |= {name: int(values[name]) for name in _ENUMS}
        header = make_header(self.stamp_ns, self.frame_id)
        return message_class(SUMMARY_TYPE)(header=header, start=make_time(self.start_ns), **values)


_NAMES = tuple(item.name for item in dataclasses.fields(Summary))
_PLAIN = tuple(name for name in _NAMES if name not in ("stamp_ns", "start_ns", "frame_id"))
_ENUMS: dict[str, type[IntEnum]] = {
    "mode": Mode,
    "outcome": Outcome,
    "end_reason": EndReason,
    "actor": Actor,
}
