"""Ids of episodes, and the one rule for names that become names of files.

An id says when its episode started and is unique without any machine asking another. Nothing here
touches a disk.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone

import numpy as np

from efm_core.errors import BadRequest

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def new_episode_id(now: datetime, rng: np.random.Generator) -> str:
    """Returns a new id such as 20261122T140102Z-1a2b3c4d; ids sort by start time.

    Args:
        now: start of the episode, with a time zone.
        rng: source of the 8 hex digits. It must not be seeded like another robot's: two robots that start in
            the same second would give the same id.

    Raises:
        ValueError: `now` has no time zone.
    """
    if now.tzinfo is None:
        raise ValueError(f"expected a time with a time zone, found {now!r}; use datetime.now(timezone.utc)")
    return f"{now.astimezone(timezone.utc):%Y%m%dT%H%M%SZ}-{int(rng.integers(2**32)):08x}"


def check_name(name: str, what: str) -> str:
    """Returns `name` where it is safe as the name of a file or folder; `what` it names is for the error.

    Raises:
        BadRequest: the name is empty, longer than 128 characters, hidden, or holds other characters.
    """
    if not _SAFE_NAME.fullmatch(name):
        raise BadRequest(
            f"{what}: expected 1 to 128 letters, digits, '_', '.' or '-', the first a letter or a digit, "
            f"found {name!r:.80}"
        )
    return name
