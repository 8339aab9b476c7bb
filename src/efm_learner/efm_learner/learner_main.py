"""Entry point of the learner node."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from efm_learner.learner_node import LearnerNode
from efm_ros.lifecycle import run_node


def main(args: list[str] | None = None) -> NoReturn:
    """Runs the node until it is stopped, and ends the process."""
    code = run_node(LearnerNode, args)
    sys.stdout.flush()
    sys.stderr.flush()
    # All is saved; taking torch down in good order would take seconds on a busy machine.
    os._exit(code)


if __name__ == "__main__":
    main()
