"""Runs the node `teleop`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from efm_policy_node.teleop import TeleopNode
from efm_ros.lifecycle import run_node


def main(args: Sequence[str] | None = None) -> int:
    """Runs until SIGINT or SIGTERM; returns the exit code."""
    return run_node(TeleopNode, args)


if __name__ == "__main__":
    sys.exit(main())
