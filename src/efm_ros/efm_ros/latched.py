"""Latched topics with several publishers: the e-stop, who has control.

A late joiner gets the last message of every publisher, in any order. Left out: publishers that have gone,
whose last word a late joiner never hears.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def newest_only(
    take: Callable[[Any], None], urgent: Callable[[Any], bool] = lambda message: False
) -> Callable[[Any, dict[str, int]], None]:
    """Gives a callback for a subscription: what was published last counts.

    Args:
        take: Takes the message.
        urgent: Which messages count in any case if they were published after this call. The clock of another
            machine may be behind, and no press of an e-stop may be lost by that.
    """
    began_ns, newest_ns = time.time_ns(), 0

    def callback(message: Any, info: dict[str, int]) -> None:
        nonlocal newest_ns
        stamp_ns = info["source_timestamp"]
        if stamp_ns >= newest_ns or (stamp_ns >= began_ns and urgent(message)):
            newest_ns = stamp_ns
            take(message)

    return callback
