"""Lets the tests of this package import the helpers that lie beside them, and gives them nodes."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def spinner(ros):
    from efm_ros.testing import Spinner

    spinner = Spinner()
    yield spinner
    spinner.close()


@pytest.fixture
def robot(spinner):
    from rclpy.node import Node

    node = Node("episodes", namespace="/robot_1")
    spinner.executor.add_node(node)
    yield node
    node.destroy_node()


@pytest.fixture
def learner(spinner, tmp_path):
    from transfer_learner import Learner

    learner = Learner(tmp_path / "learner", spinner)
    yield learner
    if learner.node is not None:
        learner.take_down()


@pytest.fixture
def impatient_threads():
    """Threads change after every few instructions, so that a gap between two of them shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
