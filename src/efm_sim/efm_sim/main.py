"""Runs the node `sim`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from efm_ros.lifecycle import run_node
from efm_sim.node import SimNode


def main(args: Sequence[str] | None = None) -> int:
    """Runs until SIGINT or SIGTERM; returns the exit code."""
    return run_node(SimNode, args)


if __name__ == "__main__":
    sys.exit(main())
