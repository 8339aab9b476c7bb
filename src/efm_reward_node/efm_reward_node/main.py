"""Runs the node `reward`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from efm_reward_node.node import RewardNode
from efm_ros.lifecycle import run_node

THREADS = 2  # One may label an episode; the other answers meanwhile.


def main(args: Sequence[str] | None = None) -> int:
    """Runs until SIGINT or SIGTERM; returns the exit code."""
    return run_node(RewardNode, args, THREADS)


if __name__ == "__main__":
    sys.exit(main())
