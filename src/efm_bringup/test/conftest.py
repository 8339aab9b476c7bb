"""Lets the tests of this package import the helpers that lie beside them, and spins their nodes."""

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
def run(spinner):
    """Runs nodes of this process until the end of the test; gives back each as it is made."""
    nodes = []

    def add(node):
        nodes.append(node)
        spinner.executor.add_node(node)
        return node

    yield add
    for node in nodes:
        if hasattr(node, "stop_and_release"):
            node.stop_and_release()
        spinner.executor.remove_node(node)
        node.destroy_node()
