"""Entry point of the learner node."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from efm_learner.learner_node import LearnerNode
from efm_ros.lifecycle import run_node


def main(args: list[str] | None = None) -> NoReturn:
    """Runs the node until it is stopped, and ends the process."""
    # All is saved; taking torch down in good order would take seconds on a busy machine.
    _exit(run_node(_make, args))


def leave_early(node: LearnerNode, leave: Callable[[int], object]) -> None:
    """Waits until the process is to end, and ends it where the run is still being opened or made ready.

    That takes many seconds, which nothing can interrupt. It changes nothing that a killed process would
    not leave in order.
    """
    node.ending.wait()
    if node.opening:
        leave(0)


def _make() -> LearnerNode:
    node = LearnerNode()
    threading.Thread(target=leave_early, args=(node, _exit), daemon=True).start()
    return node


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
