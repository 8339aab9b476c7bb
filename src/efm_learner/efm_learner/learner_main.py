"""Entry point of the learner node."""

from __future__ import annotations

import sys

from efm_learner.learner_node import LearnerNode
from efm_ros.lifecycle import run_node


def main(args: list[str] | None = None) -> None:
    """Runs the node until it is stopped."""
    sys.exit(run_node(LearnerNode, args))


if __name__ == "__main__":
    main()
