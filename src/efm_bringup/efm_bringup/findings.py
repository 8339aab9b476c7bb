"""What a check found, for people: how bad it is, about what, what was expected and found, what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad a finding is."""

    OK = "ok"
    ODD = "odd"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """One line for people: about what, what was expected and found, and what to do next."""

    level: Level
    about: str
    text: str
    advice: str = ""
