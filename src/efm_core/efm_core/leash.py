"""Ends a process in order when the one that started it is gone, however that died.

Robots never act with nobody in charge. Left out: systems without util-linux, where such a process stays.
"""

from __future__ import annotations

import shutil

LEASH = ("setpriv", "--pdeathsig", "TERM", "--")


def leashed(command: list[str]) -> list[str]:
    """Returns a command that gets SIGTERM once the thread that started it has ended."""
    return [*LEASH, *command] if shutil.which(LEASH[0]) else command
